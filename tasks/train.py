"""Stage `train`: train and valid images in, the kept model and its history out."""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks import lineage, workspace
from tasks.lock import hold
from vae import baseline, checkpoint, devices, diagnostics, parameters, saved, training
from vae.annealing import first_final_epoch
from vae.batches import open_images, steps_per_epoch
from vae.devices import Compute
from vae.grids import reconstruction_grid
from vae.history import HISTORY, Row
from vae.images import Preprocessing
from vae.parameters import Parameters
from vae.rounding import rounded
from vae.training import Epoch, Trained

STEP_IMAGES = 30  # at most so many grids of reconstructions a run, spread over its epochs
GRID_IMAGES = 16


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # so that a cancelled run is told as KILLED
    p = parameters.load(workspace.PARAMS)
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    compute = devices.choose(p.train, training.flops(p, len(train_images)))
    initial = saved.read_weights(Path(p.train.initial_weights)) if p.train.initial_weights else None

    folder = workspace.root() / ".checkpoints" / run_key(p, compute)
    with hold(folder.with_suffix(".lock"), "a training of exactly this"):
        run(p, train_images, valid_images, compute, initial, folder)
    folder.with_suffix(".lock").unlink(missing_ok=True)


def run(
    p: Parameters,
    train_images: np.ndarray,
    valid_images: np.ndarray,
    compute: Compute,
    initial: Any,
    checkpoints: Path,
) -> None:
    from tasks import tracking  # MLflow takes two seconds to import; bad parameters are told before that

    print(
        f"training on {len(train_images)} images of {'×'.join(map(str, train_images.shape[1:]))}, "
        f"{compute.device}, {compute.precision}{', compiled' if compute.compiled else ''}"
    )
    ramp_end = first_final_epoch(p.kl, p.train.epochs)
    if ramp_end >= p.train.epochs:
        print(
            f"WARNING: the KL ramp ends after epoch {ramp_end:g} and the training after {p.train.epochs}: no epoch is "
            "trained at the final weight, so the last one will be kept; lower kl.annealing_epochs"
        )
    run_id = checkpoints / "mlflow_run_id"
    tags = {
        **lineage.git(),
        **lineage.data(),
        **lineage.flow(),
        **{f"compute.{name}": value for name, value in compute.describe().items()},
    }
    name = os.environ.get(lineage.FLOW_RUN_NAME)
    resume = run_id.read_text() if run_id.exists() else None
    with tracking.training_run(name, resume, tags) as mlflow_run:
        checkpoints.mkdir(parents=True, exist_ok=True)
        run_id.write_text(mlflow_run.info.run_id)
        tracking.log_inputs(p, train_images, valid_images)
        with progress(p.train.epochs * steps_per_epoch(len(train_images), p.train.batch_size)) as (step, say):
            trained = training.train(
                p,
                train_images,
                valid_images,
                compute,
                checkpoint_path=checkpoints / "state.pt",
                initial_weights=initial,
                on_step=step,
                on_epoch=lambda epoch: _tell(epoch, p, valid_images, compute, say),
                on_message=say,
            )
        write_history(trained.history)
        sha256 = write_model(p, trained, compute)
        tracking.log_weights(sha256, trained.kept_epoch, trained.stopped)
    checkpoint.remove(checkpoints / "state.pt")
    if trained.stopped:
        print(f"training stopped early: {trained.stopped}")
    print(
        f"kept epoch {trained.kept_epoch} of {len(trained.history)}; weights {sha256[:12]} in {workspace.MODEL}"
    )


def run_key(p: Parameters, compute: Compute) -> str:
    """Names a training by all that shapes its bits: parameters, data, code, and how it is computed."""
    digest = hashlib.sha256()
    shaping = {"seed", "data", "model", "objective", "kl", "train"}
    digest.update(json.dumps(p.model_dump(include=shaping), sort_keys=True).encode())
    digest.update(json.dumps(compute.describe(), sort_keys=True).encode())
    inputs = [
        workspace.images("train"),
        workspace.images("valid"),
        *sorted(Path(training.__file__).parent.glob("*.py")),
    ]
    if p.train.initial_weights:
        inputs.append(Path(p.train.initial_weights))
    for path in inputs:
        digest.update(lineage.sha256(path).encode())
    return digest.hexdigest()[:16]


def write_history(history: list[Row]) -> None:
    """`reports/history.csv`: only what the same parameters reproduce to the bit."""
    workspace.REPORTS.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(history, columns=list(HISTORY))
    whole = ["epoch", "step", "valid/active_units", "valid/informative_units"]
    frame[whole] = frame[whole].astype(int)
    frame.to_csv(workspace.HISTORY, index=False)


def write_model(p: Parameters, trained: Trained, compute: Compute) -> str:
    train_images = open_images(workspace.images("train"))
    measured = trained.train
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
                "mean_image_elbo": baseline.mean_image_elbo(train_images, trained.likelihood.kind),
                "mean_image_mse": baseline.mean_image_mse(train_images),
            }
        ),
    )


def _tell(
    epoch: Epoch, p: Parameters, valid_images: np.ndarray, compute: Compute, say: Callable[[str], None]
) -> None:
    """One line, the history so far, and MLflow."""
    from tasks import tracking

    row = epoch.row
    number = int(row["epoch"])
    say(
        f"epoch {number}/{p.train.epochs}  reconstruction {row['valid/reconstruction']:.2f}  "
        f"KL {row['valid/kl']:.3f}  KL weight {row['kl_weight']:.4g}  total {row['valid/loss']:.2f}  "
        f"active {row['valid/active_units']:.0f}/{p.model.latent_dim}  {epoch.images_per_second:,.0f} images/s"
    )
    timing = {"seconds": epoch.seconds, "images_per_second": epoch.images_per_second}
    _append(workspace.TIMING, {"epoch": number, **timing}, fresh=number == 1)
    _append(workspace.HISTORY, row, fresh=number == 1)

    grid = None
    every = -(-p.train.epochs // STEP_IMAGES)
    if number in (1, p.train.epochs) or number % every == 0:
        originals = valid_images[:GRID_IMAGES]
        decoded = diagnostics.reconstruct(epoch.model, originals, epoch.likelihood, compute)
        grid = reconstruction_grid(originals, decoded)
    tracking.log_epoch(row, timing, grid)


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


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    workspace.run(main)
