"""Scores: −ELBO that follows from the image alone, and percentiles of the validation split to hold them against."""

import math

import numpy as np
import pytest
import torch
from helpers.by_hand import NOISE, PIXELS, ByHand, pictures
from helpers.models import config, network
from helpers.trainings import CPU
from scipy import stats

from vae.config.sections import Model
from vae.inference import scoring
from vae.inference.scoring import elbo_per_image
from vae.metrics.measurement import BATCH, encode, measure
from vae.models.likelihood import gaussian_log_prob
from vae.models.saved import Saved, ValidationScores


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def saved_model(percentiles: list[float] | None = None) -> Saved:
    made = config(
        (1, 8, 8),
        Model(latent_dim=3, widths=[4, 8]),
        likelihood=NOISE,
        valid=ValidationScores(score_percentiles=percentiles),
    )
    return Saved(network(made).eval(), made, None, "0" * 64)


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


def test_a_score_follows_from_the_image_and_not_from_its_neighbours() -> None:
    model, some = saved_model(), images(BATCH + 20)
    together = scoring.scores(model, some, CPU)
    assert np.array_equal(scoring.scores(model, some, CPU), together)
    backwards = scoring.scores(model, some[::-1].copy(), CPU)[::-1]
    alone = np.concatenate([scoring.scores(model, some[i : i + 1], CPU) for i in (0, 1, BATCH, BATCH + 19)])
    np.testing.assert_allclose(backwards, together, rtol=1e-6)
    np.testing.assert_allclose(alone, together[[0, 1, BATCH, BATCH + 19]], rtol=1e-6)
    average = measure(model.model, some, NOISE, CPU, seed=0).elbo
    assert together.mean() == pytest.approx(-average, rel=0.01)


def test_kept_percentiles_give_thresholds_and_ranks() -> None:
    bare = saved_model()
    assert scoring.threshold(bare, 99) is None and np.isnan(scoring.ranks(bare, np.zeros(2))).all()

    valid = images(200)
    kept = scoring.percentiles(bare.model, valid, NOISE, CPU)
    found = scoring.scores(bare, valid, CPU)
    assert kept is not None and len(kept) == 101
    model = saved_model(kept)
    assert (scoring.threshold(model, 0), scoring.threshold(model, 100)) == (found.min(), found.max())
    for percent in (50.0, 97.0, 99.0):
        limit = scoring.threshold(model, percent)
        assert limit == pytest.approx(np.percentile(found, percent), rel=1e-12)
        assert scoring.ranks(model, np.array([limit]))[0] == pytest.approx(percent)
    assert scoring.threshold(model, 97.5) == pytest.approx((kept[97] + kept[98]) / 2)
    ranks = scoring.ranks(model, np.array([found.min() - 1, *found, found.max() + 1]))
    assert (ranks[0], ranks[-1]) == (0, 100)
    np.testing.assert_allclose(ranks[1:-1], 100 * (stats.rankdata(found) - 1) / 199, atol=1)


def test_of_many_validation_images_some_are_taken_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MOST_IMAGES", 10)
    model = saved_model()
    of_every_third = scoring.percentiles(model.model, images(28)[::3].copy(), NOISE, CPU)
    assert scoring.percentiles(model.model, images(28), NOISE, CPU) == of_every_third


def test_a_model_that_gives_no_numbers_keeps_none() -> None:
    model = saved_model()
    with torch.no_grad():
        model.model.posterior.bias.fill_(float("nan"))
    assert scoring.percentiles(model.model, images(5), NOISE, CPU) is None


def test_auroc_of_known_cases() -> None:
    low, high = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])
    assert (scoring.auroc(low, high), scoring.auroc(high, low), scoring.auroc(low, low)) == (1, 0, 0.5)
    assert scoring.auroc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == pytest.approx(2.5 / 4)
