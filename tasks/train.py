"""Stage `train`: train and valid images in, the kept model and its history out."""

import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from ruamel.yaml import YAML
from torch import Tensor

from tasks import workspace
from tasks.processes import contention, entry
from tasks.processes.lock import hold
from tasks.tracking import lineage
from vae.collapse import linear_theory, remedies, restarts
from vae.collapse.restarts import Attempt
from vae.compute import devices
from vae.compute.batches import for_measuring, open_images
from vae.compute.devices import Compute
from vae.config import parameters
from vae.config.errors import InputError
from vae.config.parameters import Monitor, Parameters
from vae.config.text import rounded
from vae.data.images import Preprocessing
from vae.inference import scoring
from vae.inference.grids import reconstruction_grid
from vae.metrics import measurement
from vae.metrics.mean_image import MeanImage
from vae.models import saved
from vae.schedules.kl import first_final_epoch
from vae.training import checkpoint, loop
from vae.training.history import HISTORY, Row
from vae.training.loop import Epoch, Trained

STEP_IMAGES = 30  # at most so many grids of reconstructions a run, spread over its epochs
GRID_IMAGES = 16
CONDITIONS = "conditions.json"  # beside the checkpoints: how they were computed


def main() -> None:
    p = workspace.load_parameters()
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    compute = devices.choose(p.train, loop.flops(p), len(train_images))
    initial = initial_weights(p.train.initial_weights)

    # The lock is of the folder that the outputs go to: an experiment in a copy of the workspace has its own.
    # It is waited for: a trainer whose DVC was killed takes a moment to end.
    with hold(Path(".run/train.lock"), "a training", seconds=15, tell=True):
        checkpoints = workspace.root() / ".checkpoints"
        key, here = run_key(p), compute.describe() | lineage.machine()
        del here["machine.system"]  # an updated kernel changes no bit
        place = checkpoints / f"{key}-{_digest(here)[:8]}"
        checkpoint.remove_finished(checkpoints, but=place)
        for other in sorted(checkpoints.glob(f"{key}-*/{CONDITIONS}")):
            if other.parent != place:
                print(_other_conditions(other, here))
        # Copies of the workspace share the checkpoints: two of the same training would write into one another's.
        with hold(
            workspace.root() / ".run" / f"{place.name}.lock", "the same training", seconds=15, tell=True
        ):
            _note_conditions(place / CONDITIONS, here)
            run(p, train_images, valid_images, compute, initial, place)


def initial_weights(path: str | None) -> dict[str, Tensor] | None:
    if not path:
        return None
    if Path(path).absolute().is_relative_to(workspace.MODEL.absolute()):
        raise InputError(
            f"train.initial_weights = {path}: DVC removes {workspace.MODEL} before a training; copy the file elsewhere"
        )
    try:
        return saved.read_weights(Path(path))
    except InputError as error:
        raise InputError(f"train.initial_weights = {path}: {error}") from None


def run(
    p: Parameters,
    train_images: np.ndarray,
    valid_images: np.ndarray,
    compute: Compute,
    initial: dict[str, Tensor] | None,
    checkpoints: Path,
) -> None:
    began = contention.mark()
    from tasks.tracking import (
        training_run,  # MLflow takes two seconds to import; bad parameters are told before that
    )

    print(
        f"training on {len(train_images)} images of {'×'.join(map(str, train_images.shape[1:]))}, "
        f"{compute.device}, {compute.precision}{', compiled' if compute.compiled else ''}"
    )
    if compute.device.type == "cpu" and (told := contention.warning(began, torch.get_num_threads())):
        print(f"WARNING: {told}")
    ramp_end = first_final_epoch(p.kl, p.train.epochs)
    if ramp_end >= p.train.epochs:
        print(
            f"WARNING: the KL ramp ends after epoch {ramp_end:g} and the training after {p.train.epochs}: no epoch is "
            "trained at the final weight, so the last one will be kept; "
            "lower kl.annealing_epochs, or kl.annealing_steps where it is set"
        )
    for warning in (
        workspace.read_json(workspace.PREFLIGHT)["warnings"] if workspace.PREFLIGHT.exists() else []
    ):
        print(f"WARNING: preflight: {warning}")  # also where preflight itself had nothing to do anew
    tags = {
        **lineage.git(),
        **lineage.data(),
        **lineage.flow(),
        **{f"compute.{name}": value for name, value in compute.describe().items()},
    }

    def train(now: Parameters, checkpoints: Path, which: str = "") -> Trained:
        steps = now.train.epochs * now.train.steps_per_epoch(len(train_images))
        with progress(steps) as (step, tell):

            def say(line: str) -> None:
                tell(which + line)

            return loop.train(
                now,
                train_images,
                valid_images,
                compute,
                checkpoint_path=checkpoints / "state.pt",
                initial_weights=None if now.model != p.model else initial,
                on_step=step,
                on_epoch=lambda epoch: _tell(epoch, now, valid_images, compute, say),
                on_resume=_catch_up,
                on_message=say,
            )

    def attempt(now: Parameters, number: int, reason: str) -> Trained:
        place = checkpoints / f"attempt-{number}"
        why = {"attempt": str(number), "reason": reason}
        if initial is not None and now.model != p.model:
            print("train.initial_weights are of another network than this attempt's: it starts from new ones")
        with training_run.training_run(f"attempt {number}", place / "mlflow_run_id", why, nested=True) as run:
            nested.append(run.info.run_id if run else None)
            return train(now, place, f"attempt {number}: ")

    nested: list[str | None] = []  # the attempts' runs, where MLflow answered

    name = os.environ.get(lineage.FLOW_RUN_NAME)
    with training_run.training_run(name, checkpoints / "mlflow_run_id", tags):
        training_run.log_inputs(parameters.load(workspace.PARAMS), train_images, valid_images)
        if p.train.on_collapse == "remedy":
            tried = remedied(p, train_images, valid_images, compute, attempt)
            kept = restarts.best(tried)
            trained, sha256 = kept.trained, write_model(kept.parameters, kept.trained, compute, tried)
            training_run.log_missing(trained.history)
            for run_id, one in zip(nested, tried, strict=False):
                training_run.log_attempt(
                    run_id, one.verdict.verdict, one.verdict.reasons, remedies.in_words(one.changes)
                )
            words = "; ".join(remedies.in_words(kept.changes)) or "none"
            training_run.log_remedy(kept.verdict.verdict, words, len(tried))
        else:
            trained = train(p, checkpoints)
            sha256 = write_model(p, trained, compute, [])
        write_history(trained.history, trained.kl_per_latent)
        training_run.log_weights(sha256, trained.kept_epoch, trained.stopped)
    # Not removed yet: DVC has still to take the results in, and whoever is killed meanwhile need not train again.
    checkpoint.finish(checkpoints)
    if trained.stopped:
        print(f"training stopped early: {trained.stopped}")
    print(
        f"kept epoch {trained.kept_epoch} of the {len(trained.history)} trained; "
        f"weights {sha256[:12]} in {workspace.MODEL}"
    )


def remedied(
    p: Parameters,
    train_images: np.ndarray,
    valid_images: np.ndarray,
    compute: Compute,
    train: Callable[[Parameters, int, str], Trained],
) -> list[Attempt]:
    """All attempts, each judged as monitor judges, but by the usual thresholds of an active unit.

    An attempt that had ended before an interruption is found in its checkpoint, which holds its last epoch.
    """
    pixels = math.prod(p.data.image_shape)
    spectrum = linear_theory.spectrum_of(workspace.read_json(workspace.PREFLIGHT), pixels)
    p = p.model_copy(update={"monitor": Monitor()})
    return restarts.attempts(p, spectrum, train_images, valid_images, compute, train)


def run_key(p: Parameters) -> str:
    """Names a training by what dvc.yaml says it depends on: parameters, data and code."""
    digest = hashlib.sha256()
    stage = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["train"]
    values = {key: functools.reduce(getattr, key.split("."), p) for key in stage["params"]}
    digest.update(json.dumps(values, sort_keys=True, default=lambda section: section.model_dump()).encode())
    inputs = [Path(dep) for dep in stage["deps"]]
    if p.train.initial_weights:
        inputs.append(Path(p.train.initial_weights))
    for path in inputs:
        for file in _files(path):
            digest.update(f"{file.as_posix()} {workspace.sha256(file)}\n".encode())
    return digest.hexdigest()[:16]


def _files(dependency: Path) -> list[Path]:
    """A file itself, or all files of a folder, as DVC counts them: without Python's caches."""
    if not dependency.is_dir():
        return [dependency]
    return sorted(f for f in dependency.rglob("*") if f.is_file() and "__pycache__" not in f.parts)


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _note_conditions(path: Path, here: Mapping[str, str]) -> None:
    """What the checkpoints beside it were computed with. A disk that is full or read-only is not the training's end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(here, indent=2), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        print(f"warning: {error}; without checkpoints an interruption costs the whole training")


def _other_conditions(noted: Path, here: Mapping[str, str]) -> str:
    """Why an interrupted training is not gone on with: under other conditions its bits would be neither's."""
    try:
        theirs = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        theirs = {}
    differ = ", ".join(
        f"{name} {theirs.get(name)} (here {here.get(name)})"
        for name in sorted({*theirs, *here})
        if theirs.get(name) != here.get(name)
    )
    return (
        f"WARNING: {noted.parent} holds an interrupted training of the same parameters, made with {differ}: this one "
        "starts anew; under the same conditions it would go on from there"
    )


def write_history(history: list[Row], kl_per_latent: list[list[float]]) -> None:
    """`reports/history.csv` and `reports/kl_per_latent.csv`: only what the same parameters reproduce to the bit."""
    workspace.REPORTS.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(history, columns=list(HISTORY))
    whole = ["epoch", "step", "valid/active_units", "valid/informative_units"]
    frame[whole] = frame[whole].astype(int)
    frame.to_csv(workspace.HISTORY, index=False)
    rows = [latent_row(number, kl) for number, kl in enumerate(kl_per_latent, 1)]
    pd.DataFrame(rows).to_csv(workspace.KL_PER_LATENT, index=False)


def latent_row(epoch: int, kl_per_latent: list[float]) -> Row:
    """The KL of each latent over the validation split, in nats per image."""
    return {"epoch": epoch, **{f"z{j}": kl for j, kl in enumerate(kl_per_latent)}}


def write_model(p: Parameters, trained: Trained, compute: Compute, tried: list[Attempt]) -> str:
    """The kept model, with the attempts before it, if any; returns the hash of its weights."""
    kept = restarts.best(tried) if tried else None
    measured, train_images = trained.train, for_measuring(open_images(workspace.images("train")), p)
    valid_images = open_images(workspace.images("valid"))
    mean_image = MeanImage.of(train_images)
    return saved.save(
        workspace.MODEL,
        trained.model,
        architecture=p.model.model_dump(),
        image_shape=p.data.image_shape,
        likelihood=trained.likelihood,
        preprocessing=Preprocessing.of(p).to_dict(),
        precision=compute.precision,
        kept_epoch=trained.kept_epoch,
        stopped=trained.stopped,
        train=rounded(
            {
                "images": measured.images,
                "elbo": measured.elbo,
                "reconstruction": measured.distortion,
                "kl": measured.rate,
                "mse": measured.mse,
                "mse_sampled": measured.mse_sampled,
                "mean_image_elbo": mean_image.elbo(train_images, trained.likelihood.kind),
                "mean_image_mse": mean_image.mse(train_images),
            }
        ),
        changes=kept.changes if kept else {},
        remedies=[
            {
                "changes": attempt.changes,
                "fitted_prior": attempt.prior is not None,
                "verdict": attempt.verdict.verdict,
                "reasons": attempt.verdict.reasons,
                "kept": attempt is kept,
            }
            for attempt in tried
            if len(tried) > 1
        ],
        prior=kept.prior if kept else None,
        valid=rounded(
            {
                "images": len(valid_images),
                "score_percentiles": scoring.percentiles(
                    trained.model, valid_images, trained.likelihood, compute
                ),
            }
        ),
    )


def _tell(
    epoch: Epoch, p: Parameters, valid_images: np.ndarray, compute: Compute, say: Callable[[str], None]
) -> None:
    """One line, the history so far, and MLflow."""
    from tasks.tracking import training_run

    row = epoch.row
    number = int(row["epoch"])
    say(
        f"epoch {number}/{p.train.epochs}  valid: reconstruction {row['valid/reconstruction']:.2f}  "
        f"KL {row['valid/kl']:.3f}  KL weight {row['kl_weight']:.4g}  total {row['valid/loss']:.2f}  "
        f"active {row['valid/active_units']:.0f}/{p.model.latent_dim}  {epoch.images_per_second:,.0f} images/s"
    )
    timing = {"seconds": epoch.seconds, "images_per_second": epoch.images_per_second}
    _append(workspace.TIMING, {"epoch": number, **timing}, fresh=number == 1)
    _append(workspace.HISTORY, row, fresh=number == 1)
    _append(workspace.KL_PER_LATENT, latent_row(number, epoch.kl_per_latent), fresh=number == 1)

    grid = None
    every = -(-p.train.epochs // STEP_IMAGES)
    if number in (1, p.train.epochs) or number % every == 0:
        originals = valid_images[:GRID_IMAGES]
        decoded = measurement.reconstruct(epoch.model, originals, epoch.likelihood, compute)
        grid = reconstruction_grid(originals, decoded)
    training_run.log_epoch(row, timing, grid)


def _catch_up(history: list[Row], kl_per_latent: list[list[float]]) -> None:
    """What a resumed training has behind it: the files, which DVC removed, and epochs that MLflow has not seen."""
    from tasks.tracking import training_run

    write_history(history, kl_per_latent)
    training_run.log_missing(history)


def _append(path: Path, row: dict[str, float], fresh: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([row]).to_csv(
        path, mode="w" if fresh else "a", header=fresh or not path.exists(), index=False
    )


@contextmanager
def progress(steps: int) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar on a terminal; elsewhere nothing but the lines that are said."""
    if not sys.stdout.isatty():
        yield (lambda step: None), (lambda line: print(line, flush=True))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=steps)
        yield (lambda step: bar.update(task, completed=step)), bar.console.print


if __name__ == "__main__":
    entry.run(main)
