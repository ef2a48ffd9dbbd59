"""Rates and bounds against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.priors import mixture
from vae.priors.aggregate import Posteriors, draw, kl_to_prior, rate
from vae.priors.mixture import Mixture, PrincipalAxes
from vae.priors.standard import StandardNormal

LATENTS, IMAGES = 3, 20_000


def normal(mean: float, sigma: float, latents: int = LATENTS) -> Mixture:
    """N(mean, σ²) of each latent."""
    return mixture.fit_gaussian(PrincipalAxes(np.full(latents, mean), sigma * np.eye(latents)))


def posteriors(mean: float, sigma: float, seed: int = 700) -> tuple[Posteriors, Posteriors]:
    """Of q(z) = N(mean, σ²) in each latent, half of whose variance is the posteriors' own."""
    means = np.random.default_rng(seed).normal(size=(IMAGES, LATENTS))
    mu = (mean + np.sqrt(0.5) * sigma * means).astype(np.float32)
    return mu, np.full_like(mu, np.log(0.5 * sigma**2))


def closed_form(mean: float, sigma: float) -> float:
    """KL(N(mean, σ²) ‖ N(0, 1)) of each latent."""
    return LATENTS * 0.5 * (sigma**2 + mean**2 - 1 - np.log(sigma**2))


def test_samples_of_the_posteriors_have_their_moments() -> None:
    mu, logvar = np.full((IMAGES, 2), 3.0, np.float32), np.full((IMAGES, 2), np.log(4.0), np.float32)
    z = draw(mu, logvar, seed=0)
    assert z.shape == (IMAGES, 2) and z.dtype == np.float64
    np.testing.assert_allclose([z.mean(), z.std()], [3, 2], atol=0.03)
    assert (z == draw(mu, logvar, seed=0)).all() and (z != draw(mu, logvar, seed=1)).all()


def test_the_rate_against_a_standard_normal_is_the_kl() -> None:
    random = np.random.default_rng(6)
    mu = random.normal(size=(IMAGES, LATENTS)).astype(np.float32)
    logvar = random.uniform(-3, 0.5, (IMAGES, LATENTS)).astype(np.float32)
    closed = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(1).mean()
    standard = rate(mu, logvar, StandardNormal(LATENTS), seed=0)
    assert standard == pytest.approx(closed, rel=0.01)
    assert standard == pytest.approx(rate(mu, logvar, normal(0.0, 1.0), seed=0), rel=1e-9)
    assert standard != rate(mu, logvar, StandardNormal(LATENTS), seed=1)


def test_the_rate_falls_by_the_kl_of_the_aggregate_posterior_where_the_prior_becomes_that() -> None:
    """R = I(x; z) + KL(q(z) ‖ p), and the information, here ½ ln 2 for each latent, does not depend on p."""
    mu, logvar = posteriors(2.0, 1.0)
    assert rate(mu, logvar, normal(2.0, 1.0), seed=0) == pytest.approx(LATENTS * 0.5 * np.log(2), abs=0.02)
    for mean in (0.0, -2.0):
        away = LATENTS * 0.5 * (2 - mean) ** 2
        assert rate(mu, logvar, normal(mean, 1.0), seed=0) == pytest.approx(away + LATENTS * 0.5 * np.log(2), rel=0.02)


@pytest.mark.parametrize(("mean", "sigma"), [(2.0, 1.0), (0.0, 1.0), (0.0, 0.3), (-1.0, 2.0)])
def test_with_the_exact_density_the_bound_is_the_kl(mean: float, sigma: float) -> None:
    bound = kl_to_prior(*posteriors(mean, sigma), StandardNormal(LATENTS), normal(mean, sigma), seed=0)
    assert 0 < bound.standard_error < 0.1 or (mean, sigma) == (0.0, 1.0)
    assert abs(bound.value - closed_form(mean, sigma)) <= 4 * bound.standard_error + 1e-9


@given(st.floats(-4, 4), st.floats(0.3, 3.0))
@settings(max_examples=30, deadline=None)
def test_any_other_density_gives_less_by_its_own_distance(mean: float, sigma: float) -> None:
    """KL(q ‖ r) less, so never more than the KL: q = N(2, I)."""
    bound = kl_to_prior(*posteriors(2.0, 1.0), StandardNormal(LATENTS), normal(mean, sigma), seed=0)
    distance = LATENTS * 0.5 * ((1 + (2 - mean) ** 2) / sigma**2 - 1 + np.log(sigma**2))
    assert bound.value == pytest.approx(closed_form(2.0, 1.0) - distance, abs=4 * bound.standard_error + 0.02)
    assert bound.value <= closed_form(2.0, 1.0) + 4 * bound.standard_error


def test_of_a_standard_normal_itself_nothing_is_certified() -> None:
    bound = kl_to_prior(*posteriors(2.0, 1.0), StandardNormal(LATENTS), StandardNormal(LATENTS), seed=0)
    assert bound.value == bound.standard_error == 0


def test_the_standard_error_is_that_of_the_images() -> None:
    """Over other images, the bound varies by as much as it says."""
    found = []
    for seed in range(700, 740):
        mu, logvar = posteriors(2.0, 1.0, seed)
        found.append(kl_to_prior(mu[:100], logvar[:100], StandardNormal(mu.shape[1]), normal(1.5, 1.2), seed=seed))
    spread = np.std([bound.value for bound in found], ddof=1)
    assert spread == pytest.approx(np.mean([bound.standard_error for bound in found]), rel=0.3)


WIDTH = 0.1  # of a circle, along its radius


def circles(images: int) -> tuple[Posteriors, Posteriors]:
    """Four circles in eight latents, of variance 1 and uncorrelated: no moment up to the second sees them."""
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (images, 4))
    mu = np.sqrt(2 - 2 * WIDTH**2) * np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(images, 8)
    return mu.astype(np.float32), np.full((images, 8), 2 * np.log(WIDTH), np.float32)


class Circles:
    """The density of that, but for what 40 Gaussians around each circle are not it."""

    def __init__(self) -> None:
        angles = torch.arange(40).double() * 2 * torch.pi / 40
        centers = (2 - 2 * WIDTH**2) ** 0.5 * torch.stack([angles.cos(), angles.sin()], dim=1)
        scales = 1.2 * WIDTH * torch.eye(2).double().expand(40, 2, 2)
        axes = torch.zeros(2).double(), torch.eye(2).double()
        self.one = Mixture(*axes, torch.full((40,), 1 / 40).double(), centers, scales)

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        return self.one.log_prob(z.reshape(-1, 4, 2)).sum(1)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        raise NotImplementedError


def test_structure_beyond_the_moments_is_certified() -> None:
    """The gap of the moments is 0, and a circle is ln 2π + 1 − (ln 2π√2 + ½ ln 2πe σ²) = 1.54 nats from N(0, I).

    The entropy of a circle is that of its angle, of its length and of its width, σ of a radius of √2.
    """
    mu, logvar = circles(2_000)
    covariance = np.cov(mu.T, bias=True) + np.diag(np.exp(logvar).mean(0))
    assert 0.5 * (np.trace(covariance) + (mu.mean(0) ** 2).sum() - 8 - np.linalg.slogdet(covariance)[1]) < 0.05
    closed = 4 * (1 - 0.5 * np.log(2) - 0.5 * np.log(2 * np.pi * np.e * WIDTH**2))
    bound = kl_to_prior(mu, logvar, StandardNormal(mu.shape[1]), Circles(), seed=0)
    assert 0.9 * closed < bound.value < closed + 4 * bound.standard_error
