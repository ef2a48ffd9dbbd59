"""The two-sample test: its level where nothing differs, and differences of every kind seen."""

import numpy as np
import pytest

from vae.samples import two_sample
from vae.samples.two_sample import TwoSampleTest, two_sample_test


def normal(count: int, latents: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, latents))


def outcome(x: np.ndarray, y: np.ndarray, seed: int = 0) -> TwoSampleTest:
    found = two_sample_test(x, y, seed)
    assert found
    assert found.accuracy.low <= found.accuracy.value <= found.accuracy.high
    return found


def test_where_nothing_differs_p_values_are_spread_from_0_to_1() -> None:
    found = [outcome(normal(60, 3, seed), normal(60, 3, 900 + seed), seed) for seed in range(40)]
    p = np.array([each.p_value for each in found])
    assert np.mean([each.accuracy.value for each in found]) == pytest.approx(0.5, abs=0.02)
    assert (p < 0.05).mean() <= 0.1
    assert 0.35 < np.median(p) < 0.65
    assert np.quantile(p, 0.2) < 0.4 and np.quantile(p, 0.8) > 0.6


def test_the_interval_is_as_wide_as_that_of_folds_that_share_training_points() -> None:
    accuracy = outcome(normal(200, 3, 0), normal(200, 3, 1)).accuracy
    assert accuracy.high - accuracy.low == pytest.approx(2 * 1.96 * np.sqrt((1 + 5 / 4) / (4 * 400)), rel=0.15)


def different(name: str, y: np.ndarray) -> np.ndarray:
    side = np.where(normal(*y.shape, 9) > 0, 1.0, -1.0)
    return {
        "mean": y + 0.5,
        "spread": 1.5 * y,
        "dependence": np.concatenate([y[:, :1], 0.9 * y[:, :1] + 0.43 * y[:, 1:2], y[:, 2:]], axis=1),
        "shape": 0.3 * y + 0.954 * side,  # mean 0 and variance 1, in two modes
    }[name]


@pytest.mark.parametrize("name", ["mean", "spread", "dependence", "shape"])
def test_differences_are_seen_whatever_the_scale_of_a_latent(name: str) -> None:
    x, y = normal(200, 4, 1), different(name, normal(200, 4, 2))
    found = outcome(x, y)
    assert found.accuracy.low > 0.5 and found.p_value < 0.001
    assert outcome(x * [1e3, 1, 1e-3, 1], y * [1e3, 1, 1e-3, 1]).accuracy.value == pytest.approx(
        found.accuracy.value, abs=0.03
    )


def test_sets_apart_are_told_apart_by_every_point() -> None:
    found = outcome(normal(100, 2, 0), normal(100, 2, 1) + 50)
    assert (found.accuracy.value, found.accuracy.low, found.accuracy.high) == (1, 1, 1)
    assert found.p_value < 1e-15


def test_as_many_of_each_as_the_smaller_set_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(normal(70, 2, 0), normal(500, 2, 1)).points == 70
    monkeypatch.setattr(two_sample, "POINTS", 60)
    first, again, other = (outcome(normal(70, 2, 0), normal(500, 2, 1), seed) for seed in (0, 0, 1))
    assert first == again != other and first.points == 60


def test_too_few_points_or_latents_that_are_not_finite_give_none() -> None:
    assert two_sample_test(normal(49, 2, 0), normal(500, 2, 1), 0) is None
    assert two_sample_test(normal(50, 2, 0), normal(500, 2, 1), 0) is not None
    assert two_sample_test(np.full((50, 2), np.inf), normal(50, 2, 1), 0) is None
