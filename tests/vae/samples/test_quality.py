"""Estimates and their intervals, and what is compared with what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.samples import quality as quality_module
from vae.samples.bootstrap import Estimate, estimate
from vae.samples.frechet import frechet
from vae.samples.quality import MEASURES, RealImages, SampleQuality, as_metrics


def normal(count: int, features: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((count, features))


def compared(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> SampleQuality:
    reference = RealImages.of(real, seed)
    assert reference
    quality = reference.compare(generated)
    assert quality
    return quality


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 40), st.integers(6, 60), st.integers(1, 50), st.floats(0, 10), st.integers(0, 2**32 - 1))
def test_intervals_contain_the_value_and_shares_are_shares(
    n: int, m: int, features: int, scale: float, seed: int
) -> None:
    quality = compared(normal(n, features, seed), normal(m, features, seed + 1, scale), seed)
    for name in MEASURES:
        found = getattr(quality, name)
        assert 0 <= found.low <= found.value <= found.high
        assert all(type(number) is float for number in vars(found).values())
        assert found.high <= 1 or name in ("density", "frechet")
    assert (quality.real, quality.generated) == (n, min(n, m))


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    points = np.random.default_rng(0).exponential(size=400)
    spread = 1.96 * points.std() / 20
    found = estimate(5.0, points, seed=0)
    assert found.low == pytest.approx(5 - spread, abs=0.15 * spread)
    assert found.high == pytest.approx(5 + spread, abs=0.15 * spread)
    both = estimate(5.0, points, -points, seed=0)
    assert both.high - both.low == pytest.approx(2 * np.sqrt(2) * spread, rel=0.15)
    assert estimate(1.0, np.ones(10), seed=0) == Estimate(1.0, 1.0, 1.0)


def test_the_interval_of_the_frechet_distance_is_that_of_fresh_draws() -> None:
    """Of distributions that differ; where they are one, it is wider than need be."""
    drawn = [frechet(normal(200, 5, seed), normal(200, 5, 500 + seed, 1.6)) for seed in range(60)]
    intervals = [estimate(value, of_x, of_y, seed=0) for value, of_x, of_y in drawn]
    spread = np.std([value for value, _, _ in drawn])
    assert np.mean([found.high - found.low for found in intervals]) / 3.92 == pytest.approx(spread, rel=0.25)


def test_of_more_images_than_real_ones_a_seeded_sample_is_compared() -> None:
    real, generated = normal(40, 3, 0), normal(400, 3, 1)
    found = [compared(real, generated, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0].real == found[0].generated == 40


def test_of_many_real_images_a_sample_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_module, "IMAGES", 30)
    quality = compared(normal(50, 3, 0), normal(50, 3, 1))
    assert quality.real == quality.generated == 30


def test_too_few_images_or_a_diverged_model_give_none() -> None:
    reference = RealImages.of(normal(6, 2, 0), 0)
    assert reference and RealImages.of(normal(5, 2, 0), 0) is None
    assert reference.compare(normal(5, 2, 1)) is None and reference.compare(normal(6, 2, 1)) is not None
    assert reference.compare(np.full((6, 2), np.nan)) is None


def test_names_are_the_same_with_and_without_a_quality() -> None:
    quality = compared(normal(20, 2, 0), normal(20, 2, 1))
    metrics, missing = as_metrics("samples", quality), as_metrics("samples", None)
    assert list(metrics) == list(missing) and len(metrics) == 15
    assert set(missing.values()) == {None}
    assert metrics["samples_recall"] == quality.recall.value
    assert metrics["samples_frechet_low"] == quality.frechet.low
    assert metrics["samples_density_high"] == quality.density.high
