"""Neighbours in a source: frames that follow one another, and images in random order or class by class."""

import hashlib
import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from benchmarks.case_images import faces
from vae.data import splits
from vae.validation.rules import NEIGHBOURS_ALIKE
from vae.validation.sequences import Neighbours, separated_neighbours


def found(images: np.ndarray, labels: list[str] | None = None, given: list[str] | None = None) -> Neighbours | None:
    """Split at random as ingest does, or as given."""
    count = len(images)
    contents = [hashlib.sha256(bytes(image)).hexdigest() for image in images]
    fractions = {"test": 0.1, "valid": 0.1}
    split = np.array(given or splits.assign([None] * count, labels or [None] * count, contents, fractions, seed=0))
    arrays = {name: images[split == name] for name in ("train", "valid", "test")}
    rows = pd.DataFrame({"split": split, "label": labels or [None] * count})
    rows["index"] = rows.groupby("split").cumcount()
    return separated_neighbours(rows, arrays)


def moving_spot(count: int = 1965) -> np.ndarray:
    """A spot on a slow curve: (count, 28, 20, 1)."""
    y, x = np.mgrid[0:28, 0:20]
    t = np.arange(count)[:, None, None]
    spot = np.exp(-((y - 14 - 6 * np.sin(t / 40)) ** 2 + (x - 10 - 5 * np.cos(t / 31)) ** 2) / 18)
    return (255 * spot).astype(np.uint8)[..., None]


@pytest.mark.parametrize("frames", [faces(1965), moving_spot()], ids=["faces", "spot"])
def test_frames_of_a_video_that_are_split_at_random(frames: np.ndarray) -> None:
    got = found(frames)
    assert got is not None and got.ratio < NEIGHBOURS_ALIKE / 2
    # neighbours on different sides: 2 · 0.8 · 0.2 of all
    assert got.pairs == pytest.approx(0.32 * len(frames), rel=0.1)
    assert got == found(frames), "the sample of pairs is always the same"
    shuffled = found(np.random.default_rng(0).permutation(frames))
    assert shuffled is not None and shuffled.ratio == pytest.approx(1, abs=0.15)


def test_frames_that_are_split_in_time_are_the_owners_choice() -> None:
    frames = moving_spot()
    assert found(frames, given=["train"] * 1600 + ["valid"] * 165 + ["test"] * 200) is None


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_the_ratio_of_a_random_walk_is_one_minus_its_correlation(correlation: float) -> None:
    """E(x_t − x_{t+1})² = 2(1 − ρ)·Var x, of any two 2·Var x."""
    random, walk = np.random.default_rng(0), np.zeros((4000, 8, 8, 1))
    for before, now in itertools.pairwise(walk):
        now[:] = correlation * before + np.sqrt(1 - correlation**2) * random.standard_normal(before.shape)
    got = found(np.clip(127 + 20 * walk, 0, 255).astype(np.uint8))
    assert got is not None and got.ratio == pytest.approx(1 - correlation, rel=0.05)


def test_digits_and_images_that_lie_class_by_class_are_no_sequence() -> None:
    digits = load_digits()
    images, labels = (digits.images * 15.9).astype(np.uint8)[..., None], [str(label) for label in digits.target]
    for given in (labels, None):
        got = found(images, given)
        assert got is not None and got.ratio > 3 * NEIGHBOURS_ALIKE
    random = np.random.default_rng(0)
    patterns = random.integers(0, 200, (10, 8, 8, 1)).repeat(50, axis=0)
    tight = (patterns + random.integers(0, 50, patterns.shape)).astype(np.uint8)
    got = found(tight, [str(number // 50) for number in range(500)])
    assert got is not None and got.ratio == pytest.approx(1, abs=0.1)


def test_where_nothing_can_be_compared_nothing_is_said() -> None:
    assert found(np.full((200, 8, 8, 1), 7, np.uint8)) is None
    assert found(moving_spot(30)) is None
    assert found(moving_spot(200), labels=[str(number) for number in range(200)]) is None
