"""Trainings within a second, and whether two of them are the same to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vae.compute.devices import Compute
from vae.config import parameters
from vae.config.parameters import Parameters
from vae.models.likelihood import Likelihood
from vae.training.loop import Epoch, Trained, train

CPU = Compute(torch.device("cpu"), "fp32")


STEPS = 4  # an epoch: 70 images in batches of 16


def params(changes: dict[str, Any] | None = None) -> Parameters:
    values: dict[str, Any] = {
        "seed": 0,
        "data": {
            "source": "npy", "path": "x", "image_size": 8, "channels": 1, "valid_fraction": 0.1,
            "test_fraction": 0.1, "max_bad_fraction": 0.0,
        },
        "model": {"architecture": "conv", "latent_dim": 3, "widths": [6, 8], "batch_norm": True},
        "objective": {"likelihood": "gaussian", "sigma": "optimal", "reduction": "sum"},
        "kl": {"schedule": "linear", "max_weight": 1.0, "annealing_epochs": 2},
        "train": {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, "gradient_clip": 100.0},
        "monitor": {},
        "evaluate": {"importance_samples": 20, "register_as": "vae"},
    }  # fmt: skip
    for name, value in (changes or {}).items():
        section, _, key = name.partition(".")
        if key:
            values[section][key] = value
        else:
            values[section] = value
    return parameters.parse(values)


def blobs(count: int, seed: int, channels: int = 1) -> np.ndarray:
    """A bright spot somewhere on a dark, slightly noisy ground: two or three latents hold it."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:8, :8]
    where = random.uniform(1.5, 5.5, (count, 2, 1, 1))
    spot = np.exp(-((rows - where[:, 0]) ** 2 + (columns - where[:, 1]) ** 2) / 4)
    grey = (0.9 * spot + 0.05 * random.random((count, 8, 8))).clip(0, 1)
    return np.repeat((grey * 255).astype(np.uint8)[..., None], channels, axis=3)


TRAIN, VALID = blobs(70, 1), blobs(37, 2)


def run(p: Parameters, path: Path | None = None, **hooks: Any) -> Trained:
    hooks.setdefault("on_message", lambda line: None)
    return train(p, TRAIN, VALID, CPU, path, **hooks)


def bits(trained: Trained) -> tuple[dict[str, torch.Tensor], list, Likelihood, int, str | None]:
    return (
        trained.model.state_dict(), trained.history, trained.likelihood, trained.kept_epoch, trained.stopped,
    )  # fmt: skip


def assert_same_bits(one: Trained, other: Trained) -> None:
    (weights, *rest), (other_weights, *other_rest) = bits(one), bits(other)
    assert weights.keys() == other_weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, other_weights[name]), name
    assert rest == other_rest
    assert one.kl_per_latent == other.kl_per_latent and len(one.kl_per_latent) == len(one.history)
    np.testing.assert_array_equal(one.train.kl_per_latent, other.train.kl_per_latent)
    assert one.train.elbo == other.train.elbo


class Interrupted(Exception):
    pass


def interrupted(p: Parameters, path: Path, steps: list[int], epochs: list[int]) -> Trained:
    """Trains on, through an interruption at each of these steps and after each of these epochs."""

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


def _stop_after(epoch: Epoch, number: int) -> None:
    if epoch.row["epoch"] == number:
        raise Interrupted
