"""Where things are, and how a stage's program begins and ends.

A stage reads and writes relative to its working folder, because DVC may run it in a copy of the
workspace (`dvc exp run --temp`). Stores, locks and checkpoints are one for all copies: they stand
under `root()`.
"""

import contextlib
import errno
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil

from tasks import PROJECT
from vae import parameters
from vae.errors import InputError
from vae.parameters import Parameters

PARAMS = Path("params.yaml")

IMAGES = Path("data/images")
DECODED = Path("data/.ingest")  # what an ingest has decoded so far
MANIFEST = Path("data/manifest.parquet")
MODEL = Path("models/vae")
REPORTS = Path("reports")

VALIDATION = REPORTS / "validation.json"
VALIDATION_FAILURES = REPORTS / "validation_failures.csv"
PREFLIGHT = REPORTS / "preflight.json"
PREFLIGHT_PLOT = REPORTS / "preflight.png"
HISTORY = REPORTS / "history.csv"
KL_PER_LATENT = REPORTS / "kl_per_latent.csv"
TIMING = REPORTS / "timing.csv"
MONITOR = REPORTS / "monitor.json"
METRICS = REPORTS / "metrics.json"
SUMMARY = REPORTS / "summary.json"
LATENTS = REPORTS / "latents.csv"
PLOTS = REPORTS / "plots"
REPORT = REPORTS / "report.html"

SPLITS = ("train", "valid", "test")

MLFLOW_PORT = int(os.environ.get("VAE_TRAIN_MLFLOW_PORT", "5000"))

# What a user can put right about a disk or a folder.
_PLACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

_SHELLS = ("sh", "dash", "bash", "zsh", "ksh", "fish")
_REAPERS = ("systemd", "init", "launchd", "tini", "dumb-init", "docker-init")

INPUT_ERROR = 2  # exit code: the user has to change something, so trying again is of no use


def root() -> Path:
    """The folder of the MLflow store, the locks and the checkpoints: the main workspace, also from a copy."""
    return Path(os.environ.get("DVC_ROOT") or PROJECT).resolve()


def mlflow_url() -> str:
    """Where a person finds MLflow's pages: VAE_TRAIN_MLFLOW_URL, or the server of `make up`."""
    return os.environ.get("VAE_TRAIN_MLFLOW_URL") or f"http://127.0.0.1:{MLFLOW_PORT}"


def images(split: str) -> Path:
    """uint8 (N, H, W, C), memory-mappable."""
    return IMAGES / f"{split}.npy"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `dvc repro` makes it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); `dvc repro` makes it anew") from None


def write_json(path: Path, value: Any) -> None:
    """Readable, the same bytes for the same value; NaN is refused, since JSON has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_parameters() -> Parameters:
    """`params.yaml`, a calibrated KL weight as the number that preflight found, and a ramp of steps in epochs.

    Raises:
        InputError: a parameter is not allowed, or preflight or ingest has not run.
    """
    p = parameters.load(PARAMS)
    if p.kl.max_weight == "calibrated":
        p = parameters.with_weight(p, read_json(PREFLIGHT)["calibrated_kl_weight"])
    if p.kl.annealing_steps is not None:
        p = parameters.with_ramp(p, p.train.steps_per_epoch(_training_images()))
    return p


def _training_images() -> int:
    try:
        return len(np.load(images("train"), mmap_mode="r"))
    except FileNotFoundError:
        raise InputError(f"{images('train')} does not exist; `dvc repro ingest` makes it") from None


def run(stage: Callable[[], None]) -> NoReturn:
    """Runs a stage's `main`: what the user can put right ends in one line and an exit code of its own."""
    # Both end a stage as Ctrl-C does, also where a shell's & had SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        stage()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(INPUT_ERROR)
    except OSError as error:
        if error.errno not in _PLACE_ERRORS:
            raise
        print(f"error: {_of_place(error)}", file=sys.stderr, flush=True)
        sys.exit(INPUT_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Where DVC was killed alone, its stage ends too: the next `dvc repro` would start a second one beside it."""
    runner = _runner()
    while runner is not None and runner.is_running():
        time.sleep(0.5)
    print("the program that ran this stage is gone", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    os._exit(130)  # it does not hear: the lock must be free within ten seconds


def _runner() -> psutil.Process | None:
    """The nearest ancestor that is no shell: DVC runs a stage through one, and some of them stay in between.

    None where DVC was gone before the libraries were loaded: then a reaper of orphans stands in its place.
    """
    with contextlib.suppress(psutil.Error):
        for ancestor in psutil.Process().parents():
            first = ancestor.pid == 1 and "dvc" not in " ".join(ancestor.cmdline())
            if first or ancestor.name() in _REAPERS:
                return None
            if ancestor.name() not in _SHELLS:
                return ancestor
    return None


def _of_place(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    todo = (
        "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "make it writable"
    )
    return f"{where}{error.strerror}; {todo}, then run the same command again"
