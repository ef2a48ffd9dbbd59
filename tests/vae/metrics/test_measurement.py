"""Diagnostics of models whose posterior and decoder are written down, so that every number is known by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers.by_hand import NOISE, PIXELS, SIDE, ByHand, pictures
from helpers.trainings import CPU
from scipy import stats
from torch import distributions

from vae.config.constants import SMALLEST_SIGMA
from vae.metrics import measurement
from vae.metrics.measurement import encode, fitted_sigma, measure
from vae.metrics.moments import chunk_size
from vae.models.likelihood import Likelihood
from vae.samples.quality import most_images


def test_rate_units_and_prior_gap_by_hand() -> None:
    # Latents: informative and active; dead; alive by its variance only, the mean fixed at 0; hardly moving.
    model = ByHand([2.0, 0.0, 0.0, 0.1], [0.25, 1.0, 0.5, 1.0])
    images = pictures()
    images[:, 0, 3, 0] = images[:, 0, 0, 0]
    got = measure(model, images, NOISE, CPU, seed=0)
    half = 0.5  # of the images have μ = 2, of latent 3 μ = 0.1
    kl = [0.5 * (half * 4 + 0.25 - 1 - math.log(0.25)), 0, 0.5 * (0.5 - 1 - math.log(0.5)), 0.5 * half * 0.01]
    assert got.images == 60
    np.testing.assert_allclose(got.kl_per_latent, kl, atol=1e-6)
    assert got.rate == pytest.approx(sum(kl), abs=1e-6)
    np.testing.assert_allclose(got.mean_variance, [1.0, 0, 0, 0.0025], atol=1e-6)
    np.testing.assert_allclose(got.aggregate_mean, [1.0, 0, 0, 0.05], atol=1e-6)
    np.testing.assert_allclose(got.aggregate_variance, [1.25, 1.0, 0.5, 1.0025], atol=1e-6)
    np.testing.assert_allclose(got.posterior_share, [0.25 / 1.25, 1, 1, 1 / 1.0025], atol=1e-6)
    assert got.active_units() == 1 and got.active_units(0.001) == 2 and got.active_units(1.1) == 0
    assert got.informative_units() == 1 and got.informative_units(0.09) == 2
    gap = 0.5 * ((1.25 + 1 - 1 - math.log(1.25)) + (0.5 - 1 - math.log(0.5)) + (1.0025 + 0.0025 - 1 - math.log(1.0025)))
    assert got.prior_gap == pytest.approx(gap, abs=1e-6)


@pytest.mark.parametrize("latents", [1, 2, 7])
def test_the_whole_prior_gap_is_the_kl_of_two_gaussians(latents: int) -> None:
    random = np.random.default_rng(latents)
    variances = random.uniform(0.01, 0.5, latents)
    model, images = ByHand(random.normal(0, 2, latents).tolist(), variances.tolist()), pictures(600)
    images[:, 0, 1] = images[:, 0, 0] // 2 + 20  # two latents that depend on one another
    got = measure(model, images, NOISE, CPU, seed=0)
    mu, _ = encode(model, images, CPU)
    covariance = np.cov(mu.T.astype(np.float64), bias=True).reshape(latents, latents) + np.diag(variances)
    np.testing.assert_allclose(got.aggregate_covariance, covariance, atol=1e-6)
    q = distributions.MultivariateNormal(torch.tensor(mu.mean(0)).double(), torch.tensor(covariance))
    p = distributions.MultivariateNormal(torch.zeros(latents).double(), torch.eye(latents).double())
    assert got.prior_gap_full == pytest.approx(float(distributions.kl_divergence(q, p)), rel=1e-5)
    # the rest is the total correlation, Σ_j H(z_j) − H(z): none for a single latent
    entropies = stats.norm(0, np.sqrt(np.diag(covariance))).entropy().sum()
    correlation = entropies - stats.multivariate_normal(cov=covariance).entropy()
    assert got.prior_gap_full - got.prior_gap == pytest.approx(correlation, abs=1e-5)
    assert (latents > 1) == (correlation > 0.05)


def test_of_a_map_numbers_are_of_channels() -> None:
    """Two channels of two places each: latents 0 and 1, 2 and 3."""
    model, flat = (ByHand([2.0, 1.0, 0.0, -1.0], [0.25, 1.0, 0.5, 0.1]) for _ in range(2))
    model.latent_map = (2, 1, 2)
    images = pictures()
    got, by_latent = measure(model, images, NOISE, CPU, seed=0), measure(flat, images, NOISE, CPU, seed=0)
    assert got.rate == by_latent.rate and got.distortion == by_latent.distortion and got.places == 2
    np.testing.assert_allclose(got.kl_per_latent, by_latent.kl_per_latent.reshape(2, 2).sum(1))
    np.testing.assert_allclose(got.mean_variance, by_latent.mean_variance.reshape(2, 2).mean(1))
    mu, logvar = encode(model, images, CPU)
    places = mu.reshape(60, 2, 2).transpose(0, 2, 1).reshape(120, 2).astype(np.float64)
    noise = np.exp(logvar[0]).reshape(2, 2).mean(1)
    np.testing.assert_allclose(got.aggregate_mean, places.mean(0), atol=1e-6)
    np.testing.assert_allclose(got.aggregate_covariance, np.cov(places.T, bias=True) + np.diag(noise), atol=1e-6)
    np.testing.assert_allclose(got.aggregate_variance, np.diag(got.aggregate_covariance), atol=1e-6)
    m, s2 = got.aggregate_mean, got.aggregate_variance
    assert got.prior_gap == pytest.approx((s2 + m**2 - 1 - np.log(s2)).sum())
    assert got.prior_gap_full >= got.prior_gap


def test_a_channel_that_differs_between_places_alone_is_not_active() -> None:
    model = ByHand([0.0, 0.0], [1.0, 1.0])
    model.latent_map = (1, 1, 2)
    model.encode = lambda x: (torch.tensor([[1.0, -1.0]]).repeat(len(x), 1), torch.zeros(len(x), 2))  # type: ignore
    got = measure(model, pictures(), NOISE, CPU, seed=0)
    assert got.aggregate_variance == pytest.approx([2.0]) and got.active_units() == 0


def test_distortion_by_hand() -> None:
    images = pictures()
    errors = ((images / 255 - 0.5) ** 2).sum((1, 2, 3))
    got = measure(ByHand([1.0], [0.5]), images, NOISE, CPU, seed=0)
    expected = PIXELS / 2 * math.log(2 * math.pi * 0.04) + errors.mean() / 0.08
    assert got.distortion == pytest.approx(expected, rel=1e-6)
    assert got.mse == got.mse_sampled == pytest.approx(errors.mean() / PIXELS, rel=1e-6)
    assert got.elbo == pytest.approx(-expected - got.rate, rel=1e-6)


def test_bernoulli_distortion_by_hand() -> None:
    images = (pictures() > 127).astype(np.uint8) * 255
    logit = math.log(0.3 / 0.7)
    model = ByHand([1.0], [0.5], lambda z: torch.full((len(z),), logit))
    got = measure(model, images, Likelihood("bernoulli"), CPU, seed=0)
    white = (images == 255).mean()
    expected = -PIXELS * (white * math.log(0.3) + (1 - white) * math.log(0.7))
    assert got.distortion == pytest.approx(expected, rel=1e-5)
    assert got.mse == pytest.approx(white * 0.7**2 + (1 - white) * 0.3**2, rel=1e-5)


def test_sampled_z_adds_its_variance_to_the_error() -> None:
    model = ByHand([1.0], [0.09], lambda z: z[:, 0])
    got = measure(model, pictures(6000), NOISE, CPU, seed=0)
    assert got.mse_sampled - got.mse == pytest.approx(0.09, rel=0.06)


def test_more_draws_give_the_same_elbo_with_less_noise() -> None:
    """x = z: an image's error exceeds that of z = μ by PIXELS·σ², so the expected ELBO is known."""
    model, images, variance = ByHand([1.0], [0.09], lambda z: z[:, 0]), pictures(), 0.09

    def elbos(draws: int) -> np.ndarray:
        return np.array([measure(model, images, NOISE, CPU, seed, draws).elbo for seed in range(40)])

    central = measure(model, images, NOISE, CPU, seed=0)
    error = PIXELS * (central.mse + variance)
    expected = -PIXELS / 2 * math.log(2 * math.pi * 0.04) - error / 0.08 - central.rate
    one, many = elbos(1), elbos(16)
    assert abs(many.mean() - expected) < 4 * many.std() / math.sqrt(40)
    assert one.std() / many.std() == pytest.approx(4, rel=0.4)
    assert one[0] == central.elbo


def test_the_standard_error_is_that_of_a_mean_of_images() -> None:
    images = pictures()
    constant = measure(ByHand([1.0], [0.5]), images, NOISE, CPU, seed=0)  # no noise reaches the picture
    x = images.reshape(60, -1) / 255
    kl = 0.5 * (x[:, 0] ** 2 + 0.5 - 1 - math.log(0.5))
    expected = stats.sem(-((x - 0.5) ** 2).sum(1) / 0.08 - kl)
    assert constant.elbo_se == pytest.approx(expected, rel=1e-5)
    alone = measure(ByHand([1.0], [0.5]), images[:1], NOISE, CPU, seed=0)
    assert math.isnan(alone.elbo_se)
    same = np.repeat(images[1:2], 400, 0)  # of equal images the noise of the draws is left, and it is covered
    model = ByHand([1.0], [0.09], lambda z: z[:, 0])
    repeats = [measure(model, same, NOISE, CPU, seed, 4) for seed in range(60)]
    assert np.mean([found.elbo_se for found in repeats]) == pytest.approx(np.std([m.elbo for m in repeats]), rel=0.3)


@pytest.mark.parametrize("batch", [1, 7, 60, 1000])
def test_the_batch_size_changes_nothing_but_the_noise(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    model, images = ByHand([2.0, -1.0], [0.3, 0.8]), pictures()
    whole = measure(model, images, NOISE, CPU, seed=0)
    sigma = fitted_sigma(model, images, CPU, 0)
    monkeypatch.setattr(measurement, "BATCH", batch)
    parts = measure(model, torch.from_numpy(images), NOISE, CPU, seed=0)
    for name, value in dataclasses.asdict(whole).items():
        np.testing.assert_allclose(getattr(parts, name), value, rtol=1e-6, err_msg=name)
    assert fitted_sigma(model, images, CPU, 0) == pytest.approx(sigma)


def test_a_measurement_repeats_to_the_bit_and_follows_its_seed() -> None:
    model = ByHand([1.0], [0.5], lambda z: z[:, 0])
    distortions = [measure(model, pictures(), NOISE, CPU, seed).distortion for seed in (0, 0, 1)]
    assert distortions[0] == distortions[1] != distortions[2]


def test_a_model_in_training_is_measured_in_evaluation_mode_and_given_back() -> None:
    model = ByHand([1.0], [0.5]).train()
    measure(model, pictures(), NOISE, CPU, seed=0)
    assert model.training


def test_fitted_sigma_is_the_root_of_the_sampled_error() -> None:
    images = pictures()
    expected = math.sqrt(((images / 255 - 0.5) ** 2).mean())
    assert fitted_sigma(ByHand([1.0], [0.5]), images, CPU, 0) == pytest.approx(expected, rel=1e-6)
    noisy = ByHand([1.0], [0.09], lambda z: z[:, 0])
    central = measure(noisy, pictures(6000), NOISE, CPU, 0).mse
    assert fitted_sigma(noisy, pictures(6000), CPU, 0) ** 2 == pytest.approx(central + 0.09, rel=0.03)
    grey = np.full((5, SIDE, SIDE, 1), 51, np.uint8)
    exact = ByHand([1.0], [0.5], lambda z: torch.full((len(z),), 0.2))
    assert fitted_sigma(exact, grey, CPU, 0) == SMALLEST_SIGMA


def test_another_sigma_from_the_same_pass() -> None:
    model, images = ByHand([1.0], [0.5], lambda z: z[:, 0]), pictures()
    here, there = (measure(model, images, Likelihood("gaussian", sigma), CPU, 0) for sigma in (0.2, 0.7))
    assert here.with_likelihood(Likelihood("gaussian", 0.7), PIXELS) == pytest.approx(there.elbo, rel=1e-6)
    assert here.with_likelihood(NOISE, PIXELS) == pytest.approx(here.elbo, rel=1e-6)


@pytest.mark.parametrize(
    ("side", "at_a_time", "compared", "in_moments"),
    [(8, 256, 5000, 1024), (128, 256, 5000, 1024), (256, 64, 1250, 256), (512, 16, 312, 64)],
)
def test_of_large_images_fewer_are_in_memory(side: int, at_a_time: int, compared: int, in_moments: int) -> None:
    assert measurement.batch_size(side, side) == at_a_time and most_images(side, side) == compared
    assert chunk_size(side * side * 3) == in_moments
