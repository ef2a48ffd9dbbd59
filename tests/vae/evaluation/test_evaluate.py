"""The metrics of a split: how they agree with one another, and where there are none."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from helpers.models import config, network
from helpers.priors import axes_of
from helpers.trainings import CPU

from vae.config.parameters import Parameters
from vae.config.sections import Evaluate, Model
from vae.evaluation import evaluate
from vae.evaluation.mmd import mmd_to_prior
from vae.features.activations import FrozenFeatures
from vae.metrics.measurement import encode, measure
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.priors import aggregate, mixture
from vae.priors.mixture import PrincipalAxes
from vae.priors.standard import StandardNormal

SIDE, LATENTS = 8, 3


def pictures(count: int, seed: int = 0, side: int = SIDE, channels: int = 1) -> np.ndarray:
    """Blobs of two kinds, by turns: left and right."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 60, (count, side, side, channels), dtype=np.uint8)
    images[0::2, :, : side // 2] += 150
    images[1::2, :, side // 2 :] += 150
    return images


def saved_model(likelihood: Likelihood, side: int = SIDE, channels: int = 1) -> Saved:
    model = Model(architecture="mlp", latent_dim=LATENTS, widths=[16], batch_norm=False)
    made = config((channels, side, side), model, likelihood=likelihood)
    return Saved(network(made).eval(), made, StandardNormal(LATENTS), "0" * 64)


def evaluated(saved: Saved, images: np.ndarray | None = None) -> dict:
    channels, side, _ = saved.config.image_shape
    arrays, classes = {}, {}
    for split, count in (("train", 40), ("valid", 20), ("test", 24)):
        arrays[split] = pictures(count, count, side, channels) if images is None else images
        classes[split] = np.resize(np.array(["left", "right"], dtype=object), len(arrays[split]))
    p = Parameters(evaluate=Evaluate(importance_samples=20))
    return evaluate.evaluate(saved, arrays, classes, p, CPU)


def test_pruning_is_of_the_test_split_and_free_where_all_are_active(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = saved_model(Likelihood("gaussian", 0.3))
    with torch.no_grad():
        saved.model.posterior.weight.mul_(3)
    passes: list[object] = []
    real = evaluate.importance_weighted_bound

    def counted(*arguments: object) -> float:
        passes.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(evaluate, "importance_weighted_bound", counted)
    result = evaluated(saved)
    test = result["test"].metrics
    assert test["active_units"] == LATENTS and len(passes) == 2
    assert test["nll_pruned"] == test["nll"] and "nll_pruned" not in result["valid"].metrics

    with torch.no_grad():  # the encoder forgets the first latent
        saved.model.posterior.weight[0].zero_()
    test = evaluated(saved)["test"].metrics
    assert test["active_units"] == LATENTS - 1 and len(passes) == 5
    assert test["nll_pruned"] != test["nll"]
    pruned = real(saved.model, pictures(24, 24), saved.likelihood, CPU, 20, 0, np.array([False, True, True]))
    assert test["nll_pruned"] == pytest.approx(-pruned, rel=1e-5)


def test_metrics_of_a_split_agree_with_one_another() -> None:
    result = evaluated(saved_model(Likelihood("gaussian", 0.3)))
    test = result["test"].metrics
    assert test["images"] == 24
    assert test["elbo"] == pytest.approx(-test["reconstruction"] - test["kl"], rel=1e-5)
    assert -test["nll"] >= test["elbo"]
    assert test["mse"] == pytest.approx(result["test"].errors.mean(), rel=1e-4)
    assert test["psnr"] == pytest.approx(-10 * math.log10(test["mse"]), rel=1e-4)
    assert test["probe_majority"] == 0.5
    assert 0 < test["mmd"] < 7
    assert test["mutual_information"] is None or test["saturated_at"] is None


def test_the_elbo_is_the_mean_of_many_draws_with_its_standard_error() -> None:
    saved = saved_model(Likelihood("gaussian", 0.3))
    with torch.no_grad():
        saved.model.posterior.weight.mul_(3)
    images = pictures(24, 24)
    test = evaluated(saved)["test"].metrics
    single = [measure(saved.model, images, saved.likelihood, CPU, seed) for seed in range(1, 400)]
    expected, noise = np.mean([m.elbo for m in single]), np.std([m.elbo for m in single])
    assert abs(test["elbo"] - expected) < 3 * noise / math.sqrt(evaluate.DRAWS)
    assert abs(single[0].elbo - expected) > 3 * noise / math.sqrt(evaluate.DRAWS), "one draw is not enough"
    assert test["mse_sampled"] == pytest.approx(np.mean([m.mse_sampled for m in single]), rel=0.02)
    measured = measure(saved.model, images, saved.likelihood, CPU, 0, evaluate.DRAWS)
    assert test["elbo_se"] == pytest.approx(measured.elbo_se, rel=1e-5) and measured.elbo_se > noise / 6


def test_only_an_autoregressive_decoder_is_also_measured_without_the_image() -> None:
    made = config((1, SIDE, SIDE), Model(architecture="autoregressive", latent_dim=LATENTS, widths=[4]))
    test = evaluated(Saved(network(made).eval(), made, StandardNormal(LATENTS), "0" * 64))["test"].metrics
    assert test["mse_free_running"] > 0 and abs(test["gain_from_z"]) < 100
    plain = evaluated(saved_model(Likelihood("gaussian", 0.3)))["test"].metrics
    assert not {"mse_free_running", "gain_from_z"} & plain.keys()


def test_a_fitted_prior_is_measured_beside_the_standard_normal() -> None:
    """One that is N(0, I) gives the same numbers, but for the sampling; one fitted to q(z) better ones."""
    model = saved_model(Likelihood("gaussian", 0.3))
    plain = evaluated(model)["test"].metrics
    mu, logvar = encode(model.model, pictures(40, 40), CPU)
    standard = mixture.fit_gaussian(PrincipalAxes(np.zeros(LATENTS), np.eye(LATENTS)))
    fitted = mixture.fit_gaussian(axes_of(mu, logvar))
    of = {}
    for name, prior in (("standard", standard), ("fitted", fitted)):
        result = evaluated(dataclasses.replace(model, prior=prior))
        assert {split for split in result if "fitted_prior_kl" in result[split].metrics} == set(result)
        test = of[name] = result["test"].metrics
        elbo = -test["reconstruction"] - test["fitted_prior_kl"]
        assert test["fitted_prior_elbo"] == pytest.approx(elbo, rel=1e-5)
        of_prior = ("fitted_prior", "aggregate_kl_bound")
        same = [key for key in plain if not key.startswith(of_prior)]
        assert len(same) > 60 and all(test[key] == plain[key] for key in same), "nothing else changes"
        encoded = encode(model.model, pictures(24, 24), CPU)
        assert test["fitted_prior_mmd"] == pytest.approx(mmd_to_prior(*encoded, 0, prior), abs=1e-4)
        assert test["fitted_prior_kl"] == pytest.approx(aggregate.rate(*encoded, prior, 0), rel=1e-4)
    assert of["standard"]["fitted_prior_kl"] == pytest.approx(plain["kl"], abs=0.5)
    assert of["fitted"]["fitted_prior_kl"] < of["standard"]["fitted_prior_kl"]


def test_calibrated_elbo_takes_sigma_from_the_validation_split() -> None:
    results = [evaluated(saved_model(Likelihood("gaussian", sigma))) for sigma in (0.1, 2.0)]
    calibrated = [result["test"].metrics["elbo_calibrated"] for result in results]
    assert calibrated[0] == calibrated[1]  # whatever σ the model was saved with
    valid, test = (results[0][split].metrics for split in ("valid", "test"))
    pixels, variance = SIDE * SIDE, valid["mse_sampled"]
    log_likelihood = -0.5 * pixels * (math.log(2 * math.pi * variance) + test["mse_sampled"] / variance)
    assert calibrated[0] == pytest.approx(log_likelihood - test["kl"], rel=1e-4)


def test_bernoulli_on_grey_pixels_has_no_likelihood_and_on_binary_ones_has() -> None:
    saved = saved_model(Likelihood("bernoulli"))
    grey = evaluated(saved)["test"].metrics
    assert grey["nll"] is None and grey["nll_pruned"] is None and grey["elbo_calibrated"] is None
    binary = evaluated(saved, images=np.where(pictures(40) > 128, 255, 0).astype(np.uint8))["test"].metrics
    assert -binary["nll"] >= binary["elbo"]


@pytest.mark.filterwarnings("error")
def test_a_diverged_model_gives_nulls_and_no_failure() -> None:
    saved = saved_model(Likelihood("gaussian", 0.3), side=9, channels=3)
    with torch.no_grad():
        for weights in saved.model.parameters():
            weights.fill_(math.nan)
    metrics = {split: result.metrics for split, result in evaluated(saved).items()}
    json.dumps(metrics, allow_nan=False)
    assert metrics["test"]["elbo"] is None and metrics["test"]["probe_accuracy"] is None
    assert metrics["test"]["active_units"] == 0 and metrics["test"]["mmd"] is None


def test_the_yardstick_and_the_detail_are_of_the_test_split() -> None:
    result = evaluated(saved_model(Likelihood("gaussian", 0.3)))
    valid, test = (result[split].metrics for split in ("valid", "test"))
    assert test["probe_latents"] == test["probe_accuracy"]
    assert test["probe_latents_low"] <= test["probe_latents"] <= test["probe_latents_high"]
    assert test["knn_pixels"] == test["probe_pixels"] == 1, "left and right are told by any pixel"
    assert 1 <= test["detail_width"] <= SIDE and test["detail_kept_4px"] <= 1
    assert 0 <= test["decoded_probe_pixels"] <= 1
    assert not {"probe_latents", "detail_width", "decoded_probe_pixels", "probe_frozen"} & valid.keys()
    assert "detail_colour_width" not in test, "grey"


@pytest.mark.parametrize("classes", [[None], ["left"], ["left", None, "left", "left"]])
def test_without_two_classes_only_the_detail_is_measured(classes: list[str | None]) -> None:
    saved = saved_model(Likelihood("gaussian", 0.3), side=8, channels=3)
    arrays = {split: pictures(20, 20, 8, 3) for split in ("train", "valid", "test")}
    labels = {split: np.resize(np.array(classes, dtype=object), 20) for split in arrays}
    test = evaluate.evaluate(saved, arrays, labels, Parameters(evaluate=Evaluate(importance_samples=2)), CPU)["test"]
    assert test.yardstick is None and "probe_latents" not in test.metrics
    assert test.detail and test.detail.decoded == {} and test.metrics["detail_colour_width"] == SIDE


@pytest.mark.filterwarnings("error")
def test_a_class_of_one_image_and_frozen_features_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that is not installed here, which reads the means of an image's columns."""

    def columns(images: np.ndarray) -> np.ndarray:
        return images.mean((1, 3)).astype(np.float32) + 1

    monkeypatch.setattr(evaluate, "frozen_features", lambda device: FrozenFeatures(columns))
    made = config((1, 8, 16), Model(architecture="mlp", latent_dim=LATENTS, widths=[16], batch_norm=False))
    saved = Saved(network(made).eval(), made, StandardNormal(LATENTS), "0" * 64)
    arrays = {split: np.concatenate([pictures(30, 1)] * 2, axis=2) for split in ("train", "valid", "test")}
    labels = {split: np.resize(np.array(["left", "right"], dtype=object), 30) for split in arrays}
    labels["train"][0] = labels["test"][0] = "alone"
    p = Parameters(evaluate=Evaluate(importance_samples=2))
    test = evaluate.evaluate(saved, arrays, labels, p, CPU)["test"].metrics
    assert test["probe_frozen"] > 0.9 and test["knn_frozen"] > 0.9 and test["few_label_frozen"] > 0.9
    assert test["decoded_share_frozen"] == pytest.approx(test["decoded_probe_frozen"] / test["probe_frozen"], rel=1e-4)
    assert test["feature_distance"] > 0 and test["feature_distance_same_class"] < test["feature_distance_random"]
