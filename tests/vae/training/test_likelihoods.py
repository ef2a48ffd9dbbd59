"""Each likelihood from its first step to its pictures: trained, measured, saved, scored, drawn."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import config
from helpers.parameters import Changes
from helpers.trainings import CPU, RECIPE, TRAIN, VALID, assert_same_bits, blobs, interrupted, params, run

from vae import onnx
from vae.compute.batches import to_pixels
from vae.compute.devices import Compute
from vae.config.sections import Evaluate
from vae.evaluation.evaluate import DRAWS, evaluate
from vae.inference import generate, scoring
from vae.losses.elbo import ELBOLoss, elbo_terms
from vae.losses.importance_weighted import ImportanceWeightedLoss
from vae.losses.kl_control import KLControl
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import measure
from vae.models import saved
from vae.models.likelihood import Likelihood, known_likelihood
from vae.models.saved import Saved
from vae.models.vae import VAE, build
from vae.training import loop
from vae.training.state import TrainState

KIND, SIGMA = "objective.likelihood", "objective.sigma"
NEW: dict[str, Changes] = {
    "gaussian channel": {SIGMA: "channel"},
    "gaussian pixel": {SIGMA: "pixel"},
    "discretised gaussian optimal": {KIND: "discretised_gaussian"},
    "discretised gaussian number": {KIND: "discretised_gaussian", SIGMA: 0.1},
    "discretised gaussian learned": {KIND: "discretised_gaussian", SIGMA: "learned"},
    "discretised gaussian channel": {KIND: "discretised_gaussian", SIGMA: "channel"},
    "discretised gaussian pixel": {KIND: "discretised_gaussian", SIGMA: "pixel"},
    "discretised logistic optimal": {KIND: "discretised_logistic"},
    "discretised logistic pixel": {KIND: "discretised_logistic", SIGMA: "pixel"},
    "mixture": {KIND: "logistic_mixture", "objective.mixture_components": 4},
}
COLOUR = blobs(40, 1, channels=3)
COLOUR[..., 1] //= 2


@pytest.mark.parametrize("changes", NEW.values(), ids=list(NEW))
def test_it_learns(changes: Changes) -> None:
    trained = run(
        params({**RECIPE, "train.epochs": 16, "kl.annealing_epochs": "auto", "model.widths": [16, 32]} | changes)
    )
    mean_image = MeanImage.of(TRAIN)
    assert trained.stopped is None and trained.train.rate > 3
    assert trained.train.elbo > mean_image.elbo(TRAIN, trained.likelihood) + 5
    assert trained.train.mse_sampled < 0.7 * mean_image.mse(TRAIN)
    assert trained.likelihood.fits(1) and trained.likelihood.is_discretised == (KIND in changes)


@pytest.mark.parametrize("name", ["gaussian channel", "discretised gaussian pixel", "mixture"])
def test_colours_and_an_interruption(name: str, tmp_path: Path) -> None:
    p = params({**NEW[name], "data.channels": 3, "train.epochs": 2})
    trained = loop.train(p, COLOUR, COLOUR[:20], CPU)
    assert trained.likelihood.fits(3) and trained.likelihood.fits(1) != isinstance(trained.likelihood.sigma, tuple)
    grey = params({**NEW[name], "train.epochs": 2})
    assert_same_bits(interrupted(grey, tmp_path / "state.pt", [6], [1]), run(grey))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("changes", NEW.values(), ids=list(NEW))
def test_both_losses_and_the_frozen_likelihood_agree(changes: Changes, channels: int) -> None:
    images = COLOUR if channels == 3 else TRAIN
    p = params({**changes, "data.channels": channels})
    model = TrainState(p, images, torch.device("cpu"), None).model.eval()
    x, noise = (
        to_pixels(images[:16], torch.device("cpu")),
        torch.randn(1, 16, 3, generator=torch.Generator().manual_seed(0)),
    )
    terms = elbo_terms(p.elbo, model, x, noise[0], None)
    likelihood = known_likelihood(p.elbo, model.log_sigma) or Likelihood(
        p.objective.likelihood, math.sqrt(terms.mse.item())
    )
    output = model(x, noise[0])[0]
    assert output.shape == (16, likelihood.outputs(channels), 8, 8)
    torch.testing.assert_close(terms.distortion, -likelihood.log_prob(x, output).mean())
    error = (x - likelihood.mean(output)).square().mean()
    torch.testing.assert_close(terms.mse, error)
    if changes.get(SIGMA, "optimal") != "optimal" or not p.objective.has_sigma:
        _, logs = ImportanceWeightedLoss(p.elbo)(model, x, noise, 1.0)
        torch.testing.assert_close(logs["reconstruction"], terms.distortion)
    half = Compute(torch.device("cpu"), "bf16")
    with half.autocast():
        loss, _ = ELBOLoss(p.elbo, KLControl(p.kl, p.elbo.pixels, torch.device("cpu")))(model, x, noise, 1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(w.grad is not None and w.grad.isfinite().all() for w in model.parameters() if w.requires_grad)


@pytest.mark.parametrize("architecture", ["conv", "mlp", "gated_mlp", "autoregressive"])
def test_a_decoders_sigma_starts_at_the_mean_images_error(architecture: str) -> None:
    changes = {**NEW["discretised gaussian pixel"], "model.architecture": architecture, "data.channels": 3}
    p = params(changes)
    plain, started = build(p), TrainState(p, COLOUR, torch.device("cpu"), None).model
    z, x = torch.randn(8, 3), to_pixels(COLOUR[:8], torch.device("cpu"))
    with torch.no_grad():
        shift = started.eval().decode(z, x) - plain.eval().decode(z, x)
    sigma = math.sqrt(MeanImage.of(COLOUR).mse(COLOUR))
    torch.testing.assert_close(shift[:, :3], torch.zeros(8, 3, 8, 8), rtol=0, atol=1e-5)
    torch.testing.assert_close(shift[:, 3:], torch.full((8, 3, 8, 8), math.log(sigma)), rtol=0, atol=1e-5)


def folder_of(tmp_path: Path, changes: Changes, channels: int) -> tuple[Path, VAE, Saved]:
    """A model of random weights, saved and loaded."""
    p = params({**changes, "data.channels": channels})
    model = build(p).eval()
    likelihood = known_likelihood(p.elbo, model.log_sigma) or Likelihood(p.objective.likelihood, 0.2)
    saved.save(tmp_path / "vae", model, config((channels, 8, 8), p.model, likelihood=likelihood))
    return tmp_path / "vae", model, saved.load(tmp_path / "vae")


@pytest.mark.parametrize("architecture", ["conv", "mlp", "autoregressive"])
@pytest.mark.parametrize(
    ("name", "channels"), [("gaussian channel", 3), ("gaussian pixel", 3), ("mixture", 1), ("mixture", 3)]
)
def test_a_saved_one_scores_and_draws(tmp_path: Path, architecture: str, name: str, channels: int) -> None:
    _, model, read = folder_of(tmp_path, {**NEW[name], "model.architecture": architecture}, channels)
    for key, tensor in read.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    images = (COLOUR if channels == 3 else VALID)[:5]
    assert generate.reconstruct(read.model, images, read.likelihood, CPU).shape == images.shape
    assert generate.samples(read, read.prior, 4, CPU, 0).shape == (4, 8, 8, channels)
    drawn = generate.traversals(read, images[0], np.array([0, 2]), np.array([-1.0, 1.0]), CPU)
    assert drawn.shape == (4, 8, 8, channels) and np.isfinite(drawn).all()
    scores = scoring.scores(read, images, CPU)
    assert scores.shape == (5,) and np.isfinite(scores).all()


@pytest.mark.parametrize("name", ["gaussian pixel", "mixture"])
def test_its_encoder_goes_to_onnx(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, _, read = folder_of(tmp_path, NEW[name], 1)
    assert onnx.export(read, tmp_path / "encoder.onnx") < 1e-3


@pytest.mark.parametrize("changes", [*NEW.values(), {}], ids=[*NEW, "gaussian"])
def test_bits_per_dimension_are_of_levels_alone(tmp_path: Path, changes: Changes) -> None:
    _, _, read = folder_of(tmp_path, changes, 1)
    images = dict.fromkeys(("train", "valid", "test"), VALID)
    labels = {split: np.full(len(VALID), None, dtype=object) for split in images}
    p = params(changes).model_copy(update={"evaluate": Evaluate(importance_samples=5)})
    metrics = evaluate(read, images, labels, p, CPU)["test"].metrics
    if read.likelihood.is_discretised:
        per_bit = 64 * math.log(2)
        assert metrics["bits_per_dim"] == pytest.approx(-metrics["elbo"] / per_bit, rel=1e-4)
        assert metrics["nll_bits_per_dim"] == pytest.approx(metrics["nll"] / per_bit, rel=1e-4)
        assert metrics["nll_bits_per_dim"] <= metrics["bits_per_dim"]
    else:
        assert not {"bits_per_dim", "nll_bits_per_dim"} & metrics.keys()
    assert (metrics["elbo_calibrated"] is None) == (not isinstance(read.likelihood.sigma, float))


def test_the_calibrated_elbo_of_levels_is_measured_at_the_calibrated_sigma(tmp_path: Path) -> None:
    found = []
    for sigma in (0.1, 0.5):
        _, _, read = folder_of(tmp_path, {KIND: "discretised_gaussian", SIGMA: sigma}, 1)
        images = {"train": TRAIN, "valid": VALID, "test": TRAIN[:30]}
        labels = {split: np.full(len(array), None, dtype=object) for split, array in images.items()}
        found.append(evaluate(read, images, labels, params(), CPU)["test"].metrics)
    assert found[0]["elbo_calibrated"] == found[1]["elbo_calibrated"]
    valid = measure(read.model, VALID, read.likelihood, CPU, 0, DRAWS)
    calibrated = Likelihood("discretised_gaussian", math.sqrt(valid.mse_sampled))
    expected = measure(read.model, TRAIN[:30], calibrated, CPU, 0, DRAWS).elbo
    assert found[0]["elbo_calibrated"] == pytest.approx(expected, rel=1e-5)
    assert valid.elbo_at_own_sigma(read.likelihood, 64) == valid.elbo
