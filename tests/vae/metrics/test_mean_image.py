import math

import numpy as np
import pytest
from scipy import stats

from vae.config.constants import SMALLEST_SIGMA
from vae.metrics import moments
from vae.metrics.mean_image import MeanImage
from vae.models.likelihood import GAUSSIAN, Likelihood


@pytest.mark.parametrize("chunk", [3, 1024])
def test_the_mean_image_by_hand(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(moments, "CHUNK", chunk)
    images = np.zeros((4, 1, 3, 1), np.uint8)
    images[:, 0, 0, 0] = (0, 255, 0, 255)  # mean 0.5, variance 0.25
    images[:, 0, 1, 0] = (0, 51, 102, 153)  # mean 0.3, variance 0.05
    images[:, 0, 2, 0] = 255  # mean 1, variance 0
    mse = (0.25 + 0.05 + 0) / 3
    own = MeanImage.of(images)
    assert own.mse(images) == pytest.approx(mse)
    np.testing.assert_allclose(own.mean.flatten(), [0.5, 0.3, 1.0])
    np.testing.assert_allclose(own.variance.flatten(), [0.25, 0.05, 0.0], atol=1e-15)
    sigma = math.sqrt(mse)
    pixels = images.reshape(4, 3) / 255
    expected = stats.norm([0.5, 0.3, 1.0], sigma).logpdf(pixels).sum(1).mean()
    assert own.elbo(images, GAUSSIAN) == pytest.approx(expected)
    entropy = stats.bernoulli([0.5, 0.3]).entropy().sum()
    assert own.elbo(images, Likelihood("bernoulli")) == pytest.approx(-entropy, abs=1e-4)


def test_the_mean_image_of_the_training_split_judges_another() -> None:
    mean_image = MeanImage.of(np.array([[[[51]]], [[[153]]]], np.uint8))  # 0.2 and 0.6
    other = np.array([[[[0]]], [[[255]]]], np.uint8)
    mse = (0.4**2 + 0.6**2) / 2
    assert mean_image.mse(other) == pytest.approx(mse)
    expected = stats.norm(0.4, 0.2).logpdf([0.0, 1.0]).mean()
    assert mean_image.elbo(other, GAUSSIAN) == pytest.approx(expected)


def test_the_mean_image_of_equal_images_has_the_smallest_sigma() -> None:
    images = np.full((3, 2, 2, 1), 100, np.uint8)
    expected = -4 / 2 * math.log(2 * math.pi * SMALLEST_SIGMA**2)
    own = MeanImage.of(images)
    assert own.elbo(images, GAUSSIAN) == pytest.approx(expected)
    assert own.mse(images) == 0


PIXELS = np.array([[[[0]], [[51]]], [[[255]], [[51]]], [[[0]], [[102]]], [[[255]], [[0]]]], np.uint8)  # (4, 2, 1, 1)
MEANS, VARIANCES = np.array([0.5, 0.2]), np.array([0.25, 0.02])


@pytest.mark.parametrize(
    ("likelihood", "sigmas"),
    [
        (Likelihood("gaussian"), np.sqrt(VARIANCES)),
        (Likelihood("discretised_gaussian", 0.3), np.sqrt(VARIANCES.mean())),
        (Likelihood("discretised_gaussian", (0.3,)), np.sqrt(VARIANCES.mean())),
        (Likelihood("discretised_gaussian"), np.sqrt(VARIANCES)),
        (Likelihood("discretised_logistic"), np.sqrt(VARIANCES)),
        (Likelihood("logistic_mixture", components=5), np.sqrt(VARIANCES)),
    ],
)
def test_the_mean_image_has_the_sigmas_that_the_likelihood_has(likelihood: Likelihood, sigmas: np.ndarray) -> None:
    x = PIXELS.reshape(4, 2) / 255
    scale = 1.0 if "gaussian" in likelihood.kind else math.sqrt(3) / math.pi
    density = (stats.norm if "gaussian" in likelihood.kind else stats.logistic)(MEANS, scale * sigmas)
    low = np.where(x == 0, -np.inf, x - 0.5 / 255)
    high = np.where(x == 1, np.inf, x + 0.5 / 255)
    by_level = np.log(density.cdf(high) - density.cdf(low))
    expected = (by_level if likelihood.is_discretised else density.logpdf(x)).sum(1).mean()
    assert MeanImage.of(PIXELS).elbo(PIXELS, likelihood) == pytest.approx(expected, abs=0.05)


def test_of_each_channel_it_has_the_sigma_of_that_channel() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    colours[..., 1] //= 4
    both = [MeanImage.of(colours).elbo(colours, Likelihood("discretised_logistic", s)) for s in (0.1, (0.1, 0.1, 0.1))]
    each = sum(
        MeanImage.of(part).elbo(part, Likelihood("discretised_logistic", 0.1)) for part in np.split(colours, 3, axis=3)
    )
    assert both[1] == pytest.approx(each, rel=1e-5) and both[1] > both[0] + 10
