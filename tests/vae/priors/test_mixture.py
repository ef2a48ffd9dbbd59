"""The fitted prior against scipy's densities, closed forms, and its own samples."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from vae.models.mixture_prior import Mixture

from vae.models import mixture_prior

LATENTS = 3


def some_mixture(components: int = 4, latents: int = LATENTS, seed: int = 0) -> Mixture:
    random = np.random.default_rng(seed)
    weights = random.uniform(0.5, 1.5, components)
    factors = np.tril(random.normal(size=(components, latents, latents)))
    factors[:, np.arange(latents), np.arange(latents)] = random.uniform(0.3, 1.2, (components, latents))
    return Mixture(
        torch.from_numpy(weights / weights.sum()),
        torch.from_numpy(2 * random.normal(size=(components, latents))),
        torch.from_numpy(factors),
    )


def gaussian(mean: float = 0.0, sigma: float = 1.0) -> Mixture:
    """The same of each latent, as a mixture of one."""
    one = torch.ones(1, dtype=torch.float64)
    return Mixture(one, one.new_full((1, LATENTS), mean), sigma * torch.eye(LATENTS).double()[None])


def posteriors(images: int, latents: int = LATENTS, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Two clusters of images, as an encoder may lay them: (N, Z) means and log variances."""
    random = np.random.default_rng(seed)
    side = np.where(np.arange(images) % 2, 3.0, -3.0)[:, None]
    mu = side + 0.5 * random.standard_normal((images, latents))
    return mu.astype(np.float32), np.full((images, latents), -2.0, np.float32)


def test_log_prob_is_scipys() -> None:
    prior = some_mixture()
    z = 3 * np.random.default_rng(2).standard_normal((50, LATENTS))
    parts = zip(prior.weights.numpy(), prior.means.numpy(), prior.scales.numpy(), strict=True)
    densities = [multivariate_normal(m, s @ s.T).logpdf(z) + np.log(weight) for weight, m, s in parts]
    got = prior.log_prob(torch.from_numpy(z).reshape(5, 10, LATENTS))
    assert got.shape == (5, 10)
    np.testing.assert_allclose(got.flatten(), logsumexp(densities, axis=0), rtol=1e-10)


def test_samples_have_the_moments_and_the_covariances() -> None:
    prior = some_mixture()
    z = prior.sample(200_000, torch.Generator().manual_seed(3))
    assert z.shape == (200_000, LATENTS) and z.dtype == torch.float32
    mean = (prior.weights @ prior.means).numpy()
    np.testing.assert_allclose(z.mean(0), mean, atol=0.03)
    second = sum(
        weight * (scale @ scale.T + torch.outer(m, m))
        for weight, m, scale in zip(prior.weights, prior.means, prior.scales, strict=True)
    )
    assert isinstance(second, torch.Tensor)
    np.testing.assert_allclose(np.cov(z.T), second.numpy() - np.outer(mean, mean), atol=0.1)
    assert torch.equal(z, prior.sample(200_000, torch.Generator().manual_seed(3)))


def test_the_gap_falls_by_what_the_rate_falls_by() -> None:
    """q(z) = N(2, 1) of each latent, and a prior that is just that: the whole of KL(q(z) ‖ N(0, I)) goes."""
    random = np.random.default_rng(7)
    mu = (2 + np.sqrt(0.5) * random.normal(size=(40_000, LATENTS))).astype(np.float32)
    logvar = np.full_like(mu, np.log(0.5))
    closed = LATENTS * 0.5 * 2.0**2
    just, standard, worse = (mixture_prior.gap(closed, mu, logvar, gaussian(mean), seed=0) for mean in (2.0, 0.0, -2.0))
    assert just == pytest.approx(0, abs=0.05)
    assert standard == pytest.approx(closed, rel=1e-9)
    assert worse == pytest.approx(LATENTS * 0.5 * 4.0**2, rel=0.02)


def test_the_rate_against_a_standard_normal_is_the_kl() -> None:
    random = np.random.default_rng(6)
    mu, logvar = random.normal(size=(40_000, LATENTS)), random.uniform(-3, 0.5, (40_000, LATENTS))
    closed = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(1).mean()
    found, without_mixture, reseeded = (
        mixture_prior.rate(mu, logvar, prior, seed) for prior, seed in ((gaussian(), 0), (None, 0), (gaussian(), 1))
    )
    assert found == pytest.approx(closed, rel=0.01) and found == pytest.approx(without_mixture, rel=1e-12)
    assert reseeded != found


def test_a_fit_is_nearer_to_the_latents_than_the_prior_was() -> None:
    mu, logvar = posteriors(400)
    prior = mixture_prior.fit(mu, logvar, seed=0)
    assert prior.weights.shape == (10,) and float(prior.weights.sum()) == pytest.approx(1)
    assert mixture_prior.rate(mu, logvar, prior, seed=0) < mixture_prior.rate(mu, logvar, None, seed=0) - 5
    held_out = posteriors(400, seed=9)
    assert mixture_prior.rate(*held_out, prior, seed=0) < mixture_prior.rate(*held_out, None, seed=0) - 5


def test_a_fit_repeats_to_the_bit_and_follows_the_seed() -> None:
    mu, logvar = posteriors(300)
    one, other, third = (mixture_prior.fit(mu, logvar, seed) for seed in (0, 0, 1))
    for name, tensor in one.tensors().items():
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, other.tensors()[name]), name
    assert not torch.equal(one.means, third.means)


@pytest.mark.parametrize(("images", "components"), [(10, 1), (29, 1), (60, 2), (5000, 10)])
def test_few_images_get_few_components(images: int, components: int) -> None:
    assert mixture_prior.fit(*posteriors(images), seed=0).weights.shape == (components,)


def test_a_prior_over_more_latents_than_images_is_no_worse_than_none() -> None:
    """Full covariances of 200 images in 64 latents would give a rate of 287,000 nats on other images."""
    random = np.random.default_rng(8)
    mu = (3 * random.normal(size=(400, 64))).astype(np.float32)
    logvar = np.full_like(mu, -3.0)
    prior = mixture_prior.fit(mu[:200], logvar[:200], seed=0)
    fitted, standard = (mixture_prior.rate(mu[200:], logvar[200:], p, seed=0) for p in (prior, None))
    assert fitted < standard


def test_no_component_shrinks_onto_an_image() -> None:
    mu = np.repeat(posteriors(4)[0], 20, axis=0)
    prior = mixture_prior.fit(mu, np.full(mu.shape, -60.0, np.float32), seed=0)
    assert float((prior.scales.diagonal(dim1=1, dim2=2) ** 2).min()) >= 0.99 * mixture_prior.SMALLEST_VARIANCE
    assert np.isfinite(mixture_prior.rate(mu, np.full(mu.shape, -2.0), prior, seed=0))
