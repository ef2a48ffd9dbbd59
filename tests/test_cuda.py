"""What only a GPU can show. Everything else of the same code is tested on the CPU."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.frozen import small_network
from helpers.models import config
from helpers.trainings import RECIPE, STEPS, TRAIN, VALID, Interrupted, assert_same_bits, params, unresolved

from vae.collapse.linear_theory import spectrum_for
from vae.compute import batches, devices
from vae.compute.devices import Compute
from vae.config.constants import EFFICIENTNET
from vae.evaluation.evaluate import evaluate
from vae.features.network import is_installed
from vae.inference import generate, scoring
from vae.models import saved
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.pilot import latents, pictures
from vae.pilot import training as pilot
from vae.training import loop
from vae.training.loop import Trained

CASES: dict[str, dict[str, Any]] = {
    "plain": {},  # AdamW at a steady rate
    "recipe": RECIPE,
    "recipe bf16": RECIPE | {"train.precision": "bf16"},
    "recipe average": RECIPE | {"train.ema": 0.9},
    "average": {"train.ema": 0.9},
    "PI": {"kl.target_kl": 2.0},
    "GECO": {"kl.reconstruction_target": 0.1, "objective.sigma": 0.1},
    "flip": {"data.augment": "flip"},
    "dihedral": {"data.augment": "dihedral"},
    "shift": {"data.shift": 2},
    "binarise": {"data.binarise": "dynamic", "objective.likelihood": "bernoulli"},
    "importance-weighted": {"objective.importance_samples_train": 2, "objective.sigma": 0.1},
    "bf16": {"train.precision": "bf16"},
    "bf16 average": {"train.precision": "bf16", "train.ema": 0.9, "train.weight_decay": 0.1},
    "no clipping": {"train.gradient_clip": None},
    "learned sigma": {"objective.sigma": "learned"},
    "capacity": {"kl.capacity": 2.0},
    "free bits": {"kl.free_bits": 0.1},
    "gated MLP": RECIPE | {"model.architecture": "gated_mlp"},
    "two levels": RECIPE
    | {
        "model.latent_dim": 5,
        "model.lower_latents": 2,
        "objective.importance_samples_train": 2,
        "objective.sigma": 0.1,
    },
    "ladder": RECIPE | {"model.architecture": "residual", "model.latent_dim": 35, "model.lower_latents": [4, 4, 2]},
    "autoregressive": RECIPE | {"model.architecture": "autoregressive"},
    "residual": RECIPE | {"model.architecture": "residual", "model.blocks": 2, "model.attention": True},
    "group norm": RECIPE | {"model.architecture": "residual", "model.batch_norm": False},
    "discretised Gaussian": {"objective.likelihood": "discretised_gaussian"},
    "discretised logistic": {"objective.likelihood": "discretised_logistic", "objective.sigma": 0.1},
    "sigma of channels": {"objective.likelihood": "discretised_gaussian", "objective.sigma": "channel"},
    "sigma of pixels": {"objective.likelihood": "discretised_logistic", "objective.sigma": "pixel"},
    "density of pixels bf16": {"objective.sigma": "pixel", "train.precision": "bf16"},
    "mixture": {"objective.likelihood": "logistic_mixture", "objective.importance_samples_train": 2},
    "mixture bf16": {"objective.likelihood": "logistic_mixture", "train.precision": "bf16"},
    "mean batch norm": {"model.mean_batch_norm": 0.5},
}
AGGRESSIVE = RECIPE | {"train.aggressive_encoder": True, "train.epochs": 6}
CUDA, CPU = Compute(torch.device("cuda"), "fp32"), Compute(torch.device("cpu"), "fp32")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()  # a function that is compiled anew too often is run as it is


def train(changes: dict[str, Any], path: Path | None = None, **more: Any) -> Trained:
    p = params({"train.device": "cuda", **changes})
    return loop.train(p, TRAIN, VALID, devices.choose(p.train), path, **more)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("changes", [*CASES.values(), AGGRESSIVE], ids=[*CASES, "aggressive"])
def test_the_same_bits_twice(changes: dict[str, Any], compiled: bool) -> None:
    if compiled and shutil.which("cc") is None:
        pytest.skip("Triton has no compiler here")
    changes = {**changes, "train.compile": compiled}
    assert_same_bits(train(changes), train(changes))


def test_images_that_exceed_the_gpu_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = train({})
    monkeypatch.setattr("vae.training.loop.resident", lambda images, device: images)
    assert_same_bits(train({}), resident)
    assert batches.gather(TRAIN, torch.arange(4), torch.device("cuda")).is_pinned()


@pytest.mark.parametrize("changes", [*CASES.values(), AGGRESSIVE], ids=[*CASES, "aggressive"])
def test_an_interrupted_training_ends_with_the_same_bits(changes: dict[str, Any], tmp_path: Path) -> None:
    def interrupt(step: int) -> None:
        if step > 2 * STEPS:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(changes, tmp_path / "state.pt", on_step=interrupt)
    assert_same_bits(train(changes, tmp_path / "state.pt"), train(changes))


@pytest.mark.parametrize("network", ["a file", EFFICIENTNET])
def test_losses_on_features_repeat_their_bits(network: str, tmp_path: Path) -> None:
    if network == EFFICIENTNET and not is_installed():
        pytest.skip("needs the extra `features`")
    name = network if network == EFFICIENTNET else str(small_network(tmp_path / "small.pt2"))
    changes = {"objective.features": name, "objective.align": 10.0, "objective.perceptual": 10.0}
    assert_same_bits(train(changes), train(changes))


@pytest.mark.parametrize("read_ahead", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_gpu(name: str, read_ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second epoch on, but for what comes between epochs: PyTorch raises where it sees a wait."""
    if read_ahead:
        monkeypatch.setattr("vae.training.loop.resident", lambda images, device: images)

    def on_step(step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if step > STEPS and step % STEPS else "default")

    train(CASES[name], on_step=on_step)


@pytest.mark.parametrize(
    "likelihood",
    [
        Likelihood("discretised_gaussian", 0.02),
        Likelihood("discretised_gaussian", (0.02, 0.1, 0.5)),
        Likelihood("discretised_logistic"),
        Likelihood("gaussian"),
        Likelihood("logistic_mixture", components=4),
    ],
)
def test_log_probabilities_and_their_gradients_are_those_of_the_cpu(likelihood: Likelihood) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (5, 3, 8, 8), generator=random) / 255
    output = torch.randn(5, likelihood.outputs(3), 8, 8, generator=random)
    found = []
    for device in ("cuda", "cpu"):
        moved = output.to(device).requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            log_prob = likelihood.log_prob(x.to(device), moved)
        log_prob.sum().backward()
        assert moved.grad is not None and moved.grad.isfinite().all() and log_prob.dtype == torch.float32
        found.append((log_prob.cpu(), moved.grad.cpu(), likelihood.mean(moved).cpu()))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def on_both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """One model that was trained on the GPU, loaded on the GPU and on the CPU."""
    trained, folder = train({"train.epochs": 2}), tmp_path_factory.mktemp("model")
    made = config((1, 8, 8), params().model, likelihood=trained.likelihood)
    saved.save(folder, trained.model, made)
    return {device: saved.load(folder, torch.device(device)) for device in ("cuda", "cpu")}


def test_a_saved_model_is_the_same_on_gpu_and_cpu(on_both: dict[str, Saved]) -> None:
    """But for rounding, TF32's on the GPU; all that follows from μ is compared, since noise is drawn on the device."""
    images = dict.fromkeys(("train", "valid", "test"), VALID)
    labels = {split: np.array(["a", "b"] * len(VALID), dtype=object)[: len(VALID)] for split in images}
    p, computes = params({"evaluate.importance_samples": 2}), {"cuda": CUDA, "cpu": CPU}
    found = {device: evaluate(on_both[device], images, labels, p, computes[device])["test"] for device in computes}
    np.testing.assert_allclose(found["cuda"].mu, found["cpu"].mu, atol=0.02)
    for name in ("mse", "ssim", "kl"):
        assert found["cuda"].metrics[name] == pytest.approx(found["cpu"].metrics[name], rel=0.02)
    again = evaluate(on_both["cuda"], images, labels, p, CUDA)["test"]
    assert again.metrics == found["cuda"].metrics


def test_pictures_and_scores_are_the_same_on_gpu_and_cpu(on_both: dict[str, Saved]) -> None:
    def made(device: str, compute: Compute) -> list[np.ndarray]:
        model, values = on_both[device], np.array([-1.0, 1.0])
        return [
            generate.samples(model, model.prior, 4, compute, seed=0),
            generate.traversals(model, VALID[0], np.array([0, 2]), values, compute),
            generate.reconstruct(model.model, VALID, model.likelihood, compute) / 255,
            scoring.scores(model, VALID, compute) / 100,
        ]

    for gpu, cpu in zip(made("cuda", CUDA), made("cpu", CPU), strict=True):
        np.testing.assert_allclose(gpu, cpu, atol=0.05)


@pytest.mark.parametrize("name", ["plain", "binarise", "autoregressive", "gated MLP"])
def test_a_pilot_and_that_of_the_latents_repeat_to_the_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot, "STEPS", 6)
    monkeypatch.setattr(pilot, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(latents, "has_died", lambda p, curve: False)  # of six steps
    p = unresolved({"train.device": "cuda", **CASES[name]})
    spectrum = spectrum_for(p, TRAIN)

    def stop(step: int) -> None:
        if step == 5:
            raise Interrupted

    whole = pilot.learn(p, spectrum, TRAIN, CUDA)
    with pytest.raises(Interrupted):
        pilot.learn(p, spectrum, TRAIN, CUDA, tmp_path / "pilot.pt", stop)
    resumed = pilot.learn(p, spectrum, TRAIN, CUDA, tmp_path / "pilot.pt")
    assert whole is not None and resumed is not None
    np.testing.assert_array_equal(resumed.curve.measured_rates, whole.curve.measured_rates)
    np.testing.assert_array_equal(resumed.curve.measured_error, whole.curve.measured_error)
    assert pictures.draw(p, resumed, VALID).png == pictures.draw(p, whole, VALID).png
    assert latents.compared(p, 1.0, latents.learn(p, TRAIN, CUDA)) == latents.compared(
        p, 1.0, latents.learn(p, TRAIN, CUDA)
    )
