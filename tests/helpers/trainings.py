"""Trainings within a second, and whether two of them are the same to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.parameters import parse

from tasks import overlay
from vae.compute.devices import Compute
from vae.config.parameters import Parameters
from vae.config.resolved import ResolvedParameters, resolve
from vae.training.loop import Epoch, Trained, train

CPU = Compute(torch.device("cpu"), "fp32")
STEADY: dict[str, Any] = {  # every step alike, for tests of other things than how the weights are updated
    "train.optimizer": "adamw", "train.learning_rate": 3e-3, "train.learning_rate_schedule": "constant",
    "train.warmup": 0.0, "train.weight_decay": 0.0,
}  # fmt: skip
RECIPE = {name: overlay.defaults()[name] for name in STEADY}  # the usual one
TINY: dict[str, Any] = {
    "data.image_size": 8, "model.latent_dim": 3, "model.widths": [6, 8], "kl.annealing_epochs": 2,
    "train.epochs": 4, "train.batch_size": 16, **STEADY,
}  # fmt: skip


def blobs(count: int, seed: int, channels: int = 1) -> np.ndarray:
    """A bright spot somewhere on a dark, slightly noisy ground: two or three latents hold it."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:8, :8]
    where = random.uniform(1.5, 5.5, (count, 2, 1, 1))
    spot = np.exp(-((rows - where[:, 0]) ** 2 + (columns - where[:, 1]) ** 2) / 4)
    grey = (0.9 * spot + 0.05 * random.random((count, 8, 8))).clip(0, 1)
    return np.repeat((grey * 255).astype(np.uint8)[..., None], channels, axis=3)


TRAIN, VALID = blobs(70, 1), blobs(37, 2)
STEPS = len(TRAIN) // TINY["train.batch_size"]  # per epoch


def unresolved(changes: dict[str, Any] | None = None) -> Parameters:
    """A tiny training's parameters with these changes, as `params.yaml` would hold them."""
    return parse(TINY | (changes or {}))


def params(changes: dict[str, Any] | None = None) -> ResolvedParameters:
    p = unresolved(changes)
    return resolve(p, p.train.steps_per_epoch(len(TRAIN)))


def run(p: ResolvedParameters, path: Path | None = None, **more: Any) -> Trained:
    return train(p, TRAIN, VALID, CPU, path, **more)


def assert_same_bits(one: Trained, other: Trained) -> None:
    weights, others = one.model.state_dict(), other.model.state_dict()
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name
    for name in ("history", "likelihood", "kept_epoch", "stopped", "kl_per_latent"):
        assert getattr(one, name) == getattr(other, name), name
    assert len(one.kl_per_latent) == len(one.history)
    np.testing.assert_array_equal(one.train.kl_per_latent, other.train.kl_per_latent)
    assert one.train.elbo == other.train.elbo


class Interrupted(Exception):
    pass


def interrupted(p: ResolvedParameters, path: Path, steps: list[int], epochs: list[int]) -> Trained:
    """Trains to the end, through an interruption at each of these steps and after each of these epochs."""

    def on_step(step: int) -> None:
        if step in steps:
            steps.remove(step)
            raise Interrupted

    def on_epoch(epoch: Epoch) -> None:
        if epoch.row["epoch"] in epochs:
            epochs.remove(int(epoch.row["epoch"]))
            raise Interrupted

    for _ in range(len(steps) + len(epochs)):
        with pytest.raises(Interrupted):
            run(p, path, on_step=on_step, on_epoch=on_epoch)
    return run(p, path, on_step=on_step, on_epoch=on_epoch)
