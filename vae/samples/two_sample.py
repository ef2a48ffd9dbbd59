"""A classifier two-sample test: can a classifier tell two sets of points apart?"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae.samples.bootstrap import Estimate, estimate

POINTS = 2_000  # of each set: some seconds
FOLDS = 5
FEWEST = 50  # of each set: a tree does not divide fewer than 40 training points


@dataclass(frozen=True)
class TwoSampleTest:
    """accuracy: on held-out points, with its 95% interval; 1/2 if the sets are drawn alike.
    p_value: how probable an accuracy as high is if they are.
    points: of each set.
    """

    accuracy: Estimate
    p_value: float
    points: int


def two_sample_test(x: NDArray[np.floating], y: NDArray[np.floating], seed: int) -> TwoSampleTest | None:
    """The test of Lopez-Paz & Oquab 2017, with five-fold cross-validation in place of one held-out half.

    Where both sets come from one distribution, they take the accuracy of n predictions as N(1/2, 1/(4n)) (section 3).
    The five accuracies depend on each other through the points that their training sets share, so the variance here
    is 1 + 5/4 times that (Nadeau & Bengio 2003, with n_test/n_train = 1/4), of p value and interval alike.

    The classifier, gradient-boosted trees, sees differences of mean, of spread, of dependence and of shape in a latent
    of any scale; a linear one sees the first of these only. It runs on one thread, which makes it repeatable.

    The points of a set have to be independent of each other and of the other set's: images and their own
    reconstructions are not.

    x: (N, Z), y: (M, Z). Of each a seeded sample of as many as the smaller one has, at most 2,000, is taken.
    None for fewer than 50 points, or points that are not finite.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    count = min(len(x), len(y), POINTS)
    if count < FEWEST or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    random = np.random.default_rng(seed)
    both = np.concatenate([points[random.choice(len(points), count, replace=False)] for points in (x, y)])
    truth = np.repeat([0, 1], count)
    classifier = HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=8, early_stopping=False, random_state=seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with threadpool_limits(1):
        right = cross_val_predict(classifier, both.astype(np.float64), truth, cv=folds) == truth
    accuracy, widening = float(right.mean()), math.sqrt(1 + FOLDS / (FOLDS - 1))
    found = estimate(accuracy, widening * right, seed=seed)
    z = (accuracy - 0.5) * 2 * math.sqrt(len(right)) / widening
    return TwoSampleTest(
        Estimate(accuracy, max(found.low, 0.0), min(found.high, 1.0)), math.erfc(z / math.sqrt(2)) / 2, count
    )
