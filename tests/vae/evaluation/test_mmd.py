"""The discrepancy against a double loop over all pairs."""

import math

import numpy as np
import pytest
import torch
from helpers.priors import two_clusters

from vae.evaluation import mmd
from vae.evaluation.mmd import kernel, mmd2, mmd_to_prior
from vae.priors.mixture import Mixture


def normal(count: int, latents: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return shift + scale * np.random.default_rng(seed).standard_normal((count, latents))


def by_loops(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton 2012, equation 3, as it stands there."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        scales = (2 * len(a) * s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))
        return sum(c / (c + math.dist(a, b) ** 2) for c in scales)

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    xy = sum(k(a, b) for a in x for b in y) / (m * n)
    return xx + yy - 2 * xy


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("latents", [1, 5])
def test_blocks_give_what_a_loop_gives(monkeypatch: pytest.MonkeyPatch, block: int, latents: int) -> None:
    monkeypatch.setattr(mmd, "BLOCK", block)
    x, y = normal(33, latents, 0, shift=0.3), normal(20, latents, 1)
    assert mmd2(x, y) == pytest.approx(by_loops(x, y), rel=1e-9)
    x[1] = x[0]  # equal points, at a distance of 0
    assert mmd2(x, y) == pytest.approx(by_loops(x, y), rel=1e-9)
    assert kernel(x[:1], x[:2]) == pytest.approx(np.full((1, 2), 7.0))


def posteriors(latents: int, share: float, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors of 2,000 images whose aggregate is N(shift, I), of which `share` is the posteriors' own variance."""
    mu = normal(2000, latents, 5, shift, math.sqrt(1 - share))
    return mu.astype(np.float32), np.full_like(mu, math.log(share), dtype=np.float32)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_an_aggregate_posterior_that_is_the_prior_has_none(share: float) -> None:
    found = mmd_to_prior(*posteriors(8, share), seed=0)
    assert found is not None and abs(found) < 0.003
    for shift in (0.2, 0.5, 1.0):
        drawn = mmd2(normal(2000, 8, 6, shift), normal(2000, 8, 7))
        assert mmd_to_prior(*posteriors(8, share, shift), seed=0) == pytest.approx(drawn, abs=0.012, rel=0.08)
        assert found < drawn / 5


def test_it_repeats_follows_its_seed_and_takes_a_sample_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmd, "IMAGES", 200)
    sizes: list[tuple[int, ...]] = []
    real = mmd.mmd2

    def seen(x: np.ndarray, y: np.ndarray) -> float:
        sizes.extend([x.shape, y.shape])
        return real(x, y)

    monkeypatch.setattr(mmd, "mmd2", seen)
    mu, logvar = posteriors(3, 0.5, 0.3)
    found = [mmd_to_prior(mu, logvar, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert set(sizes) == {(200, 3)}


def test_one_image_has_no_estimate() -> None:
    assert mmd_to_prior(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32), 0) is None
    assert mmd_to_prior(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), 0) is not None


def test_the_discrepancy_is_to_the_prior_that_was_fitted() -> None:
    """Images in two clusters, and the mixture of the two."""
    mu, logvar = two_clusters(400)
    halves, centers = torch.full((2,), 0.5).double(), torch.tensor([[-3.0] * 3, [3.0] * 3]).double()
    scales = (0.5**2 + math.exp(-2)) ** 0.5 * torch.eye(3).double().expand(2, 3, 3)
    prior = Mixture(torch.zeros(3).double(), torch.eye(3).double(), halves, centers, scales)
    to_standard, to_fitted = mmd_to_prior(mu, logvar, 0), mmd_to_prior(mu, logvar, 0, prior)
    assert to_standard is not None and to_standard > 0.5
    # The numbers of points in either cluster differ by chance, and the clusters are far apart.
    assert to_fitted is not None and abs(to_fitted) < 0.03 * to_standard
    drawn = prior.sample(400, torch.Generator().manual_seed(0)).double().numpy()
    z = mu.astype(np.float64) + np.exp(0.5 * logvar.astype(np.float64)) * normal(400, 3, 0)
    assert to_fitted == pytest.approx(mmd2(z, drawn), abs=1e-12)
