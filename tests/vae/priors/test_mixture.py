"""Mixtures along the principal axes against scipy's densities, and against their own samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.priors import axes_of, gaussian, two_clusters
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from vae.priors import mixture
from vae.priors.aggregate import draw
from vae.priors.mixture import Mixture, PrincipalAxes

LATENTS, MODELLED = 4, 2


def some_mixture(components: int = 3, seed: int = 0) -> Mixture:
    """Over four latents, of which two directions are of the mixture and two Gaussian."""
    random = np.random.default_rng(seed)
    weights = random.uniform(0.5, 1.5, components)
    factors = np.tril(random.normal(size=(components, MODELLED, MODELLED)))
    factors[:, np.arange(MODELLED), np.arange(MODELLED)] = random.uniform(0.3, 1.2, (components, MODELLED))
    mean, basis = random.normal(size=LATENTS), random.normal(size=(LATENTS, LATENTS))
    means = 2 * random.normal(size=(components, MODELLED))
    return Mixture(*(torch.from_numpy(a) for a in (mean, basis, weights / weights.sum(), means, factors)))


def components_of(prior: Mixture) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Weight, mean and covariance of each, in z: what is a Gaussian along the axes is one in z."""
    mean, basis = prior.mean.numpy(), prior.basis.numpy()
    found = []
    for weight, center, scale in zip(prior.weights, prior.means.numpy(), prior.scales.numpy(), strict=True):
        w, covariance = np.zeros(LATENTS), np.eye(LATENTS)
        w[:MODELLED], covariance[:MODELLED, :MODELLED] = center, scale @ scale.T
        found.append((float(weight), mean + basis @ w, basis @ covariance @ basis.T))
    return found


def test_log_prob_is_scipys() -> None:
    prior = some_mixture()
    z = 3 * np.random.default_rng(2).standard_normal((50, LATENTS))
    densities = [np.log(weight) + multivariate_normal(m, c).logpdf(z) for weight, m, c in components_of(prior)]
    got = prior.log_prob(torch.from_numpy(z).reshape(5, 10, LATENTS))
    assert got.shape == (5, 10) and got.dtype == torch.float64
    np.testing.assert_allclose(got.flatten(), logsumexp(densities, axis=0), rtol=1e-9)


def test_samples_have_the_moments_of_the_density() -> None:
    prior = some_mixture()
    z = prior.sample(200_000, torch.Generator().manual_seed(3))
    assert z.shape == (200_000, LATENTS) and z.dtype == torch.float32
    parts = components_of(prior)
    mean = sum(weight * m for weight, m, _ in parts)
    second = sum(weight * (c + np.outer(m, m)) for weight, m, c in parts)
    np.testing.assert_allclose(z.mean(0), mean, atol=0.05)
    covariance = second - np.outer(mean, mean)
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.02 * np.trace(covariance))
    assert torch.equal(z, prior.sample(200_000, torch.Generator().manual_seed(3)))
    assert not torch.equal(z[:9], prior.sample(9, torch.Generator().manual_seed(4)))


def test_along_the_axes_the_latents_have_mean_0_and_covariance_i() -> None:
    """Of samples of q(z), whose covariance has the posteriors' own part: far apart in scale, and correlated."""
    random = np.random.default_rng(5)
    mu = (random.normal(size=(20_000, 3)) @ random.normal(size=(3, 3)) * [1, 5, 0.1] + [4, -9, 1]).astype(np.float32)
    logvar = np.log(np.array([0.5, 9.0, 0.02], np.float32)) + np.zeros_like(mu)
    axes = axes_of(mu, logvar)
    z = draw(mu, logvar, seed=0)
    w = axes.coordinates(z)
    np.testing.assert_allclose(w.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(w.T), np.eye(3), atol=0.04)
    np.testing.assert_allclose(axes.mean + w @ axes.basis.T, z, atol=1e-9)
    lengths = np.linalg.norm(axes.basis, axis=0)
    assert (np.diff(lengths) < 0).all(), "the first axis has the largest variance"


def test_the_gaussian_has_the_moments_of_the_latents() -> None:
    mu, logvar = two_clusters(500, LATENTS)
    prior = mixture.fit_gaussian(axes_of(mu, logvar))
    np.testing.assert_allclose(prior.mean, mu.mean(0), atol=1e-6)
    covariance = np.cov(mu.T, bias=True) + np.exp(-2) * np.eye(LATENTS)
    np.testing.assert_allclose(prior.basis @ prior.basis.T, covariance, atol=1e-5)
    z = draw(mu, logvar, seed=0)
    np.testing.assert_allclose(
        prior.log_prob(torch.from_numpy(z)), multivariate_normal(mu.mean(0), covariance).logpdf(z), rtol=1e-4
    )


def test_a_fit_finds_the_clusters_and_repeats_to_the_bit() -> None:
    mu, logvar = two_clusters(400, LATENTS)
    axes = axes_of(mu, logvar)
    w = axes.coordinates(draw(mu, logvar, seed=0))[:, :MODELLED]
    one, other = (mixture.fit(axes, w, 2, 0.05, seed=0) for _ in range(2))
    for name, tensor in one.tensors().items():
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, other.tensors()[name]), name
    assert one.is_valid(LATENTS)
    np.testing.assert_allclose(one.weights, [0.5, 0.5], atol=0.01)
    centers = sorted(float(z.mean()) for _, z, _ in components_of(one))
    np.testing.assert_allclose(centers, [-3, 3], atol=0.1)


def test_no_component_shrinks_onto_an_image() -> None:
    """Four images, twenty times each: the smallest variance along the axes is that of the smoothing."""
    mu = np.repeat(two_clusters(4)[0], 20, axis=0)
    axes = axes_of(mu, np.full(mu.shape, -9.0, np.float32))
    prior = mixture.fit(axes, axes.coordinates(mu.astype(np.float64)), 4, 0.05, seed=0)
    variances = np.linalg.eigvalsh((prior.scales @ prior.scales.mT).numpy())
    assert variances.min() == pytest.approx(0.05, rel=0.01)


def test_a_density_is_valid_over_its_latents_alone() -> None:
    prior = some_mixture()
    assert prior.is_valid(LATENTS) and gaussian(1).is_valid(1)
    assert not prior.is_valid(LATENTS + 1) and not prior.is_valid(LATENTS - 1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mean", torch.zeros(LATENTS + 1)),
        ("mean", torch.full((LATENTS,), torch.nan)),
        ("basis", torch.eye(LATENTS)[:, :3]),
        ("basis", torch.ones(LATENTS, LATENTS)),  # singular
        ("basis", torch.full((LATENTS, LATENTS), torch.inf)),
        ("weights", torch.tensor([0.5, 0.6, -0.1])),
        ("weights", torch.tensor([0.5, 0.6, 0.1])),
        ("weights", torch.ones(1)),
        ("means", torch.zeros(3, LATENTS + 1)),
        ("means", torch.zeros(3, 0)),
        ("means", torch.zeros(3)),
        ("scales", torch.zeros(3, MODELLED, MODELLED)),
        ("scales", -torch.eye(MODELLED).expand(3, -1, -1)),
        ("scales", torch.tensor([[1.0, 0.5], [0.0, 1.0]]).expand(3, -1, -1)),  # upper triangular
        ("scales", torch.eye(MODELLED)),
    ],
)
def test_what_is_no_density_is_not_valid(name: str, wrong: torch.Tensor) -> None:
    assert not replace(some_mixture(), **{name: wrong.double()}).is_valid(LATENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_tensors_of_another_type_are_not_valid(dtype: torch.dtype) -> None:
    prior = gaussian(1)
    assert not replace(prior, means=prior.means.to(dtype)).is_valid(1)


def test_axes_of_one_latent() -> None:
    axes = PrincipalAxes.of(np.array([[1.0], [3.0]]), np.log([[3.0], [3.0]]))
    np.testing.assert_allclose(np.abs(axes.basis), [[2.0]])
    np.testing.assert_allclose(axes.mean, [2.0])
