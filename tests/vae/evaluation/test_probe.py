"""The linear probe, and what it took each class for."""

import numpy as np
import pytest

from vae.evaluation.probe import ClassRead, Probe, classes_read


def test_probe_reads_classes_off_the_latents_and_nothing_off_noise() -> None:
    random = np.random.default_rng(0)
    labels = np.array(["a", "b", "c", None] * 50, dtype=object)
    noise = random.normal(size=(200, 2)).astype(np.float32)
    telling = noise.copy()
    telling[0::4, 0] += 20
    telling[1::4, 1] += 20
    perfect, guessing = Probe.fit(telling, labels, 0), Probe.fit(noise, labels, 0)
    assert perfect and perfect.score(telling, labels) == (1.0, pytest.approx(1 / 3))
    assert guessing and guessing.score(noise, labels)[0] < 0.6
    assert perfect.score(telling, np.full(200, None)) is None


def test_no_probe_with_fewer_than_two_classes() -> None:
    mu = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    for labels in (np.full(10, None), np.full(10, "a", dtype=object)):
        assert Probe.fit(mu, labels, 0) is None


def test_each_class_is_told_with_what_it_was_taken_for_most_often() -> None:
    labels = np.array(["a", "a", "a", "a", None, "b", "c"], dtype=object)
    guesses = np.array(["a", "c", "b", "c", "a", "b", "a"], dtype=object)
    assert classes_read(labels, guesses, labels) == [
        ClassRead("a", images=4, right=1, taken_for="c", wrong=2),
        ClassRead("b", images=1, right=1, taken_for=None, wrong=0),
        ClassRead("c", images=1, right=0, taken_for="a", wrong=1),
    ]
    assert classes_read(labels, None, labels) == []
