"""The paths of a workspace, and reading and writing its JSON files.

A stage reads and writes relative to its working folder, because DVC may run it in a copy of the workspace
(`dvc exp run --temp`). Stores, locks and checkpoints are shared by all copies: they are under `root()`.
"""

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tasks import PROJECT
from vae.config import loading
from vae.config.errors import InputError
from vae.config.files import written_aside
from vae.config.resolved import ResolvedParameters, resolve
from vae.config.text import rounded, written

Output = TypeVar("Output")

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")

IMAGES = Path("data/images")
DECODED = Path("data/.ingest")  # what an unfinished ingest has decoded
MANIFEST = Path("data/manifest.parquet")
MODEL = Path("models/vae")
REPORTS = Path("reports")

VALIDATION = REPORTS / "validation.json"
VALIDATION_FAILURES = REPORTS / "validation_failures.csv"
PREFLIGHT = REPORTS / "preflight.json"
PREFLIGHT_PLOT = REPORTS / "preflight.png"
PILOT_SHEET = REPORTS / "pilot.png"
HISTORY = REPORTS / "history.csv"
KL_PER_LATENT = REPORTS / "kl_per_latent.csv"
TIMING = REPORTS / "timing.csv"
MONITOR = REPORTS / "monitor.json"
METRICS = REPORTS / "metrics.json"
SUMMARY = REPORTS / "summary.json"
LATENTS = REPORTS / "latents.csv"
PLOTS = REPORTS / "plots"
REPORT = REPORTS / "report.html"

JSON_REPORTS = (METRICS, SUMMARY, MONITOR, PREFLIGHT, VALIDATION)
TABLES = (HISTORY, KL_PER_LATENT, LATENTS)
PICTURES = (PREFLIGHT_PLOT, PILOT_SHEET)

MLFLOW_PORT = int(os.environ.get("VAE_TRAIN_MLFLOW_PORT", "5000"))


def root() -> Path:
    """The folder of the MLflow store, the locks and the checkpoints: the main workspace, even from a copy of it."""
    return Path(os.environ.get("DVC_ROOT") or PROJECT).resolve()


def mlflow_url() -> str:
    """The address of MLflow's pages: VAE_TRAIN_MLFLOW_URL, or the server of `make up`."""
    return os.environ.get("VAE_TRAIN_MLFLOW_URL") or f"http://127.0.0.1:{MLFLOW_PORT}"


def images(split: str) -> Path:
    """uint8 (N, H, W, C), memory-mappable."""
    return IMAGES / f"{split}.npy"


def read(path: Path, reader: Callable[[Path], Output]) -> Output:
    """What `reader` makes of a stage's output. Raises: InputError: it is missing or damaged."""
    try:
        return reader(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `dvc repro` makes it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); run `dvc repro` to recreate it") from None


def read_json(path: Path) -> Any:
    """Raises: InputError: it is missing or damaged."""
    return read(path, lambda path: json.loads(path.read_text(encoding="utf-8")))


def read_note(path: Path) -> dict[str, Any]:
    """The content of a small file of `.run/` or `.checkpoints/`; empty where that is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Readable, the same bytes for the same value. Raises: ValueError: NaN, which JSON does not have."""
    write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write(path: Path, text: str) -> None:
    """A whole file or none; its folder is made. A link into DVC's cache is replaced, and the cache stays as it is."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_parameters() -> ResolvedParameters:
    """`params.yaml` with the numbers that preflight found and rules give, and a ramp of steps in epochs.

    Raises:
        InputError: a parameter is not allowed, or preflight or ingest has not run.
    """
    p, weight, epochs, steps = loading.load(PARAMS), None, None, 0
    if p.kl.asks_preflight:
        found = read_json(PREFLIGHT)
        if found.get("asked_kl_weight") != written(p.kl.max_weight):
            raise InputError(
                f"{PREFLIGHT} is not of kl.max_weight = {written(p.kl.max_weight)}; run `dvc repro preflight`"
            )
        weight = found["kl_weight"]
    if p.train.budget is not None:
        found = read_json(PREFLIGHT)
        if found.get("budget") != rounded(p.train.budget):
            raise InputError(f"{PREFLIGHT} is not of train.budget = {p.train.budget:g}; run `dvc repro preflight`")
        epochs = found["epochs"]
    if p.kl.annealing_steps is not None:
        import numpy as np  # takes a tenth of a second to load, which is a third of what some commands take

        steps = p.train.steps_per_epoch(len(read(images("train"), partial(np.load, mmap_mode="r"))))
    return resolve(p, steps, weight, epochs)
