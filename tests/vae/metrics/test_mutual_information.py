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
    assert got.value == pytest.approx(math.log(clusters), abs=1e-6)
    assert got.aggregate_kl == pytest.approx(rate - math.log(clusters), abs=1e-6)
    assert got.saturated_at is None


def test_more_information_than_the_sample_can_show_is_not_reported() -> None:
    mu = np.arange(200.0)[:, None] * 100
    assert mutual_information(mu, np.zeros_like(mu), 0) == MutualInformation(None, None, pytest.approx(math.log(200)))
    # the limit itself: a rate of ln n − 2
    for excess, saturated in ((-0.01, False), (0.01, True)):
        same = np.full((200, 1), math.sqrt(2 * (math.log(200) - 2 + excess)))
        got = mutual_information(same, np.zeros_like(same), 0)
        assert (got.value is None) is saturated
        assert saturated or got.value == pytest.approx(0, abs=1e-9)


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
