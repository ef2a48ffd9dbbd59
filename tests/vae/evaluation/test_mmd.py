"""The discrepancy against a double loop, and against its integral for two Gaussians."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from vae.evaluation import mmd
from vae.evaluation.mmd import kernel, mmd2, mmd_to_prior
from vae.models import mixture_prior


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


def expected(latents: int, shift: float, variance: float) -> float:
    """MMD² of N(shift, variance·I) and N(0, I).

    C/(C + d²) = ∫_0^∞ C e^(−Ct) e^(−td²) dt, and for d ~ N(δ, v·I)
    E e^(−t‖d‖²) = (1 + 2tv)^(−Z/2) · e^(−t‖δ‖²/(1 + 2tv)).
    """

    def mean_kernel(delta2: float, v: float) -> float:
        total = 0.0
        for scale in mmd.SCALES:
            c = 2 * latents * scale

            def integrand(u: float, c: float = c) -> float:  # u = Ct
                t = u / c
                narrower = 1 + 2 * t * v
                return math.exp(-u - t * delta2 / narrower) * narrower ** (-latents / 2)

            total += integrate.quad(integrand, 0, math.inf, epsabs=1e-12, epsrel=1e-10)[0]
        return total

    delta2 = latents * shift**2
    return mean_kernel(0, 2 * variance) + mean_kernel(0, 2) - 2 * mean_kernel(delta2, variance + 1)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("latents", [1, 5])
def test_blocks_give_what_a_double_loop_gives(
    monkeypatch: pytest.MonkeyPatch, block: int, latents: int
) -> None:
    monkeypatch.setattr(mmd, "BLOCK", block)
    x, y = normal(33, latents, 0, shift=0.3), normal(20, latents, 1)
    assert mmd2(x, y) == pytest.approx(by_loops(x, y), rel=1e-9)
    x[1] = x[0]  # equal points, at a distance of 0
    assert mmd2(x, y) == pytest.approx(by_loops(x, y), rel=1e-9)
    assert kernel(x[:1], x[:2]) == pytest.approx(np.full((1, 2), 7.0))


@pytest.mark.parametrize(("shift", "variance"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (-0.3, 2.0), (3.0, 0.1)])
@pytest.mark.parametrize("latents", [2, 16])
def test_the_mean_of_many_estimates_is_the_integral(latents: int, shift: float, variance: float) -> None:
    estimates = [
        mmd2(normal(100, latents, 2 * i, shift, math.sqrt(variance)), normal(100, latents, 2 * i + 1))
        for i in range(60)
    ]
    error = float(np.std(estimates, ddof=1) / math.sqrt(len(estimates)))
    known = expected(latents, shift, variance)
    assert known == pytest.approx(0, abs=1e-9) if (shift, variance) == (0, 1) else known > 0.02
    assert abs(np.mean(estimates) - known) < 3.5 * error
    assert error < max(0.004, 0.1 * known)


def posteriors(latents: int, share: float, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors of 2,000 images whose aggregate is N(shift, I), of which `share` is the posteriors' own variance."""
    mu = normal(2000, latents, 5, shift, math.sqrt(1 - share))
    return mu.astype(np.float32), np.full_like(mu, math.log(share), dtype=np.float32)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_an_aggregate_posterior_that_is_the_prior_has_none(share: float) -> None:
    found = mmd_to_prior(*posteriors(8, share), seed=0)
    assert found is not None and abs(found) < 0.003
    known = [expected(8, shift, 1.0) for shift in (0.2, 0.5, 1.0)]
    shifted = [mmd_to_prior(*posteriors(8, share, shift), seed=0) for shift in (0.2, 0.5, 1.0)]
    assert shifted == pytest.approx(known, abs=0.012, rel=0.08)
    assert found < known[0] / 5 and known == sorted(known)


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
    """Images in two clusters, and a mixture of the two."""
    side = np.where(np.arange(400) % 2, 3.0, -3.0)[:, None]
    mu = (side + 0.5 * normal(400, 3, 1)).astype(np.float32)
    logvar = np.full_like(mu, -2.0)
    prior = mixture_prior.fit(mu, logvar, seed=0)
    to_standard, to_fitted = mmd_to_prior(mu, logvar, 0), mmd_to_prior(mu, logvar, 0, prior)
    assert to_standard is not None and to_standard > 0.5
    assert to_fitted is not None and abs(to_fitted) < 0.05
    drawn = prior.sample(400, torch.Generator().manual_seed(0)).double().numpy()
    z = mu.astype(np.float64) + np.exp(0.5 * logvar.astype(np.float64)) * normal(400, 3, 0)
    assert to_fitted == pytest.approx(mmd2(z, drawn), abs=1e-12)
