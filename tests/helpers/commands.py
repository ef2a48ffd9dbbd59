"""Tiny models on disk, as train leaves them, and in MLflow, as evaluate does; and the command `vae` to use them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import Result
from helpers.models import config, network
from helpers.trainings import CPU
from PIL import Image
from typer.testing import CliRunner

from tasks import workspace
from tasks.cli import app
from tasks.tracking import evaluation_run, store, training_run
from vae.config.constants import SPLITS
from vae.config.parameters import Parameters
from vae.config.preprocessing import Preprocessing
from vae.config.resolved import resolve
from vae.config.sections import Model, Promote
from vae.inference import scoring
from vae.models import saved
from vae.models.saved import PriorFit, Saved, ValidationScores
from vae.priors.mixture import Mixture
from vae.report.facts import Origin

SHAPE, PREPROCESSING = (3, 8, 12), Preprocessing(8, 12, 3)


def write_model(folder: Path = workspace.MODEL, seed: int = 0, prior: Mixture | None = None) -> Saved:
    """A convolutional VAE of 4 latents with random weights; it keeps the scores of 30 validation images."""
    train = {"images": 1439, "elbo": 1.0}
    made = config(SHAPE, Model(architecture="conv", latent_dim=4, widths=[4]), kept_epoch=7, train=train)
    model = network(made, seed).eval()
    valid = np.random.default_rng(1).integers(0, 256, (30, 8, 12, 3), dtype=np.uint8)
    percentiles = scoring.percentiles(model, valid, made.likelihood, CPU)
    scores = ValidationScores(images=len(valid), score_percentiles=percentiles)
    scored = made.model_copy(update={"valid": scores, "prior": PriorFit(name="Gaussian") if prior else PriorFit()})
    saved.save(folder, model, scored, prior)
    return saved.load(folder)


def write_images(count: int = 40) -> None:
    """The arrays of the three splits."""
    workspace.IMAGES.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for split in SPLITS:
        images = random.integers(0, 256, (count, *SHAPE[1:], SHAPE[0]), dtype=np.uint8)
        np.save(workspace.images(split), images)


def evaluate(
    model: Saved,
    test: Mapping[str, float | None],
    elbos: np.ndarray,
    verdict: str = "healthy",
    promote: Any = "dry_run",
    report: Callable[[Origin], str] = str,
) -> str:
    """Logs an evaluation as the stage does; returns the model's URI."""
    workspace.PLOTS.mkdir(parents=True, exist_ok=True)
    (workspace.PLOTS / "kl.png").write_bytes(b"png")
    p = resolve(Parameters(promote=Promote(mode=promote)), 1)
    metrics = {"valid": {"elbo": 4.0, "nll": None}, "test": test}
    monitor = {"verdict": verdict, "summary": "So it is."}
    return evaluation_run.log_evaluation(model, metrics, monitor, report, p, elbos, ["Detail is lost."])


def register(name: str, elbo: float) -> str:
    """The run of a training of the model in the workspace, with a report and a registered model; returns its id."""
    write_images()
    model = saved.load(workspace.MODEL)
    with training_run.training_run(name, Path(f"{name}.id"), {}) as run:
        run.parameters |= {"kl.max_weight": elbo, "train.epochs": 2}
        run.log_history([])
        run.tag({store.WEIGHTS: model.sha256})
    elbos = np.random.default_rng(0).normal(elbo, 0.1, 40)
    evaluate(model, {"elbo": elbo}, elbos, report=lambda origin: f"<html>{name}</html>")
    return str(run.run_id)


def vae(*arguments: object) -> Result:
    return CliRunner().invoke(app.app, [str(argument) for argument in arguments])


def picture(file: Path, seed: int) -> None:
    """A photo of another size than the model's."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
