"""The loop on images of 8×8: what each step uses, which epoch is kept, and the same bits after an interruption."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import trainings
from helpers.parameters import Changes
from helpers.trainings import CPU, RECIPE, STEPS, TRAIN, VALID, assert_same_bits, params, run

from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.losses.elbo import Logs
from vae.metrics import measurement
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import measure
from vae.models.likelihood import GAUSSIAN
from vae.models.vae import build
from vae.schedules.kl import ramp
from vae.training import loop
from vae.training.history import COLUMNS
from vae.training.loop import train
from vae.training.standardise import standardise
from vae.training.step import Step

ENCODER_FIRST = {"train.aggressive_encoder": True, "kl.schedule": "constant", "kl.max_weight": 12.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        RECIPE | {"model.mean_batch_norm": 0.5},
        RECIPE | {"model.architecture": "autoregressive", "train.ema": 0.9},
        RECIPE | {"model.architecture": "residual", "model.batch_norm": False, "train.gradient_checkpointing": True},
        # the encoder's phase is on in the first epochs, off in the last
        ENCODER_FIRST | {"data.augment": "flip"},
        RECIPE | ENCODER_FIRST,
        {"kl.schedule": "cyclical", "data.binarise": "dynamic", "objective.likelihood": "bernoulli"},
        {"objective.sigma": "learned", "model.architecture": "mlp", "kl.reconstruction_target": 0.1},
        RECIPE | {"objective.sigma": "learned", "model.architecture": "gated_mlp", "train.weight_decay": 0.1},
        {"kl.target_kl": 5.0, "kl.max_weight": 2.0, "train.learning_rate_schedule": "cosine"},
        {"train.select": "last", "objective.reduction": "mean", "train.weight_decay": 0.1},
    ],
)
def test_interruptions_change_no_bit(tmp_path: Path, changes: Changes) -> None:
    p, path = params(changes), tmp_path / "run" / "state.pt"
    undisturbed = run(p)
    # in the first epoch, in its successor, at its last step before it is measured, and between epochs
    assert_same_bits(trainings.interrupted(p, path, [2, STEPS + 1, 3 * STEPS], [2, 3]), undisturbed)
    assert [row["epoch"] for row in undisturbed.history] == [1, 2, 3, 4]
    # a run that is complete trains no more, and gives the same again
    assert_same_bits(run(p, path, on_step=lambda step: pytest.fail("trained on")), undisturbed)


def test_a_damaged_checkpoint_costs_an_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def interrupt(step: int) -> None:
        if step > 3 * STEPS:
            raise trainings.Interrupted

    path = tmp_path / "state.pt"
    with pytest.raises(trainings.Interrupted):
        run(params(), path, on_step=interrupt)
    path.write_bytes(path.read_bytes()[:1000])
    resumed_after: list[int] = []
    resumed = run(params(), path, on_resume=lambda state: resumed_after.append(len(state.history)))
    assert resumed_after == [2] and caplog.messages[-1] == "resumed after epoch 2 of 4"
    assert caplog.records[0].levelname == "WARNING"
    assert caplog.messages[0].startswith("checkpoint state.pt is damaged and skipped")
    assert_same_bits(resumed, run(params()))


def test_training_goes_on_without_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert_same_bits(run(params(), tmp_path / "file" / "state.pt"), run(params()))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
    assert caplog.messages[1].startswith("no checkpoint of epoch 2: ")


def test_a_run_repeats_to_the_bit_whatever_else_was_drawn() -> None:
    first = run(params())
    torch.manual_seed(99)
    torch.rand(10)
    assert_same_bits(run(params()), first)
    assert run(params({"seed": 1})).history != first.history


def test_history_has_its_columns_and_adds_up() -> None:
    steps: list[int] = []
    trained = run(params(), on_step=steps.append)
    assert steps == list(range(1, 4 * STEPS + 1))
    for number, row in enumerate(trained.history, 1):
        assert tuple(row) == COLUMNS
        assert row["valid/kl"] == pytest.approx(sum(trained.kl_per_latent[number - 1]), rel=1e-12)
        assert (row["epoch"], row["step"]) == (number, number * STEPS)
        assert row["valid/elbo"] == pytest.approx(-row["valid/reconstruction"] - row["valid/kl"])
        assert row["valid/loss"] == pytest.approx(-row["valid/elbo"])  # a final weight of 1
    # the weight of an epoch's last step
    assert [row["kl_weight"] for row in trained.history] == pytest.approx([0.375, 0.875, 1, 1])
    assert trained.history[-1]["train/loss"] < trained.history[0]["train/loss"]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_each_step_has_its_own_kl_weight(monkeypatch: pytest.MonkeyPatch, reduction: str) -> None:
    p = params({
        "objective.reduction": reduction, "kl.max_weight": 0.5, "kl.annealing_epochs": 2.5, "train.epochs": 3,
    })  # fmt: skip
    seen: list[tuple[float, Logs]] = []

    class Recorded(Step):
        def __call__(self, images: Any, number: int, beta: float) -> Logs:
            logs = super().__call__(images, number, beta)
            seen.append((beta, logs))
            return logs

    monkeypatch.setattr(loop, "Step", Recorded)
    history = run(p).history
    final = 0.5 if reduction == "sum" else 1.0
    assert [beta for beta, _ in seen] == [final * ramp(p.kl, step / STEPS, 3) for step in range(3 * STEPS)]
    assert seen[STEPS][0] == pytest.approx(final / 2.5)
    for epoch, row in enumerate(history):
        part = seen[epoch * STEPS : (epoch + 1) * STEPS]
        losses = [float(logs["reconstruction"] + beta * logs["kl"]) for beta, logs in part]
        assert row["train/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert row["valid/loss"] == pytest.approx(row["valid/reconstruction"] + final * row["valid/kl"])


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_best_epoch_is_kept(select: str) -> None:
    changes = {"train.epochs": 6, "kl.annealing_epochs": 3, "train.learning_rate": 0.03}
    p = params({**changes, "train.select": select})
    weights: list[dict[str, torch.Tensor]] = []
    trained = run(p, on_epoch=lambda epoch: weights.append(copy.deepcopy(epoch.model.state_dict())))
    best = 4 + int(np.argmin([row["valid/loss"] for row in trained.history[3:]]))
    assert best < 6  # such a learning rate spoils the last epoch
    assert trained.kept_epoch == (best if select == "best" else 6)
    kept = build(p).eval()
    kept.load_state_dict(weights[trained.kept_epoch - 1])
    assert standardise(kept, measure(kept, TRAIN, trained.likelihood, CPU, p.seed))
    expected = kept.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained.model.state_dict().items())


@pytest.mark.parametrize(("on_collapse", "epochs"), [("stop", 1 + math.ceil(100 / STEPS)), ("continue", 28)])
def test_a_collapse_stops_after_a_hundred_steps_at_the_final_weight(on_collapse: str, epochs: int) -> None:
    p = params({
        "kl.max_weight": 500.0, "kl.annealing_epochs": 1, "train.epochs": 28, "train.learning_rate": 0.01,
        "model.batch_norm": False, "train.on_collapse": on_collapse,
    })  # fmt: skip
    trained = run(p)
    assert len(trained.history) == epochs and trained.kept_epoch > 1
    assert (trained.stopped or "").startswith("collapsed") is (on_collapse == "stop")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("recipe", [{}, RECIPE])
def test_divergence_stops_and_keeps_finite_weights(tmp_path: Path, recipe: Changes, first: bool) -> None:
    """Weights that are NaN from the first step on, or from the third epoch on."""
    at_once = {"train.learning_rate": 1e30, "train.gradient_clip": None, "model.batch_norm": False}
    p = params(recipe | (at_once if first else {"kl.annealing_epochs": 0}))
    models: list[Any] = []

    def poison(step: int) -> None:
        if not first and step == 2 * STEPS + 2:
            next(models[0].parameters()).data.fill_(math.nan)

    path = tmp_path / "state.pt"
    trained = run(p, path, on_step=poison, on_epoch=lambda epoch: models.append(epoch.model))
    assert trained.stopped is not None and trained.stopped.startswith("diverged")
    assert (len(trained.history), trained.kept_epoch > 0) == ((1, False) if first else (3, True))
    assert all(tensor.isfinite().all() for tensor in trained.model.state_dict().values())
    assert math.isfinite(trained.train.elbo) and trained.likelihood.sigma is not None
    assert not all(math.isfinite(value) for value in trained.history[-1].values())
    # and it stays stopped when it is resumed
    again = run(p, path)
    assert (again.stopped, len(again.history)) == (trained.stopped, len(trained.history))


@pytest.mark.parametrize(
    ("images", "valid", "size", "batch_norm", "words"),
    [
        (70, 37, 71, True, "train.batch_size = 71 .* largest batch allowed is 70"),
        (1, 37, 2, False, "largest batch allowed is 1"),
        (1, 37, 16, True, "train.batch_size = 16 with 1 training images: batch norm needs at least 2"),
        (70, 37, 1, True, "train.batch_size = 1 .* batch norm needs at least 2"),
        (70, 1, 16, True, r"validation split holds 1 image.*raise data\.valid_fraction"),
        (70, 37, 70, True, None),
        (1, 37, 1, False, None),
    ],
)
def test_too_few_images(images: int, valid: int, size: int, batch_norm: bool, words: str | None) -> None:
    p = params({"train.batch_size": size, "model.batch_norm": batch_norm, "train.epochs": 1})
    if words is None:
        assert train(p, TRAIN[:images], VALID[:valid], CPU).history[0]["step"] == 1
        return
    with pytest.raises(InputError, match=words) as error:
        train(p, TRAIN[:images], VALID[:valid], CPU)
    assert "\n" not in str(error.value)


def test_the_learning_rate_schedule_acts() -> None:
    """At the end of a linear schedule the weights hardly move any more."""

    def last_move(schedule: str) -> float:
        weights: list[torch.Tensor] = []
        p = params({"train.learning_rate_schedule": schedule, "train.epochs": 6})
        run(p, on_epoch=lambda epoch: weights.append(epoch.model.posterior.weight.detach().clone()))
        return float((weights[-1] - weights[-2]).norm() / (weights[1] - weights[0]).norm())

    assert last_move("linear") < 0.5 * last_move("constant")


def test_the_frozen_likelihood_is_of_the_training_split_and_validation_of_the_whole_other() -> None:
    trained = run(params())
    sigma = measurement.fitted_sigma(trained.model, TRAIN, CPU, 0)
    assert trained.likelihood.kind == "gaussian" and trained.likelihood.sigma == pytest.approx(sigma, rel=1e-6)
    assert trained.train.elbo == measure(trained.model, TRAIN, trained.likelihood, CPU, 0).elbo
    assert trained.train.images == 70
    kept, valid = trained.history[trained.kept_epoch - 1], measure(trained.model, VALID, trained.likelihood, CPU, 0)
    assert kept["valid/mse"] == pytest.approx(valid.mse, rel=1e-5)
    assert kept["valid/kl"] > valid.rate  # its latents have been standardised since
    assert measurement.fitted_sigma(trained.model, VALID, CPU, 0) != sigma


@pytest.mark.parametrize(("channels", "wider"), [(3, 0), (1, 3)])
def test_colour_and_oblong_images_train(channels: int, wider: int) -> None:
    p = params({"data.channels": channels, "data.image_size": [8, 8 + wider], "train.epochs": 1})
    images = np.pad(trainings.blobs(40, 1, channels), ((0, 0), (0, 0), (0, wider), (0, 0)))
    assert len(train(p, images, images[:20], CPU).history) == 1


@pytest.mark.parametrize("recipe", [{}, RECIPE])
def test_bfloat16_is_near_float32(recipe: Changes) -> None:
    half = train(params(recipe), TRAIN, VALID, Compute(torch.device("cpu"), "bf16"))
    whole = run(params(recipe))
    assert half.history != whole.history
    for row, other in zip(half.history, whole.history, strict=True):
        assert row["train/reconstruction"] == pytest.approx(other["train/reconstruction"], abs=5)
        assert row["valid/mse"] == pytest.approx(other["valid/mse"], rel=0.2)


def test_it_learns_the_spots() -> None:
    trained = run(params(RECIPE | {"train.epochs": 20, "kl.annealing_epochs": "auto", "model.widths": [16, 32]}))
    final = trained.history[trained.kept_epoch - 1]
    assert trained.stopped is None
    assert final["valid/kl"] > 3 and final["valid/active_units"] >= 2
    assert final["valid/mse_sampled"] < 0.4 * MeanImage.of(TRAIN).mse(VALID)
    assert trained.train.elbo > MeanImage.of(TRAIN).elbo(TRAIN, GAUSSIAN) + 20


AUTOREGRESSIVE = {"model.architecture": "autoregressive", "train.epochs": 8}


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"model.architecture": "gated_mlp"}, 0.8),
        ({"model.mean_batch_norm": 0.5}, 0.8),
        (AUTOREGRESSIVE | {"objective.sigma": "learned", "data.augment": "flip"}, 0.6),
        (AUTOREGRESSIVE | {"objective.sigma": 0.1, "objective.importance_samples_train": 3}, 0.6),
        (AUTOREGRESSIVE | {"objective.likelihood": "bernoulli", "data.binarise": "dynamic"}, 0.6),
    ],
)
def test_other_networks_learn_too(changes: Changes, share: float) -> None:
    history = run(params(RECIPE | {"train.epochs": 12} | changes)).history
    assert history[-1]["valid/mse_sampled"] < share * history[0]["valid/mse_sampled"]
    assert history[-1]["valid/elbo"] > history[2]["valid/elbo"]


@pytest.mark.parametrize("aggressive", [False, True])
def test_images_beyond_memory_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, aggressive: bool) -> None:
    p = params({"train.aggressive_encoder": aggressive, "train.epochs": 1})
    resident = run(p)
    monkeypatch.setattr(loop, "resident", lambda images, device: images)
    assert_same_bits(run(p), resident)
