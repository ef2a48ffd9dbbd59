"""Stages called in this process, in a workspace where each takes a second."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers.trainings import CPU

from tasks import overlay, train, workspace
from tasks.train import Job

EPOCHS, LATENTS = 4, 3

PARAMETERS: dict[str, Any] = {
    "data.source": "npy", "data.path": "x", "data.image_size": 8,
    "model.architecture": "mlp", "model.latent_dim": LATENTS, "model.widths": [8], "model.batch_norm": False,
    "objective.sigma": 0.3, "kl.schedule": "constant", "kl.annealing_epochs": 0,
    "train.epochs": EPOCHS, "train.batch_size": 16, "train.learning_rate": 3e-3, "train.select": "last",
    "train.gradient_clip": None, "train.on_collapse": "continue", "evaluate.importance_samples": 2,
    "preflight.pilot": False,
}  # fmt: skip


def write_params(changes: Mapping[str, Any] | None = None) -> None:
    """The working folder's params.yaml; what is not here has its default."""
    workspace.PARAMS.write_text(overlay.lay_over("", PARAMETERS | dict(changes or {})))


def run_train() -> None:
    """The stage without its locks, with checkpoints in the working folder."""
    images = [np.load(workspace.images(split)) for split in ("train", "valid")]
    train.run(Job(workspace.load_parameters(), *images, CPU), Path("checkpoints").absolute())
