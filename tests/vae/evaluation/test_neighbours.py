"""k nearest neighbours, against scikit-learn's."""

import numpy as np
from scipy.stats import binom
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from vae.evaluation import neighbours
from vae.evaluation.neighbours import K, Neighbours


def test_it_guesses_what_scikit_learn_does_but_for_ties() -> None:
    random = np.random.default_rng(0)
    train, images = (random.normal(size=(n, 6)) * [1, 10, 100, 1, 1, 0] + 5 for n in (300, 700))
    labels = np.array(["a", "b"], dtype=object)[random.integers(2, size=300)]  # of two classes, 5 votes are no tie
    scaler = StandardScaler().fit(train)
    known = KNeighborsClassifier(K, algorithm="brute").fit(scaler.transform(train), labels)
    found = Neighbours.of(train, labels, images)
    assert np.array_equal(found.guess(), known.predict(scaler.transform(images)))

    half = np.sort(random.permutation(300)[:150])
    known = KNeighborsClassifier(K, algorithm="brute").fit(scaler.transform(train[half]), labels[half])
    assert np.array_equal(found.guess(half), known.predict(scaler.transform(images)))


def test_the_nearer_ones_break_a_tie_and_a_few_images_are_enough() -> None:
    train, labels = np.array([[0.0], [1.0], [2.0]]), np.array(["c", "a", "b"], dtype=object)
    asked = np.array([[0.1], [1.1], [1.8]])
    assert Neighbours.of(train, labels, asked).guess().tolist() == ["c", "a", "b"]
    assert Neighbours.of(train, labels, asked).guess(np.array([0, 2])).tolist() == ["c", "b", "b"]


def test_the_nearest_that_are_kept_suffice_for_halves_of_the_training_images() -> None:
    assert binom.cdf(K - 1, neighbours.NEAREST, 0.5) < 1e-12
