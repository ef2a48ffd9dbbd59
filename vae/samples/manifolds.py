"""Real and generated images in each other's neighbourhoods: precision, recall, density, coverage."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECISION_NEIGHBOURS = 3  # of Kynkäänniemi 2019
COVERAGE_NEIGHBOURS = 5  # of Naeem 2020
BLOCK = 512  # rows of a matrix of distances at a time

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Overlap:
    """What each point says; the mean of each array is the measure of its name.

    precision: (M,), whether the generated point lies in the ball of a real one (Kynkäänniemi 2019, equation 2).
    recall: (N,), whether the real point lies in the ball of a generated one.
    density: (M,), in how many real balls the generated point lies, over k (Naeem 2020); its mean is 1 in
        expectation if both sets are drawn alike, and can exceed 1.
    coverage: (N,), whether the real point's ball has a generated point in it (Naeem 2020).
    """

    precision: Points
    recall: Points
    density: Points
    coverage: Points


@dataclass(frozen=True)
class Radii:
    """The distance from each point to its k-th neighbour in its own set: (N,), for both k."""

    precision: Points
    coverage: Points

    @classmethod
    def of(cls, points: Points) -> "Radii":
        """points: (N, F), more than 5."""
        nearest = PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS  # with 0, the point itself
        blocks = [
            np.partition(_distances(points, start, points), nearest, axis=1)[:, nearest] for start in _starts(points)
        ]
        both = np.concatenate(blocks)
        return cls(both[:, 0], both[:, 1])


def overlap(real: Points, real_radii: Radii, generated: Points) -> Overlap:
    """Both manifolds are unions of balls around their points, up to the k-th neighbour in their own set.

    k is 3 for precision and recall, whose balls are closed, and 5 for density and coverage, whose balls are open, as
    the papers' code has them. One pass over the distances between the sets, in blocks.

    real: (N, F), generated: (M, F), finite, more than 5 each.
    """
    of_generated = Radii.of(generated).precision
    precision = np.zeros(len(generated), dtype=bool)
    counts = np.zeros(len(generated))
    recall, coverage = [], []
    for start in _starts(real):
        distances = _distances(real, start, generated)
        rows = slice(start, start + BLOCK)
        precision |= (distances <= real_radii.precision[rows, None]).any(0)
        recall.append((distances <= of_generated).any(1))
        inside = distances < real_radii.coverage[rows, None]
        counts += inside.sum(0)
        coverage.append(inside.any(1))
    return Overlap(
        precision.astype(np.float64),
        np.concatenate(recall).astype(np.float64),
        counts / COVERAGE_NEIGHBOURS,
        np.concatenate(coverage).astype(np.float64),
    )


def _starts(points: Points) -> range:
    return range(0, len(points), BLOCK)


def _distances(points: Points, start: int, others: Points) -> Points:
    """From a block of points to all others: (BLOCK, M).

    By differences: ‖x‖² + ‖y‖² − 2xy is faster, but equal points get a distance above 0, and whether the k-th
    neighbour lies within its own radius depends on rounding.
    """
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(points[start : start + BLOCK], others))
