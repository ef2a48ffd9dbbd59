"""Diagnostics of models whose posterior and decoder are written down, so that every number is known by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, distributions, nn

from vae.compute.devices import Compute
from vae.config.constants import SMALLEST_SIGMA
from vae.inference.generate import reconstruct
from vae.inference.scoring import elbo_per_image
from vae.metrics import mean_image as baseline
from vae.metrics import measurement
from vae.metrics.measurement import Measurement, encode, fitted_sigma, measure
from vae.metrics.mutual_information import mutual_information
from vae.models.likelihood import Likelihood, gaussian_log_prob

CPU = Compute(torch.device("cpu"), "fp32")
SIDE = 4
PIXELS = SIDE * SIDE
NOISE = Likelihood("gaussian", 0.2)


class ByHand(nn.Module):
    """μ_j is a multiple of the j-th pixel, σ² is given; the decoder answers with `decoder(z)` everywhere."""

    def __init__(
        self,
        slopes: list[float],
        variances: list[float],
        decoder: Callable[[Tensor], Tensor] = lambda z: torch.full((len(z),), 0.5),
    ) -> None:
        super().__init__()
        self.latent_dim = len(slopes)
        self.slopes, self.logvar = torch.tensor(slopes), torch.tensor(variances).log()
        self.decoder = decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert not self.training
        mu = x.flatten(1)[:, : self.latent_dim] * self.slopes
        return mu, self.logvar.expand_as(mu)

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        return self.decoder(z).reshape(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * noise), mu, logvar


def pictures(count: int = 60) -> np.ndarray:
    """The first pixel is black and white by turns; the rest is random."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8)
    images[0::2, 0, 0], images[1::2, 0, 0] = 0, 255
    return images


def test_rate_units_and_prior_gap_by_hand() -> None:
    # Latents: informative and active; dead; alive by its variance only, the mean fixed at 0; hardly moving.
    model = ByHand([2.0, 0.0, 0.0, 0.1], [0.25, 1.0, 0.5, 1.0])
    images = pictures()
    images[:, 0, 3, 0] = images[:, 0, 0, 0]
    got = measure(model, images, NOISE, CPU, seed=0)
    half = 0.5  # of the images have μ = 2, of latent 3 μ = 0.1
    kl = [
        0.5 * (half * 4 + 0.25 - 1 - math.log(0.25)),
        0.0,
        0.5 * (0.5 - 1 - math.log(0.5)),
        0.5 * half * 0.01,
    ]
    assert got.images == 60
    np.testing.assert_allclose(got.kl_per_latent, kl, atol=1e-6)
    assert got.rate == pytest.approx(sum(kl), abs=1e-6)
    np.testing.assert_allclose(got.mean_variance, [1.0, 0, 0, 0.0025], atol=1e-6)
    np.testing.assert_allclose(got.aggregate_mean, [1.0, 0, 0, 0.05], atol=1e-6)
    np.testing.assert_allclose(got.aggregate_variance, [1.25, 1.0, 0.5, 1.0025], atol=1e-6)
    np.testing.assert_allclose(got.posterior_share, [0.25 / 1.25, 1, 1, 1 / 1.0025], atol=1e-6)
    assert got.active_units() == 1 and got.active_units(0.001) == 2 and got.active_units(1.1) == 0
    assert got.informative_units() == 1 and got.informative_units(0.09) == 2
    gap = 0.5 * (
        (1.25 + 1 - 1 - math.log(1.25)) + (0.5 - 1 - math.log(0.5)) + (1.0025 + 0.0025 - 1 - math.log(1.0025))
    )
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


def test_the_posterior_share_is_what_of_z_the_image_does_not_tell() -> None:
    """1 − R² of the least-squares prediction of a sampled z by the posterior's mean."""
    model, images = ByHand([0.0, 0.3, 1.0, 6.0], [0.7, 0.2, 0.2, 0.01]), pictures(20_000)
    got = measure(model, images, NOISE, CPU, seed=0)
    mu, logvar = encode(model, images, CPU)
    z = mu + np.exp(0.5 * logvar) * np.random.default_rng(3).standard_normal(mu.shape)
    told = [0, *(stats.pearsonr(mu[:, j], z[:, j]).statistic ** 2 for j in (1, 2, 3))]
    np.testing.assert_allclose(got.posterior_share, 1 - np.array(told), atol=0.01)
    assert got.posterior_share[0] == pytest.approx(1) and got.posterior_share[3] < 0.01


def test_the_whole_prior_gap_sees_a_correlation_that_the_diagonal_one_does_not() -> None:
    zeros, correlated = np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]])
    m = Measurement(1, 0.0, 0.1, 0.1, zeros, zeros, zeros, zeros + 1, correlated)
    assert m.prior_gap == 0
    assert m.prior_gap_full == pytest.approx(-0.5 * math.log(1 - 0.8**2))


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


@pytest.mark.parametrize("batch", [1, 7, 60, 1000])
def test_the_batch_size_changes_nothing_but_the_noise(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    model, images = ByHand([2.0, -1.0], [0.3, 0.8]), pictures()
    whole = measure(model, images, NOISE, CPU, seed=0)
    sigma, scores = fitted_sigma(model, images, CPU, 0), elbo_per_image(model, images, NOISE, CPU)
    monkeypatch.setattr(measurement, "BATCH", batch)
    parts = measure(model, torch.from_numpy(images), NOISE, CPU, seed=0)
    assert parts.distortion == pytest.approx(whole.distortion, rel=1e-6)
    for name in (
        "kl_per_latent",
        "mean_variance",
        "aggregate_mean",
        "aggregate_variance",
        "aggregate_covariance",
    ):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-6)
    assert fitted_sigma(model, images, CPU, 0) == pytest.approx(sigma)
    np.testing.assert_allclose(elbo_per_image(model, images, NOISE, CPU), scores, rtol=1e-6)


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


def test_elbo_of_each_image_averages_to_that_of_the_split() -> None:
    model, images = ByHand([2.0, 1.0], [0.3, 0.8]), pictures()
    scores = elbo_per_image(model, images, NOISE, CPU, samples=3)
    whole = measure(model, images, NOISE, CPU, seed=0)
    assert scores.shape == (60,) and scores.dtype == np.float64
    assert scores.mean() == pytest.approx(-whole.distortion - whole.rate, rel=1e-6)
    mu, logvar = encode(model, images, CPU)
    kl = 0.5 * (mu[3] ** 2 + np.exp(logvar[3]) - 1 - logvar[3]).sum()
    error = torch.tensor(((images[3] / 255 - 0.5) ** 2).sum())
    assert scores[3] == pytest.approx(float(gaussian_log_prob(error, PIXELS, 0.04)) - kl, rel=1e-6)


def test_elbo_of_each_image_averages_over_noise() -> None:
    model, images = ByHand([1.0], [0.5], lambda z: z[:, 0]), pictures(2000)
    scores = elbo_per_image(model, images, NOISE, CPU, samples=16)
    mu = images[:, 0, 0, 0] / 255
    error = ((images / 255 - mu[:, None, None, None]) ** 2).sum((1, 2, 3)) + PIXELS * 0.5
    kl = 0.5 * (mu**2 + 0.5 - 1 - math.log(0.5))
    expected = -PIXELS / 2 * math.log(2 * math.pi * 0.04) - error / 0.08 - kl
    assert scores.mean() == pytest.approx(expected.mean(), rel=0.02)


def test_encode_and_reconstruct() -> None:
    images = pictures(5)
    model = ByHand([1.0, 3.0], [0.5, 0.1], lambda z: z[:, 0] * 2 - 0.5)
    mu, logvar = encode(model, images, CPU)
    np.testing.assert_allclose(mu, images[:, 0, :2, 0] / 255 * [1, 3], rtol=1e-6)
    np.testing.assert_allclose(logvar, np.log([[0.5, 0.1]] * 5), rtol=1e-6)
    decoded = reconstruct(model, images, NOISE, CPU)
    assert decoded.dtype == np.uint8 and decoded.shape == images.shape
    assert [int(picture[0, 0, 0]) for picture in decoded] == [0, 255, 0, 255, 0]  # −0.5 and 1.5, cut off
    grey = ByHand([0.0], [0.5], lambda z: torch.zeros(len(z)))
    assert (reconstruct(grey, images, Likelihood("bernoulli"), CPU) == 128).all()


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
    assert mutual_information(mu, np.zeros_like(mu), 0) == measurement.MutualInformation(
        None, None, pytest.approx(math.log(200))
    )
    # the limit itself: a rate of ln n − 2
    for excess, saturated in ((-0.01, False), (0.01, True)):
        same = np.full((200, 1), math.sqrt(2 * (math.log(200) - 2 + excess)))
        got = mutual_information(same, np.zeros_like(same), 0)
        assert (got.value is None) is saturated
        assert saturated or got.value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("variance", [0.5, 0.1])
def test_information_of_a_gaussian_channel(variance: float) -> None:
    random = np.random.default_rng(1)
    mu = random.normal(0, math.sqrt(1 - variance), (3000, 2))
    got = mutual_information(mu, np.full_like(mu, math.log(variance)), seed=0)
    expected = 2 * 0.5 * math.log(1 + (1 - variance) / variance)
    assert got.value == pytest.approx(expected, abs=0.06)
    assert got.aggregate_kl == pytest.approx(0, abs=0.06)


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
    monkeypatch.setattr(measurement, "MUTUAL_INFORMATION_IMAGES", 500)
    mu = np.random.default_rng(1).normal(0, 0.7, (3000, 1))
    got = [mutual_information(mu, np.full_like(mu, math.log(0.5)), seed).value for seed in (0, 0, 1)]
    assert got[0] == got[1] != got[2]
    saturated = mutual_information(mu * 100, np.zeros_like(mu), 0)
    assert saturated.saturated_at == pytest.approx(math.log(500))


def test_the_mean_image_by_hand() -> None:
    images = np.zeros((4, 1, 3, 1), np.uint8)
    images[:, 0, 0, 0] = (0, 255, 0, 255)  # mean 0.5, variance 0.25
    images[:, 0, 1, 0] = (0, 51, 102, 153)  # mean 0.3, variance 0.05
    images[:, 0, 2, 0] = 255  # mean 1, variance 0
    mse = (0.25 + 0.05 + 0) / 3
    own = baseline.MeanImage.of(images)
    assert own.mse(images) == pytest.approx(mse)
    mean, variance = baseline.pixel_moments(images)
    torch.testing.assert_close(mean.flatten(), torch.tensor([0.5, 0.3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(variance.flatten(), torch.tensor([0.25, 0.05, 0.0], dtype=torch.float64))
    sigma = math.sqrt(mse)
    pixels = images.reshape(4, 3) / 255
    expected = stats.norm([0.5, 0.3, 1.0], sigma).logpdf(pixels).sum(1).mean()
    assert own.elbo(images, "gaussian") == pytest.approx(expected)
    entropy = stats.bernoulli([0.5, 0.3]).entropy().sum()
    assert own.elbo(images, "bernoulli") == pytest.approx(-entropy, abs=1e-4)


def test_the_mean_image_of_the_training_split_judges_another() -> None:
    mean_image = baseline.MeanImage.of(np.array([[[[51]]], [[[153]]]], np.uint8))  # 0.2 and 0.6
    other = np.array([[[[0]]], [[[255]]]], np.uint8)
    mse = (0.4**2 + 0.6**2) / 2
    assert mean_image.mse(other) == pytest.approx(mse)
    expected = stats.norm(0.4, 0.2).logpdf([0.0, 1.0]).mean()
    assert mean_image.elbo(other, "gaussian") == pytest.approx(expected)


def test_the_mean_image_of_equal_images_has_the_smallest_sigma() -> None:
    images = np.full((3, 2, 2, 1), 100, np.uint8)
    expected = -4 / 2 * math.log(2 * math.pi * SMALLEST_SIGMA**2)
    own = baseline.MeanImage.of(images)
    assert own.elbo(images, "gaussian") == pytest.approx(expected)
    assert own.mse(images) == 0


def test_pixel_moments_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "CHUNK", 7)
    images = pictures()
    mean, variance = baseline.pixel_moments(images)
    np.testing.assert_allclose(mean, (images / 255).mean(0), atol=1e-12)
    np.testing.assert_allclose(variance, (images / 255).var(0), atol=1e-12)


def test_an_elbo_is_minus_distortion_minus_rate() -> None:
    zeros = np.zeros(2)
    m = Measurement(1, 7.0, 0.1, 0.2, np.array([1.0, 2.5]), zeros, zeros, zeros + 1, np.eye(2))
    assert (m.rate, m.elbo, m.prior_gap, m.prior_gap_full) == (3.5, -10.5, 0.0, 0.0)
