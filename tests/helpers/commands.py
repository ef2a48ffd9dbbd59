"""Models on disk and in MLflow's registry, for tests of the commands."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from tasks import workspace
from tasks.cli import app
from tasks.tracking import store, training_run
from vae.compute.devices import Compute
from vae.config.constants import SPLITS
from vae.config.preprocessing import Preprocessing
from vae.inference import scoring
from vae.models import saved
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.models.vae import VAE

ARCHITECTURE: dict[str, Any] = {"architecture": "conv", "latent_dim": 4, "widths": [4], "batch_norm": True}

SHAPE = (3, 8, 12)


PREPROCESSING = Preprocessing(8, 12, 3)


def vae(*arguments: object) -> Result:
    return CliRunner().invoke(app.app, [str(argument) for argument in arguments])


def write_model(folder: Path = workspace.MODEL, seed: int = 0) -> Saved:
    torch.manual_seed(seed)
    likelihood, valid = Likelihood("gaussian", 0.2), np.random.default_rng(1).integers(0, 256, (30, 8, 12, 3))
    model = VAE(SHAPE, **ARCHITECTURE).eval()
    known = scoring.percentiles(
        model, valid.astype(np.uint8), likelihood, Compute(torch.device("cpu"), "fp32")
    )
    saved.save(
        folder, model, ARCHITECTURE, SHAPE, likelihood, PREPROCESSING.to_dict(), "fp32", 1, None, {"elbo": 1.0},
        valid={"images": 30, "score_percentiles": known},
    )  # fmt: skip
    return saved.load(folder)


def picture(file: Path, seed: int) -> None:
    """A photo of another size than the model's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def register(name: str, elbo: float) -> str:
    """A run with metrics, a report and a registered model, as train and evaluate leave it."""
    import mlflow

    from vae.config import parameters

    model = saved.load(workspace.MODEL)
    with training_run.training_run(name, Path(f"{name}.id"), {"data.sha256": "d"}) as run:
        assert run is not None
        for parameter, value in {"kl.max_weight": elbo, "train.epochs": 2}.items():
            mlflow.MlflowClient().log_param(run.info.run_id, parameter, value)
        training_run.log_weights(model.sha256, 1, None)
    Path("plots").mkdir(exist_ok=True)
    workspace.IMAGES.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        np.save(workspace.images(split), np.zeros((40, *SHAPE[1:], SHAPE[0]), np.uint8))
    store.log_evaluation(
        model, {"valid": {}, "test": {"elbo": elbo}}, {"verdict": "healthy"}, Path("plots"),
        lambda links: f"<html>{name}</html>", parameters.load(workspace.PARAMS),
        np.random.default_rng(0).normal(elbo, 0.1, 40),
    )  # fmt: skip
    return run.info.run_id
