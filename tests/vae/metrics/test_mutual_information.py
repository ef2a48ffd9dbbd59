import math

import numpy as np
import pytest
from scipy import integrate, stats

from vae.metrics import mutual_information as module
from vae.metrics.mutual_information import MutualInformation, mutual_information


@pytest.mark.parametrize("clusters", [2, 4])
def test_information_of_separate_clusters_is_the_log_of_their_number(clusters: int) -> None:
    corners = np.array([[-2, -2], [2, 2], [-2, 2], [2, -2]][:clusters], dtype=float)
    mu = np.tile(corners, (4000 // clusters, 1))
    logvar = np.full_like(mu, math.log(0.05))
    rate = 2 * 0.5 * (4 + 0.05 - 1 - math.log(0.05))
    got = mutual_information(mu, logvar, seed=0)
    expected = 0.5 * (math.log(clusters) + math.log(3999 / (4000 / clusters - 1)))  # with itself, and without
    assert expected == pytest.approx(math.log(clusters), abs=1e-3)
    assert got.value == pytest.approx(expected, abs=1e-6)
    assert got.aggregate_kl == pytest.approx(rate - expected, abs=1e-6)
    assert got.saturated_at is None


def test_more_information_than_the_sample_can_show_is_not_reported() -> None:
    mu = np.arange(200.0)[:, None] * 100
    assert mutual_information(mu, np.zeros_like(mu), 0) == MutualInformation(None, None, pytest.approx(math.log(200)))
    alone = mutual_information(mu[:1], np.zeros((1, 1)), 0)
    assert alone == MutualInformation(None, None, 0.0), "there is no other image to compare with"


def test_a_rate_above_the_limit_is_no_obstacle_where_the_information_is_low() -> None:
    same = np.full((200, 1), 5.0)
    assert math.log(200) < 0.5 * 5.0**2
    got = mutual_information(same, np.zeros_like(same), 0)
    assert got.value == pytest.approx(0, abs=1e-9) and got.aggregate_kl == pytest.approx(12.5)


@pytest.mark.parametrize("latents", [2, 8, 32])
@pytest.mark.parametrize("below_limit", [2.1, 3.0, 3.5, 4.5])
def test_what_is_reported_is_right_within_a_tenth_of_a_nat(latents: int, below_limit: float) -> None:
    """μ ~ N(0, 1 − σ²) makes q(z) = N(0, I) exactly: the aggregate KL is 0."""
    images, found = 1500, []
    variance = math.exp(-2 * (math.log(images) - below_limit) / latents)
    for seed in range(1, 6):
        mu = np.random.default_rng(seed).normal(0, math.sqrt(1 - variance), (images, latents))
        got = mutual_information(mu, np.full_like(mu, math.log(variance)), seed=0)
        assert (got.value is None) == (got.aggregate_kl is None) == (got.saturated_at is not None)
        found += [got.aggregate_kl] if got.aggregate_kl is not None else []
    assert found or below_limit < 4.5
    assert not found or abs(np.mean(found)) < 0.1


def test_information_is_the_integral_that_defines_it() -> None:
    random = np.random.default_rng(2)
    centres, variances = random.normal(0, 1, 12), random.uniform(0.05, 0.6, 12)
    posteriors = [stats.norm(m, math.sqrt(v)) for m, v in zip(centres, variances, strict=True)]

    def entropy_density(z: float) -> float:
        density = sum(q.pdf(z) for q in posteriors) / len(posteriors)
        return -density * math.log(density)

    marginal, _ = integrate.quad(entropy_density, -8, 8, limit=200)
    expected = marginal - np.mean([q.entropy() for q in posteriors])
    mu, logvar = np.tile(centres, 250)[:, None], np.tile(np.log(variances), 250)[:, None]
    assert mutual_information(mu, logvar, seed=0).value == pytest.approx(expected, abs=0.03)


def test_of_a_large_split_a_seeded_sample_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IMAGES", 500)
    mu = np.random.default_rng(1).normal(0, 0.7, (3000, 1))
    got = [mutual_information(mu, np.full_like(mu, math.log(0.5)), seed).value for seed in (0, 0, 1)]
    assert got[0] == got[1] != got[2]
    saturated = mutual_information(mu * 100, np.zeros_like(mu), 0)
    assert saturated.saturated_at == pytest.approx(math.log(500))
