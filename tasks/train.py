"""Stage `train`: train and valid images in, the kept model and its history out."""

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from tasks import workspace
from tasks.processes import checkpoint_folder, contention, entry, events, progress
from tasks.processes.lock import hold
from tasks.tracking import lineage, store
from tasks.tracking.training_run import TrainingRun, training_run
from vae.collapse import remedies, restarts
from vae.collapse.pilot_curve import curve_of
from vae.collapse.restarts import Attempt
from vae.compute import devices
from vae.compute.batches import for_measuring, open_images
from vae.compute.devices import Compute
from vae.config import loading
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.config.resolved import ResolvedParameters, ResolvedTrain, usual_learning_rate
from vae.config.sections import Monitor
from vae.config.text import rounded
from vae.inference import generate, scoring
from vae.inference.grids import reconstruction_grid
from vae.metrics.mean_image import MeanImage
from vae.models import saved
from vae.models.flops import training_flops
from vae.models.saved import Attempted, ModelConfig, PriorFit, ValidationScores
from vae.priors.fitting import Fitted
from vae.schedules.kl import first_final_epoch
from vae.training import checkpoint, loop
from vae.training.history import COLUMNS, Row
from vae.training.loop import Epoch, Trained
from vae.training.state import TrainState

STEP_IMAGES = 30  # at most this many grids of reconstructions per run, spread over its epochs
GRID_IMAGES = 16

log = logging.getLogger(__name__)


def main() -> None:
    p = workspace.load_parameters()
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    compute = devices.choose(p.train, training_flops(p), len(train_images))
    job = Job(p, train_images, valid_images, compute, initial_weights(p.train.initial_weights))
    # One lock per output folder: an experiment in a copy of the workspace has its own.
    with hold(Path(".run/train.lock"), "a training", seconds=checkpoint_folder.WAIT):
        conditions = compute.describe() | lineage.machine()
        for name in ("machine.system", "most_threads"):  # neither changes a bit of the training
            del conditions[name]
        with checkpoint_folder.held(p, conditions) as checkpoints:
            announce(job)
            with contention.coped_with(compute):
                run(job, checkpoints)


def initial_weights(path: str | None) -> dict[str, Tensor] | None:
    if not path:
        return None
    if Path(path).absolute().is_relative_to(workspace.MODEL.absolute()):
        raise InputError(
            f"train.initial_weights = {path}: DVC removes {workspace.MODEL} before training; "
            "copy the file to another folder"
        )
    try:
        return saved.read_weights(Path(path))
    except InputError as error:
        raise InputError(f"train.initial_weights = {path}: {error}") from None


@dataclass(frozen=True)
class Job:
    """What all attempts of a training share: parameters, images, device, initial weights."""

    p: ResolvedParameters
    train_images: np.ndarray
    valid_images: np.ndarray
    compute: Compute
    initial: dict[str, Tensor] | None = None

    def train(
        self, p: ResolvedParameters, tracked: TrainingRun, checkpoints: Path, attempt: int | None = None
    ) -> Trained:
        """One training, recorded epoch by epoch. A remedy attempt passes changed parameters."""
        steps = p.train.epochs * p.train.steps_per_epoch(len(self.train_images))
        recorder = Recorder(p, self.valid_images, self.compute, tracked, attempt)
        with progress.bar("training", steps, unit="steps") as advance:
            return loop.train(
                p,
                self.train_images,
                self.valid_images,
                self.compute,
                checkpoint_path=checkpoints / "state.pt",
                initial_weights=self.initial if p.model == self.p.model else None,
                on_step=advance,
                on_epoch=recorder.record,
                on_resume=recorder.catch_up,
            )


def announce(job: Job) -> None:
    """Log what will be trained, and what to know before."""
    p, compute = job.p, job.compute
    log.info(
        f"training on {len(job.train_images)} images of {'×'.join(map(str, job.train_images.shape[1:]))}, "
        f"{compute.device}, {compute.precision}{', compiled' if compute.compiled else ''}"
    )
    warn_of_the_others_rate(p.train)
    ramp_end = first_final_epoch(p.kl, p.train.epochs)
    if ramp_end >= p.train.epochs:
        log.warning(
            f"the KL ramp ends after epoch {ramp_end:g} and training after {p.train.epochs}: "
            "no epoch trains at the final weight, so the last one will be kept; "
            "lower kl.annealing_epochs (or kl.annealing_steps)"
        )
    if workspace.PREFLIGHT.exists():  # also where DVC skipped preflight
        for warning in workspace.read_json(workspace.PREFLIGHT)["warnings"]:
            log.warning(f"preflight: {warning}")


def warn_of_the_others_rate(train: ResolvedTrain) -> None:
    """Muon's usual learning rate is about four times AdamW's."""
    other = "adamw" if train.optimizer == "muon" else "muon"
    usual, others = (usual_learning_rate(train.model_copy(update={"optimizer": o})) for o in (train.optimizer, other))
    if (train.learning_rate - others) * (others - usual) >= 0:
        log.warning(
            f"train.learning_rate = {train.learning_rate:g} is one for {other} (usual: {others:.2g}), not for "
            f"train.optimizer = {train.optimizer} (usual: {usual:.2g}): `auto` takes the usual one"
        )


def run(job: Job, checkpoints: Path) -> None:
    """Train in an MLflow run and write the outputs."""
    name = os.environ.get(lineage.FLOW_RUN_NAME)
    tags = {
        **lineage.commit(),
        **lineage.data(),
        **lineage.flow(),
        **{f"compute.{name}": value for name, value in job.compute.describe().items()},
    }
    tags["learning_rate"] = f"{job.p.train.learning_rate:g}"  # where the parameter says auto
    tags["kl_weight"] = f"{job.p.kl.max_weight:g}"  # where the parameter is a wish
    user = loading.load(workspace.PARAMS)
    if user.train.budget is not None:
        tags[lineage.BUDGET_EPOCHS] = str(job.p.train.epochs)
        user = user.model_copy(update={"train": user.train.model_copy(update={"epochs": job.p.train.epochs})})
    with training_run(name, checkpoints / "mlflow_run_id", tags) as tracked:
        tracked.log_inputs(user, job.train_images, job.valid_images)
        tried = remedied(job, tracked, checkpoints) if job.p.train.on_collapse == "remedy" else []
        kept = restarts.best(tried) if tried else None
        trained = kept.trained if kept else job.train(job.p, tracked, checkpoints)
        prior = kept.prior if kept else restarts.fitted_prior(job.p, trained, job.train_images, job.compute)
        log.info(f"prior {'fitted to the latents' if job.p.model.fits_a_prior else 'of samples'}: {prior.name}")
        sha256 = write_model(job, trained, prior, kept, tried)
        write_history(trained.history, trained.kl_per_latent)
        tracked.tag({store.WEIGHTS: sha256, "kept_epoch": str(trained.kept_epoch), "stopped": trained.stopped or "no"})
    # Kept until monitor runs: DVC has yet to cache the results, and a kill meanwhile would lose them.
    checkpoint.finish(checkpoints)
    if trained.stopped:
        log.info(f"training stopped early: {trained.stopped}")
    events.emit("kept", epoch=trained.kept_epoch, epochs=len(trained.history))
    log.info(
        f"kept epoch {trained.kept_epoch} of the {len(trained.history)} trained; "
        f"weights {sha256[:12]} in {workspace.MODEL}"
    )


def remedied(job: Job, tracked: TrainingRun, checkpoints: Path) -> list[Attempt]:
    """Train, and restart with remedies while the verdict asks for it; returns all attempts.

    Verdicts use the default thresholds of the monitor. Attempts that ended before an interruption are restored from
    their checkpoints.
    """
    runs: list[TrainingRun] = []

    def attempt(p: ResolvedParameters, number: int, reason: str) -> Trained:
        place = checkpoints / f"attempt-{number}"
        if job.initial is not None and p.model != job.p.model:
            log.info("train.initial_weights do not fit the network of this attempt: it starts from random weights")
        tags = {"attempt": str(number), "reason": reason}
        with training_run(f"attempt {number}", place / "mlflow_run_id", tags, parent=tracked) as run:
            runs.append(run)
            return job.train(p, run, place, attempt=number)

    curve = curve_of(workspace.read_json(workspace.PREFLIGHT), math.prod(job.p.data.image_shape))
    p = job.p.model_copy(update={"monitor": Monitor()})
    tried = restarts.attempts(p, curve, job.train_images, job.valid_images, job.compute, attempt)
    kept = restarts.best(tried)
    tracked.log_history(kept.trained.history)
    for run, one in zip(runs, tried, strict=False):  # an attempt that could not run has no verdict
        run.tag(
            {
                "verdict": one.verdict.verdict,
                "reasons": "; ".join(one.verdict.reasons),
                "changes": "; ".join(remedies.in_words(one.changes)) or "none",
            }
        )
    words = "; ".join(remedies.in_words(kept.changes)) or "none"
    tracked.tag({"verdict": kept.verdict.verdict, "remedy": words, "attempts": str(len(tried))})
    return tried


@dataclass(frozen=True)
class Recorder:
    """Records each epoch: a log line, the history files, an event, and the MLflow run."""

    p: ResolvedParameters
    valid_images: np.ndarray
    compute: Compute
    tracked: TrainingRun
    attempt: int | None

    def record(self, epoch: Epoch) -> None:
        row, number, epochs = epoch.row, int(epoch.row["epoch"]), self.p.train.epochs
        which = "" if self.attempt is None else f"attempt {self.attempt}: "
        timing = {"seconds": epoch.seconds, "images_per_second": epoch.images_per_second}
        write_history([row], [epoch.kl_per_latent], append=number > 1)
        _write(workspace.TIMING, pd.DataFrame([{"epoch": number, **timing}]), append=number > 1)
        events.emit("epoch", attempt=self.attempt, epoch=number, epochs=epochs, **timing)
        log.info(
            f"{which}epoch {number}/{epochs}  valid: reconstruction {row['valid/reconstruction']:.2f}  "
            f"KL {row['valid/kl']:.3f}  KL weight {row['kl_weight']:.4g}  total {row['valid/loss']:.2f}  "
            f"active {row['valid/active_units']:.0f}/{self.p.model.units}  {epoch.images_per_second:,.0f} images/s"
        )
        self.tracked.log_epoch(row, timing, self._grid(epoch, number))

    def catch_up(self, state: TrainState) -> None:
        """On resume, restore the history files, which DVC removed, and send MLflow the epochs that it lacks."""
        write_history(state.history, state.kl_per_latent)
        self.tracked.log_history(state.history)

    def _grid(self, epoch: Epoch, number: int) -> np.ndarray | None:
        """Validation images above their reconstructions, for some epochs only."""
        every = math.ceil(self.p.train.epochs / STEP_IMAGES)
        if number not in (1, self.p.train.epochs) and number % every:
            return None
        originals = self.valid_images[:GRID_IMAGES]
        reconstructions = generate.reconstruct(epoch.model, originals, epoch.likelihood, self.compute)
        return reconstruction_grid(originals, reconstructions)


def write_history(history: list[Row], kl_per_latent: list[list[float]], append: bool = False) -> None:
    """Write `reports/history.csv` and `reports/kl_per_latent.csv`, which the same parameters reproduce exactly.

    kl_per_latent: of the validation split in nats per image, a number for each latent, or channel of a map, and row.
    """
    whole = ("epoch", "step", "valid/active_units", "valid/informative_units")
    more = [name for name in history[0] if name not in COLUMNS] if history else []  # of losses on features
    frame = pd.DataFrame(history, columns=[*COLUMNS, *more]).astype(dict.fromkeys(whole, int))
    latents = pd.DataFrame(kl_per_latent).add_prefix("z")
    latents.insert(0, "epoch", frame["epoch"])
    _write(workspace.HISTORY, frame, append)
    _write(workspace.KL_PER_LATENT, latents, append)


def _write(path: Path, table: pd.DataFrame, append: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not append:
        path.unlink(missing_ok=True)  # it may be a link into DVC's cache
    table.to_csv(path, mode="a" if append else "w", header=not (append and path.exists()), index=False)


def write_model(job: Job, trained: Trained, prior: Fitted, kept: Attempt | None, tried: list[Attempt]) -> str:
    """Save the kept model and the list of attempts; returns the SHA-256 of the weights."""
    p, measured = kept.parameters if kept else job.p, trained.train
    train_images = for_measuring(job.train_images, p)
    mean_image = MeanImage.of(train_images)
    train = {
        "images": measured.images,
        "elbo": measured.elbo,
        "reconstruction": measured.distortion,
        "kl": measured.rate,
        "mse": measured.mse,
        "mse_sampled": measured.mse_sampled,
        "mean_image_elbo": mean_image.elbo(train_images, trained.likelihood),
        "mean_image_mse": mean_image.mse(train_images),
    }
    percentiles = scoring.percentiles(trained.model, job.valid_images, trained.likelihood, job.compute)
    config = ModelConfig(
        format=1,
        model=p.model,
        image_shape=p.data.image_shape,
        likelihood=trained.likelihood,
        preprocessing=Preprocessing.of(p),
        precision=job.compute.precision,
        kept_epoch=trained.kept_epoch,
        stopped=trained.stopped,
        train=rounded(train),
        latent_mean=rounded(measured.aggregate_mean.tolist()) if p.model.latent_shape else None,
        latent_std=rounded(np.sqrt(measured.aggregate_variance).tolist()) if p.model.latent_shape else None,
        prior=PriorFit(name=prior.name, log_likelihood=rounded(prior.log_likelihood)),
        valid=ValidationScores(images=len(job.valid_images), score_percentiles=rounded(percentiles)),
        changes=kept.changes if kept else {},
        remedies=[attempted(one, one is kept) for one in tried] if len(tried) > 1 else [],
    )
    return saved.save(workspace.MODEL, trained.model, config, prior.prior)


def attempted(attempt: Attempt, kept: bool) -> Attempted:
    return Attempted(
        changes=attempt.changes,
        verdict=attempt.verdict.verdict,
        reasons=attempt.verdict.reasons,
        kept=kept,
    )


if __name__ == "__main__":
    entry.run(main)
