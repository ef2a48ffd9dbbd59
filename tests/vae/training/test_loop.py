"""The loop on images of 8×8: what each step uses, which epoch is kept, and the same bits after an interruption."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import (
    CPU,
    STEPS,
    TRAIN,
    VALID,
    Interrupted,
    _stop_after,
    assert_same_bits,
    blobs,
    interrupted,
    params,
    run,
)
from torch.distributions import Normal, kl_divergence
from vae.losses.objective import Objective

from vae.compute.devices import Compute
from vae.config.constants import SMALLEST_SIGMA
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.metrics import measurement
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import measure
from vae.models.likelihood import Likelihood
from vae.models.vae import build
from vae.schedules.kl import kl_weight
from vae.training import loop
from vae.training.loop import Epoch, learning_rate_factor, likelihood_of, train


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.ema": 0.9},
        {"model.architecture": "autoregressive", "train.ema": 0.9},
        {
            "train.aggressive_encoder": True,  # on in the first epochs, off in the last
            "kl.schedule": "constant",
            "kl.max_weight": 12.0,
            "data.augment": "flip",
        },
        {"kl.schedule": "cyclical", "kl.cycles": 2, "kl.ratio": 0.5},
        {"data.binarise": "dynamic", "objective.likelihood": "bernoulli"},
        {"data.augment": "flip", "train.learning_rate_schedule": "cosine", "train.weight_decay": 0.1},
        {"objective.sigma": "learned", "model.architecture": "mlp"},
        {
            "train.select": "last",
            "model.batch_norm": False,
            "objective.reduction": "mean",
            "kl.max_weight": 0.01,
        },
    ],
)
def test_after_interruptions_the_bits_are_those_of_an_undisturbed_run(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    p = params(changes)
    undisturbed = run(p)
    told: list[Epoch] = []
    # in the first epoch, in its successor, at its last step before it is measured, and between epochs
    resumed = interrupted(p, tmp_path / "run" / "state.pt", [2, STEPS + 1, 3 * STEPS], [2, 3])
    assert_same_bits(resumed, undisturbed)
    assert [row["epoch"] for row in undisturbed.history] == [1, 2, 3, 4]
    # a run that is complete trains no more, and gives the same again
    assert_same_bits(run(p, tmp_path / "run" / "state.pt", on_epoch=told.append), undisturbed)
    assert told == []


def test_a_damaged_checkpoint_costs_an_epoch_and_no_bit(tmp_path: Path) -> None:
    path, lines = tmp_path / "state.pt", []
    with pytest.raises(Interrupted):
        run(params(), path, on_epoch=lambda epoch: _stop_after(epoch, 3))
    path.write_bytes(path.read_bytes()[:1000])
    resumed = run(params(), path, on_message=lines.append)
    assert lines[0].startswith("warning: checkpoint state.pt is damaged")
    assert lines[1] == "resumed after epoch 2 of 4"
    assert_same_bits(resumed, run(params()))


def test_a_run_repeats_to_the_bit_whatever_else_was_drawn() -> None:
    first = run(params())
    torch.manual_seed(99)
    torch.rand(10)
    assert_same_bits(run(params()), first)
    other = run(params({"seed": 1}))
    assert other.history != first.history


def test_building_a_model_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights = build(params()).state_dict()
    assert torch.equal(torch.rand(1), expected)
    again = build(params()).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    other = build(params({"seed": 3})).state_dict()
    assert not torch.equal(other["posterior.weight"], weights["posterior.weight"])


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
    last = trained.history[-1]
    assert last["train/loss"] == pytest.approx(last["train/reconstruction"] + last["train/kl"], rel=1e-5)
    assert trained.history[-1]["train/loss"] < trained.history[0]["train/loss"]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_each_step_uses_the_kl_weight_of_its_fraction_of_an_epoch(reduction: str) -> None:
    """With a learning rate of next to nothing D and R stand still, and the logged loss tells the weights."""
    p = params({
        "train.learning_rate": 1e-30, "model.batch_norm": False, "objective.reduction": reduction,
        "kl.max_weight": 0.5, "kl.annealing_epochs": 2.5, "train.epochs": 3,
    })  # fmt: skip
    objective = Objective.of(p)
    losses: list[tuple[float, ...]] = []
    original = loop._loss

    def recorded(*arguments: Any) -> Any:
        found = original(*arguments)
        losses.append(tuple(float(term.detach()) for term in found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_loss", recorded)
        trained = run(p)
    for epoch, row in enumerate(trained.history):
        part = losses[epoch * STEPS : (epoch + 1) * STEPS]
        weights = [kl_weight(p.kl, epoch + batch / STEPS, 3) for batch in range(STEPS)]
        assert weights[0] == pytest.approx(0.5 * min(epoch / 2.5, 1))
        expected = (
            sum(d + objective.beta(w) * r for w, (d, _, r, _) in zip(weights, part, strict=True)) / STEPS
        )
        assert row["train/loss"] == pytest.approx(expected, rel=1e-5)
        assert row["valid/loss"] == pytest.approx(
            row["valid/reconstruction"] + objective.beta(0.5) * row["valid/kl"]
        )


def test_the_whole_validation_split_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last, partial batch is unlike the others, so leaving it out, or weighing batches alike, would show."""
    monkeypatch.setattr(measurement, "BATCH", 16)
    valid = VALID.copy()
    valid[32:] = 255 - valid[32:]
    epochs: list[Epoch] = []
    # mean reduction: σ is known and z = μ hardly needs noise to tell the splits apart
    p = params({"train.epochs": 1, "objective.reduction": "mean", "kl.max_weight": 0.01})
    train(p, TRAIN, valid, CPU, on_epoch=epochs.append)
    (epoch,) = epochs
    with torch.no_grad():
        x = torch.from_numpy(valid).permute(0, 3, 1, 2).float() / 255
        mu, logvar = epoch.model.eval().encode(x)
        errors = (x - epoch.model.decode(mu)).square().flatten(1).mean(1)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
    assert epoch.row["valid/mse"] == pytest.approx(float(errors.mean()), rel=1e-4)
    assert epoch.row["valid/kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert float(errors[:32].mean()) < 0.9 * float(errors.mean())


def test_the_best_epoch_is_kept_and_none_of_the_ramp() -> None:
    # a learning rate that spoils the last epochs: the best is an early one, and an earlier one still is in the ramp
    p = params(
        {"train.epochs": 8, "kl.annealing_epochs": 3, "train.learning_rate": 0.02, "kl.max_weight": 8.0}
    )
    epochs: list[tuple[dict[str, torch.Tensor], Epoch]] = []
    trained = run(p, on_epoch=lambda epoch: epochs.append((copy.deepcopy(epoch.model.state_dict()), epoch)))
    losses = [row["valid/loss"] for row in trained.history]
    best = 3 + int(np.argmin(losses[3:])) + 1
    assert trained.kept_epoch == best > 3
    kept = epochs[best - 1][0]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in trained.model.state_dict().items())
    last = run(params({**_changes_of(p), "train.select": "last"}))
    assert last.kept_epoch == 8
    assert all(torch.equal(t, epochs[-1][0][name]) for name, t in last.model.state_dict().items())


def _changes_of(p: Parameters) -> dict[str, Any]:
    return {
        "train.epochs": p.train.epochs, "kl.annealing_epochs": p.kl.annealing_epochs,
        "train.learning_rate": p.train.learning_rate, "kl.max_weight": p.kl.max_weight,
    }  # fmt: skip


def test_a_ramp_longer_than_the_training_keeps_the_last_epoch() -> None:
    assert run(params({"kl.annealing_epochs": 50, "train.epochs": 3})).kept_epoch == 3


def test_a_ramp_in_steps_is_the_same_ramp() -> None:
    steps = run(params({"kl.annealing_steps": 6, "kl.annealing_epochs": 50, "train.epochs": 3}))
    assert [row["kl_weight"] for row in steps.history] == pytest.approx([3 / 6, 1, 1])
    assert_same_bits(steps, run(params({"kl.annealing_epochs": 1.5, "train.epochs": 3})))


def test_patience_waits_for_the_ramp() -> None:
    p = params({
        "train.patience": 1, "train.epochs": 30, "kl.annealing_epochs": 4, "train.learning_rate": 0.03,
        "train.on_collapse": "continue",
    })  # fmt: skip
    trained = run(p)
    assert trained.stopped is not None and "no better validation loss" in trained.stopped
    assert len(trained.history) < 30
    losses = [row["valid/loss"] for row in trained.history]
    assert len(trained.history) == trained.kept_epoch + 1 and trained.kept_epoch > 4
    assert losses[-1] >= losses[-2]


def test_a_collapse_stops_after_two_epochs_and_a_hundred_steps_at_the_final_weight() -> None:
    changes = {
        "kl.max_weight": 500.0,
        "kl.annealing_epochs": 1,
        "train.epochs": 60,
        "train.learning_rate": 0.01,
    }
    trained = run(params({**changes, "model.batch_norm": False}))
    assert trained.stopped is not None and trained.stopped.startswith("collapsed")
    assert len(trained.history) == 1 + math.ceil(100 / STEPS)
    assert trained.kept_epoch > 1
    on = run(
        params({**changes, "model.batch_norm": False, "train.on_collapse": "continue", "train.epochs": 28})
    )
    assert on.stopped is None and len(on.history) == 28


@pytest.mark.parametrize("first", [True, False])
def test_divergence_stops_and_keeps_finite_weights(tmp_path: Path, first: bool) -> None:
    """Weights that are NaN from the first step on, or from the third epoch on."""
    if first:
        p = params({"train.learning_rate": 1e30, "train.gradient_clip": None, "model.batch_norm": False})
        trained = run(p, tmp_path / "state.pt")
    else:
        p = params({"kl.annealing_epochs": 0})
        models: list[Any] = []

        def poison(step: int) -> None:
            if step == 2 * STEPS + 2:
                next(models[0].parameters()).data.fill_(math.nan)

        trained = run(
            p, tmp_path / "state.pt", on_step=poison, on_epoch=lambda epoch: models.append(epoch.model)
        )
    assert trained.stopped is not None and trained.stopped.startswith("diverged")
    assert (len(trained.history), trained.kept_epoch > 0) == ((1, False) if first else (3, True))
    assert all(tensor.isfinite().all() for tensor in trained.model.state_dict().values())
    assert math.isfinite(trained.train.elbo) and trained.likelihood.sigma is not None
    assert not all(math.isfinite(value) for value in trained.history[-1].values())
    # and it stays stopped when it is resumed
    again = run(p, tmp_path / "state.pt")
    assert (again.stopped, len(again.history)) == (trained.stopped, len(trained.history))


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (70, {"train.batch_size": 71}, r"train.batch_size = 71 .* largest batch allowed is 70"),
        (1, {"train.batch_size": 2, "model.batch_norm": False}, r"largest batch allowed is 1"),
        (
            1,
            {"train.batch_size": 16},
            r"train.batch_size = 16 with 1 training images: batch norm needs at least 2",
        ),
        (70, {"train.batch_size": 1}, r"train.batch_size = 1 .* batch norm needs at least 2"),
    ],
)
def test_a_batch_that_can_not_be_filled_names_the_largest(
    images: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        train(params(changes), TRAIN[:images], VALID, CPU)
    assert "\n" not in str(error.value)


def test_the_largest_batch_that_it_names_works() -> None:
    p = params({"train.batch_size": 70, "train.epochs": 1})
    assert run(p).history[0]["step"] == 1
    single = params({"train.batch_size": 1, "train.epochs": 1, "model.batch_norm": False})
    assert len(train(single, TRAIN[:1], VALID, CPU).history) == 1


def test_a_gpu_without_memory_names_the_parameter_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "_loss", exhausted)
    with pytest.raises(InputError, match=r"train\.batch_size = 16 needs more memory .* try 8, or smaller"):
        run(params())


def test_initial_weights_are_where_training_begins() -> None:
    given = build(params({"seed": 7})).state_dict()
    p = params({"train.epochs": 1, "train.learning_rate": 1e-30})
    trained = run(p, initial_weights=given)
    assert torch.equal(trained.model.posterior.weight, given["posterior.weight"])
    fresh = run(p)
    assert not torch.equal(fresh.model.posterior.weight, given["posterior.weight"])


@pytest.mark.parametrize(
    "changes", [{"model.latent_dim": 4}, {"model.widths": [6]}, {"model.batch_norm": False}]
)
def test_initial_weights_of_another_model_are_refused(changes: dict[str, Any]) -> None:
    other = build(params(changes)).state_dict()
    with pytest.raises(
        InputError, match=r"train\.initial_weights: these weights are of another model"
    ) as error:
        run(params(), initial_weights=other)
    assert "\n" not in str(error.value)


def test_weight_decay_shrinks_the_weights() -> None:
    sizes = [
        sum(
            float(w.detach().square().sum())
            for w in run(params({"train.weight_decay": decay})).model.parameters()
        )
        for decay in (0.0, 10.0)
    ]
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0]),
    ],
)
def test_learning_rate_schedules(schedule: str, at: list[float]) -> None:
    p = params({"train.epochs": 8, "train.learning_rate_schedule": schedule}).train
    assert [learning_rate_factor(p, epoch) for epoch in (0, 2, 4, 8)] == pytest.approx(at, abs=1e-12)
    assert learning_rate_factor(p, 9) == pytest.approx(at[-1], abs=1e-12)


def test_the_learning_rate_schedule_acts() -> None:
    """At the end of a linear schedule the weights hardly move any more."""

    def last_move(schedule: str) -> float:
        weights: list[torch.Tensor] = []
        p = params({"train.learning_rate_schedule": schedule, "train.epochs": 6})
        run(p, on_epoch=lambda epoch: weights.append(epoch.model.posterior.weight.detach().clone()))
        return float((weights[-1] - weights[-2]).norm() / (weights[1] - weights[0]).norm())

    assert last_move("linear") < 0.5 * last_move("constant")


def test_gradient_clipping_acts() -> None:
    clipped = run(params({"train.gradient_clip": 1e-12, "train.epochs": 1}))
    free = run(params({"train.gradient_clip": None, "train.epochs": 1}))
    start = build(params()).posterior.weight
    moved = [float((t.model.posterior.weight - start).detach().norm()) for t in (clipped, free)]
    assert moved[0] < 0.1 * moved[1]  # Adam's own epsilon makes tiny gradients tiny steps


def test_the_moving_average_is_what_is_judged_and_kept() -> None:
    trained = {ema: run(params({"train.ema": ema, "train.epochs": 3})) for ema in (None, 0.5, 0.999)}
    start = build(params()).posterior.weight
    moved = {ema: float((t.model.posterior.weight - start).detach().norm()) for ema, t in trained.items()}
    assert moved[0.999] < 0.5 * moved[0.5] <= moved[None]
    histories = [t.history[-1] for t in trained.values()]
    assert (
        len({row["train/loss"] for row in histories}) == 1
    )  # the weights that are trained are the same ones
    assert len({row["valid/loss"] for row in histories}) == 3
    assert not any(name.startswith("module.") for name in trained[0.5].model.state_dict())


def test_free_bits_keep_a_rate_that_the_weight_would_destroy() -> None:
    changes = {
        "kl.max_weight": 200.0,
        "train.epochs": 25,
        "train.learning_rate": 0.01,
        "kl.annealing_epochs": 0,
    }
    kl = {bits: run(params({**changes, "kl.free_bits": bits})).history[-1]["train/kl"] for bits in (0.0, 1.0)}
    assert kl[0.0] < 0.5
    assert kl[1.0] > 1.5


def test_the_frozen_likelihood_is_of_the_training_split() -> None:
    trained = run(params())
    sigma = measurement.fitted_sigma(trained.model, TRAIN, CPU, 0)
    assert trained.likelihood == Likelihood("gaussian", sigma)
    assert trained.train.elbo == measure(trained.model, TRAIN, trained.likelihood, CPU, 0).elbo
    assert trained.train.images == 70
    on_valid = measurement.fitted_sigma(trained.model, VALID, CPU, 0)
    assert on_valid != sigma


@pytest.mark.parametrize(
    ("changes", "likelihood"),
    [
        ({"objective.sigma": 0.3}, Likelihood("gaussian", 0.3)),
        ({"objective.likelihood": "bernoulli"}, Likelihood("bernoulli")),
        (
            {"objective.reduction": "mean", "kl.max_weight": 0.01},
            Likelihood("gaussian", pytest.approx(math.sqrt(0.01 * 64 / (2 * 3)))),
        ),
    ],
)
def test_a_likelihood_that_the_parameters_fix(changes: dict[str, Any], likelihood: Likelihood) -> None:
    p = params(changes)
    assert likelihood_of(Objective.of(p), build(p), TRAIN, CPU, 0) == likelihood


def test_a_learned_sigma_is_learned() -> None:
    p = params({"objective.sigma": "learned", "train.epochs": 40, "train.learning_rate": 0.02})
    trained = run(p)
    assert trained.model.log_sigma is not None
    sigma = trained.likelihood.sigma
    assert sigma == pytest.approx(math.exp(trained.model.log_sigma.item()))
    assert SMALLEST_SIGMA < sigma < 0.5  # from 1
    assert 0.6 < sigma / math.sqrt(trained.train.mse_sampled) < 1.7


def test_flips_turn_left_and_right_only() -> None:
    p = params({"data.augment": "flip"})
    images, order = torch.from_numpy(TRAIN), torch.arange(64)
    x, noise = loop._batch(p, images[order], 3, CPU.device)
    plain, same_noise = loop._batch(params(), images[order], 3, CPU.device)
    assert torch.equal(noise, same_noise) and noise.shape == (1, 64, 3)
    flipped = [torch.equal(a, b.flip(2)) and not torch.equal(a, b) for a, b in zip(x, plain, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(x, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48
    again, _ = loop._batch(p, images[order], 4, CPU.device)
    assert not torch.equal(again, x)


def test_dynamic_binarisation_draws_anew_at_every_step() -> None:
    p = params({"data.binarise": "dynamic", "objective.likelihood": "bernoulli"})
    images = torch.from_numpy(np.tile(TRAIN[:1], (4000, 1, 1, 1)))
    drawn, _ = loop._batch(p, images, 0, CPU.device)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    expected = torch.from_numpy(TRAIN[0, ..., 0] / 255).float()
    torch.testing.assert_close(drawn.mean(0)[0], expected, atol=0.04, rtol=0)
    again, _ = loop._batch(p, images, 0, CPU.device)
    later, _ = loop._batch(p, images, 1, CPU.device)
    assert torch.equal(again, drawn) and not torch.equal(later, drawn)


def test_colour_and_oblong_images_train() -> None:
    p = params({"data.channels": 3, "data.image_size": [8, 8], "train.epochs": 1})
    assert len(train(p, blobs(40, 1, 3), blobs(20, 2, 3), CPU).history) == 1
    oblong = params({"data.image_size": [8, 11], "train.epochs": 1})
    wide = np.pad(TRAIN, ((0, 0), (0, 0), (0, 3), (0, 0)))
    assert len(train(oblong, wide, wide, CPU).history) == 1


def test_bfloat16_is_near_float32() -> None:
    half = train(params(), TRAIN, VALID, Compute(torch.device("cpu"), "bf16"))
    whole = run(params())
    assert half.history != whole.history
    for row, other in zip(half.history, whole.history, strict=True):
        assert row["train/reconstruction"] == pytest.approx(other["train/reconstruction"], abs=5)
        assert row["valid/mse"] == pytest.approx(other["valid/mse"], rel=0.2)


def test_operations_of_a_training_by_hand() -> None:
    p = params({"model.architecture": "mlp", "model.widths": [10], "model.latent_dim": 2})
    weights = 64 * 10 + 10 * 4 + 2 * 10 + 10 * 64
    assert loop.flops(p) == 3 * 2 * weights
    p = params({"model.widths": [5], "model.latent_dim": 2})
    down, up = 16 * 1 * 5 * 16, 16 * 5 * 1 * 16  # a 4×4 kernel at 4×4 positions
    features = 5 * 16
    linear = features * 4 + 2 * features
    assert loop.flops(p) == 3 * 2 * (down + up + linear)


def test_it_learns_the_spots() -> None:
    trained = run(params({"train.epochs": 60, "train.learning_rate": 0.01, "model.widths": [16, 32]}))
    final = trained.history[trained.kept_epoch - 1]
    assert trained.stopped is None
    assert final["valid/kl"] > 3 and final["valid/active_units"] >= 2
    assert final["valid/mse_sampled"] < 0.4 * MeanImage.of(TRAIN).mse(VALID)
    assert trained.train.elbo > MeanImage.of(TRAIN).elbo(TRAIN, "gaussian") + 20


def test_the_importance_weighted_loss_is_the_log_of_an_average_weight() -> None:
    """Burda 2016, equation 8, against torch.distributions."""
    p = params({"objective.sigma": 0.3, "objective.importance_samples_train": 7, "model.batch_norm": False})
    model, objective = build(p), Objective.of(p)
    x, noise = loop._batch(p, torch.from_numpy(TRAIN)[:9], 0, CPU.device)
    assert noise.shape == (7, 9, 3)
    loss, distortion, rate = loop._importance_weighted_loss(model, objective, x, noise, torch.tensor(1.0))

    mu, logvar = model.encode(x)
    posterior, prior = Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)
    weights, likelihoods = [], []
    for sample in noise:
        z = mu + (0.5 * logvar).exp() * sample
        likelihoods.append(Normal(model.decode(z), 0.3).log_prob(x).flatten(1).sum(1))
        weights.append(likelihoods[-1] + prior.log_prob(z).sum(1) - posterior.log_prob(z).sum(1))
    bound = (torch.stack(weights).double().exp().mean(0).log()).mean()
    torch.testing.assert_close(loss, -bound.float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(distortion, -torch.stack(likelihoods).mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(rate, kl_divergence(posterior, prior).sum(1).mean(), rtol=1e-4, atol=0)


def test_training_on_the_importance_weighted_bound_learns() -> None:
    history = run(
        params({"objective.sigma": 0.15, "train.epochs": 25, "objective.importance_samples_train": 10})
    ).history
    assert history[-1]["valid/elbo"] > history[2]["valid/elbo"] + 10
    last = history[-1]  # at the final weight of 1 the bound is above the ELBO (Jensen)
    assert last["train/loss"] < last["train/reconstruction"] + last["train/kl"]


@pytest.mark.parametrize("changes", [{"model.architecture": "gated_mlp"}, {"model.mean_batch_norm": 0.5}])
def test_other_networks_learn_too(changes: dict[str, Any]) -> None:
    history = run(params({**changes, "train.epochs": 12})).history
    assert history[-1]["valid/mse_sampled"] < 0.8 * history[0]["valid/mse_sampled"]


def test_images_that_exceed_the_memory_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({}, {"train.aggressive_encoder": True}):
        resident = run(params(changes))
        with monkeypatch.context() as patch:
            patch.setattr("vae.training.loop.resident", lambda images, device: images)
            assert_same_bits(run(params(changes)), resident)


def test_the_average_of_the_weights_is_pytorchs_own() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = build(params())
    ours = AveragedModel(model, use_buffers=True)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(4):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(step + 1)
        loop.update_average(ours, model, 0.9)
        loop.count_average(ours, model)
        theirs.update_parameters(model)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
