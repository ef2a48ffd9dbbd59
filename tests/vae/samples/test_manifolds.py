"""Precision, recall, density and coverage against double loops, and where they are known to differ."""

import math

import numpy as np
import pytest

from vae.samples import manifolds
from vae.samples.manifolds import Overlap, Radii, overlap


def normal(count: int, features: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return shift + np.random.default_rng(seed).standard_normal((count, features))


def found(real: np.ndarray, generated: np.ndarray) -> Overlap:
    return overlap(real, Radii.of(real), generated)


def means(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    return {name: float(points.mean()) for name, points in vars(found(real, generated)).items()}


def by_loops(real: np.ndarray, generated: np.ndarray) -> dict[str, list[float]]:
    """The definitions as they stand in the papers."""

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    def balls(points: np.ndarray, k: int, others: np.ndarray, closed: bool) -> list[list[bool]]:
        radii = [radius(points, i, k) for i in range(len(points))]
        distances = [[math.dist(x, y) for y in others] for x in points]
        return [[d <= r if closed else d < r for d in row] for row, r in zip(distances, radii, strict=True)]

    of_real, of_generated = balls(real, 3, generated, True), balls(generated, 3, real, True)
    wide = balls(real, 5, generated, False)
    return {
        "precision": [any(row[j] for row in of_real) for j in range(len(generated))],
        "recall": [any(row[i] for row in of_generated) for i in range(len(real))],
        "density": [sum(row[j] for row in wide) / 5 for j in range(len(generated))],
        "coverage": [any(row) for row in wide],
    }


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_give_what_loops_give(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(manifolds, "BLOCK", block)
    real, generated = normal(33, 3, 0), normal(20, 3, 1, shift=1)
    expected = by_loops(real, generated)
    assert {name: list(points) for name, points in vars(found(real, generated)).items()} == expected
    assert 0 < np.mean(expected["precision"]) < 1 and 0 < np.mean(expected["recall"]) < 1


def test_equal_sets_agree_in_all_and_distant_ones_in_nothing() -> None:
    for real in (normal(50, 4, 0), normal(50, 4, 0) @ np.diag([1e6, 1, 1, 1e-6]) + 1e3):
        assert means(real, real[::-1].copy()) == {
            "precision": 1,
            "recall": 1,
            "density": pytest.approx(1),
            "coverage": 1,
        }
        assert set(means(real, real + 1e9).values()) == {0.0}


def test_density_of_the_same_distribution_is_1_and_coverage_is_naeems() -> None:
    """A real point is missed if its k nearest among the others of both sets are all real (Naeem 2020)."""
    n, k = 200, 5
    drawn = [means(normal(n, 8, seed), normal(n, 8, 1000 + seed)) for seed in range(30)]
    expected = 1 - math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(k))
    assert np.mean([m["density"] for m in drawn]) == pytest.approx(1, abs=0.03)
    assert np.mean([m["coverage"] for m in drawn]) == pytest.approx(expected, abs=0.005)


def test_a_dropped_mode_is_missed_by_recall_and_coverage() -> None:
    modes = normal(300, 3, 0) + 100 * (np.arange(300) % 3)[:, None]
    two = normal(300, 3, 1) + 100 * (np.arange(300) % 2)[:, None]
    all_three = normal(300, 3, 1) + 100 * (np.arange(300) % 3)[:, None]
    dropped, kept = means(modes, two), means(modes, all_three)
    assert dropped["precision"] == pytest.approx(kept["precision"], abs=0.05) and dropped["precision"] > 0.85
    assert dropped["recall"] < 0.68 < 0.85 < kept["recall"]
    assert dropped["coverage"] < 0.68 < 0.9 < kept["coverage"]


def test_images_off_the_manifold_lower_precision_and_leave_recall() -> None:
    real = normal(300, 3, 0)
    half_bad = np.concatenate([normal(150, 3, 1), normal(150, 3, 2, shift=50)])
    assert means(real, half_bad)["precision"] < 0.5
    assert means(real, half_bad)["recall"] > 0.75


def test_an_outlier_widens_precision_and_recall_and_hardly_density_and_coverage() -> None:
    """Naeem 2020, figure 1: the ball of an outlier reaches over half of the space."""
    real, bad = normal(300, 3, 0), normal(300, 3, 1, shift=12)
    clean = means(real, bad)
    assert clean == dict.fromkeys(clean, 0)
    far = np.full((1, 3), 25.0)
    with_real = means(np.concatenate([real, far]), bad)
    assert with_real["precision"] > 0.95
    assert with_real["density"] < 0.25 and with_real["coverage"] < 0.01
    with_generated = means(real, np.concatenate([bad, -far]))
    assert with_generated["recall"] > 0.95
    assert with_generated["density"] == with_generated["coverage"] == 0
