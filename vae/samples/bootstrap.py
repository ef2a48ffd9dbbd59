"""An estimate with its confidence interval, by resampling the values whose means it adds up."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """low, high: the ends of its 95% interval, low ≤ value ≤ high."""

    value: float
    low: float
    high: float


def estimate(value: float, *samples: NDArray[np.float64], seed: int) -> Estimate:
    """`value` with the percentile interval of the bootstrap (Efron 1979) of its per-point values.

    value: the sum of the samples' means and a constant, so that it moves as those means do.
    samples: (N,) each, independent of each other; the points of each are resampled on their own, 1,000 times.

    Where all values of a sample are equal, it adds no width: a share of 1 among n points has the interval [1, 1],
    although one of 1 − 3/n would have come out as 1 in 5% of all draws.
    """
    random = np.random.default_rng(seed)
    moved = sum((_resampled_means(points, random) - points.mean() for points in samples), np.zeros(RESAMPLES))
    low, high = value + np.quantile(moved, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _resampled_means(points: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    n = len(points)
    return np.array([points[random.integers(n, size=n)].mean() for _ in range(RESAMPLES)])
