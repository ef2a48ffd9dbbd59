"""What a training starts from, and the moving average of its weights."""

import math
from typing import Any

import pytest
import torch
from helpers.parameters import Changes
from helpers.trainings import CPU, TRAIN, params, run
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vae.config.errors import InputError
from vae.metrics.mean_image import MeanImage
from vae.models.vae import build
from vae.training.state import TrainState


def state(changes: Changes | None = None, weights: Any = None) -> TrainState:
    return TrainState(params(changes), TRAIN, CPU.device, weights)


def test_initial_weights_are_where_training_begins() -> None:
    given = build(params({"seed": 7})).state_dict()
    for name, tensor in state(weights=given).model.state_dict().items():
        assert torch.equal(tensor, given[name]), name
    assert not torch.equal(state().model.posterior.weight, given["posterior.weight"])


@pytest.mark.parametrize("changes", [{"model.latent_dim": 4}, {"model.widths": [6]}, {"model.batch_norm": False}])
def test_initial_weights_of_another_model_are_refused(changes: Changes) -> None:
    with pytest.raises(InputError, match=r"^train\.initial_weights: these weights are of another .+$"):
        state(weights=build(params(changes)).state_dict())


def test_a_learned_sigma_starts_at_the_mean_images_error() -> None:
    learned = state({"objective.sigma": "learned"})
    assert learned.model.log_sigma is not None
    sigma = math.sqrt(MeanImage.of(TRAIN).mse(TRAIN))
    assert math.exp(learned.model.log_sigma.item()) == pytest.approx(sigma)


def test_the_moving_average_is_pytorchs_own() -> None:
    """Once its decay has risen to `train.ema`."""
    ours = state({"train.ema": 0.9})
    assert ours.average is not None and ours.judged is ours.average
    theirs = AveragedModel(ours.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in (0, 80, 81, 82):
        with torch.no_grad():
            for tensor in (*ours.model.parameters(), *ours.model.buffers()):
                tensor.add_(step + 1)
        ours.update_average(step)
        theirs.update_parameters(ours.model)
    for name, tensor in theirs.module.state_dict().items():
        assert torch.equal(ours.average.state_dict()[name], tensor), name


def test_a_moving_average_longer_than_the_training_leaves_the_first_weights_behind() -> None:
    averaged = state({"train.ema": 0.9999})
    assert averaged.average is not None
    for step in range(50):
        with torch.no_grad():
            averaged.model.posterior.weight.fill_(float(step))
        averaged.update_average(step)
    assert 40 < averaged.average.posterior.weight.mean().item() < 49


def test_the_moving_average_is_what_is_judged_and_kept() -> None:
    trained = {ema: run(params({"train.ema": ema, "train.epochs": 12})) for ema in (None, 0.5, 0.999)}
    start = build(params()).posterior.weight
    moved = {ema: float((t.model.posterior.weight - start).detach().norm()) for ema, t in trained.items()}
    assert moved[0.999] < moved[0.5] <= moved[None]
    last = [t.history[-1] for t in trained.values()]
    assert len({row["train/loss"] for row in last}) == 1  # the weights that are trained are the same
    assert len({row["valid/loss"] for row in last}) == 3
