"""Samples of each prior beside the test images: which pictures are compared, and what their numbers say."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.by_hand import SIDE
from helpers.far import Far, images
from helpers.models import config, network
from helpers.priors import axes_of
from helpers.trainings import CPU

from vae.config.sections import Model
from vae.evaluation import sample_metrics as module
from vae.evaluation.sample_metrics import sample_metrics
from vae.metrics.measurement import encode
from vae.models.saved import Saved
from vae.priors.aggregate import kl_to_prior
from vae.priors.mixture import fit_gaussian
from vae.priors.standard import Prior, StandardNormal
from vae.samples.quality import MEASURES

KINDS = ("training", "reconstructions", "standard_prior", "fitted_prior")


def saved_with(model: Any, prior: Prior) -> Saved:
    made = config((1, SIDE, SIDE), Model(architecture="mlp", latent_dim=2, widths=[4]))
    return Saved(model, made, prior, "0" * 64)


def fitted_to(train: np.ndarray) -> Prior:
    return fit_gaussian(axes_of(*encode(Far(), train, CPU)))  # type: ignore[arg-type]  # written by hand


TRAIN, TEST = images(300, 0), images(200, 1)


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return sample_metrics(saved_with(Far(), fitted_to(TRAIN)), TRAIN, TEST, CPU, seed=0)


def test_every_kind_has_every_measure_with_its_interval(metrics: dict[str, Any]) -> None:
    for kind in KINDS:
        for measure in MEASURES:
            low, value, high = (metrics[f"{kind}_{measure}{end}"] for end in ("_low", "", "_high"))
            assert 0 <= low <= value <= high, (kind, measure)


def test_samples_of_n_0_i_are_poor_and_those_of_the_fitted_prior_nearly_what_training_images_reach(
    metrics: dict[str, Any],
) -> None:
    assert metrics["standard_prior_precision"] == 0 and metrics["fitted_prior_precision"] > 0.6
    assert metrics["fitted_prior_frechet"] < 0.01 * metrics["standard_prior_frechet"]
    assert metrics["training_coverage"] > 0.8
    # Training images are neighbours of test images as much as their reconstructions are, which are nearly exact here.
    assert metrics["reconstructions_coverage"] == pytest.approx(metrics["training_coverage"], abs=0.1)


def test_the_latents_are_compared_too(metrics: dict[str, Any]) -> None:
    assert metrics["standard_prior_two_sample"] > 0.98 and metrics["standard_prior_two_sample_p"] < 1e-10
    assert metrics["fitted_prior_two_sample"] < 0.8
    bound = kl_to_prior(*encode(Far(), TEST, CPU), StandardNormal(2), fitted_to(TRAIN), 0)  # type: ignore[arg-type]
    assert metrics["aggregate_kl_bound"] == bound.value
    assert metrics["aggregate_kl_bound_se"] == bound.standard_error


def test_with_n_0_i_as_the_fitted_prior_both_are_the_same() -> None:
    found = sample_metrics(saved_with(Far(), StandardNormal(2)), TRAIN, TEST, CPU, seed=0)
    for name, value in found.items():
        if name.startswith("fitted_prior"):
            assert value == found[name.replace("fitted", "standard")], name
    assert found["aggregate_kl_bound"] == 0


def test_as_many_of_each_and_the_same_at_every_call(metrics: dict[str, Any]) -> None:
    model = Far()
    assert sample_metrics(saved_with(model, fitted_to(TRAIN)), TRAIN, TEST, CPU, seed=0) == metrics
    assert model.asked == [len(TEST)] * 3
    assert sample_metrics(saved_with(model, fitted_to(TRAIN)), TRAIN, TEST, CPU, seed=1) != metrics


def test_an_autoregressive_decoder_draws_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "DRAWN_PIXEL_BY_PIXEL", 12)
    real = module.decoded
    monkeypatch.setattr(module, "decoded", lambda m, li, z, c: asked.append(len(z)) or real(m, li, z, c))
    made = config((1, 8, 8), Model(architecture="autoregressive", latent_dim=3, widths=[4]))
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    saved = Saved(network(made).eval(), made, StandardNormal(3), "0" * 64)
    assert sample_metrics(saved, noise, noise, CPU, 0)["training_precision"] is not None
    assert asked == [12] * 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_test_images_have_no_numbers(count: int) -> None:
    found = sample_metrics(saved_with(Far(), fitted_to(TRAIN)), TRAIN, TEST[:count], CPU, seed=0)
    assert {found[f"{kind}_{measure}"] for kind in KINDS for measure in MEASURES} == {None}
    assert found["fitted_prior_two_sample"] is None and found["aggregate_kl_bound"] is not None


def test_a_model_without_numbers_has_none() -> None:
    made = config((1, SIDE, SIDE), Model(architecture="mlp", latent_dim=2, widths=[4], batch_norm=False))
    broken = network(made).eval()
    with torch.no_grad():
        broken.posterior.bias.fill_(torch.nan)
    assert sample_metrics(Saved(broken, made, StandardNormal(2), "0" * 64), TRAIN, TEST, CPU, 0) == {}
