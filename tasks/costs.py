"""What surrounds the training costs: `python -m tasks.costs`.

Ingest beside bare decoding; validation and the importance-weighted bound beside their forward passes; MLflow as a
share of an epoch; the start of each stage. With `--chain` also what DVC and Prefect cost where nothing is left to do,
in this workspace, which a run has to have gone through. docs/benchmarks.md has what it gave, and where.
"""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from ruamel.yaml import YAML

from tasks import ingest, training_run, workspace
from tasks.bench import CASES, Case, as_the_stage, parameters_of, photos
from vae import devices, images, training
from vae.devices import Compute
from vae.diagnostics import BATCH, _batches, measure
from vae.errors import InputError
from vae.evaluation import importance_weighted_bound
from vae.images import Preprocessing
from vae.model import VAE
from vae.objective import Likelihood

STAGES = ("ingest", "validate", "preflight", "train", "monitor", "evaluate")
REPEATS = 3
SAMPLES = 8  # of the bound
UNHEALTHY = 3  # the flow's exit code for a model whose verdict is not healthy
PHOTOS = {256: 3000, 427: 1000}  # JPEGs of that side, brought to 64×64: how many


def main(
    chain: Annotated[bool, typer.Option(help="also `dvc repro` and the flow, with nothing to do")] = False,
) -> None:
    """Prints one row for each cost: what, how much, of what."""
    print("| what | measured | asked |\n| --- | --- | --- |")
    ingests = (_ingest(side, count) for side, count in PHOTOS.items())
    for rows in (_idle() if chain else (), _starts(), *ingests, _training()):
        for what, found, asked in rows:
            print(f"| {what} | {found} | {asked} |", flush=True)


Rows = Iterator[tuple[str, str, str]]


def _ingest(side: int, count: int) -> Rows:
    p = parameters_of(Case(64, 3, (8,), 4, 16, count, 1), seed=0)
    values = p.model_dump(mode="json")
    values["data"] |= {"source": "folder", "path": "photos"}
    with _folder():
        Path("photos").mkdir()
        for index, pixels in enumerate(photos(side, 3, count)):
            Image.fromarray(pixels).save(f"photos/{index}.jpg", quality=90)
        YAML().dump(values, workspace.PARAMS)
        paths, preprocessing = sorted(Path("photos").iterdir()), Preprocessing.of(p)
        whole, decoding = _interleaved(lambda: _quietly(ingest.main), lambda: _decode(paths, preprocessing))
    yield (
        f"ingest of {count:,} JPEGs of {side}×{side} over decoding and resizing them, all cores",
        f"{whole / decoding:.2f} ({count / whole:,.0f} files/s)",
        "1.10",
    )


def _decode(paths: list[Path], preprocessing: Preprocessing) -> None:
    def prepared(part: list[Path]) -> None:
        for path in part:
            images.prepare(path.read_bytes(), preprocessing)

    with ThreadPoolExecutor(ingest._cores()) as pool:
        list(pool.map(prepared, (paths[i : i + 32] for i in range(0, len(paths), 32))))


def _training() -> Rows:
    """At 64×64×3, 10% of the images in the validation split."""
    case = CASES["64"]
    p = parameters_of(case, seed=0)
    compute = devices.choose(p.train, training.flops(p))
    patches = photos(case.side, case.channels, case.images + case.images // 9)
    train, valid = patches[: case.images], patches[case.images :]
    model, likelihood = training.build(p), Likelihood("gaussian", 0.1)
    measuring, passing = _interleaved(
        lambda: measure(model, valid, likelihood, compute, 0), lambda: _forward(model, valid, compute)
    )
    bounding, decoding = _interleaved(
        lambda: importance_weighted_bound(model, valid[:BATCH], likelihood, compute, SAMPLES, 0),
        lambda: _decode_samples(model, len(valid[:BATCH]), compute),
    )
    logging: list[float] = []
    with _timed(training_run, "log_epoch", logging):
        _, speeds = _quietly(lambda: as_the_stage(p, train, valid, compute))
    epoch = case.images / statistics.median(speeds)
    yield "validation over its forward passes alone", f"{measuring / passing:.2f}", ""
    yield "the same, in shares of an epoch", f"{(measuring - passing) / epoch:.1%} of {epoch:.1f} s", "5%"
    yield "the importance-weighted bound over decoding its samples alone", f"{bounding / decoding:.2f}", ""
    yield (
        f"MLflow, of an epoch of {case.images:,} images",
        f"{statistics.median(logging):.3f} s, {statistics.median(logging) / epoch:.1%}",
        "1%",
    )
    share = statistics.median(logging) / (10_000 / statistics.median(speeds))
    yield "MLflow, of an epoch of 10,000 images", f"{share:.2%}", "1%"


def _forward(model: VAE, valid: np.ndarray, compute: Compute) -> None:
    """Encode, decode a sample, decode the mean: what a validation cannot do without."""
    with torch.no_grad():
        for x in _batches(model, valid, compute.device):
            with compute.autocast():
                _, mu, _ = model(x, torch.zeros(len(x), model.latent_dim))
                model.decode(mu, x)


def _decode_samples(model: VAE, count: int, compute: Compute) -> None:
    with torch.no_grad(), compute.autocast():
        for _ in range(SAMPLES):
            model.decode(torch.randn(count, model.latent_dim))


def _starts() -> Rows:
    """Until a stage's program has read its parameters and would begin."""
    for stage in STAGES:
        seconds = [_seconds([sys.executable, "-c", f"import tasks.{stage}"]) for _ in range(REPEATS)]
        yield f"start of {stage}", f"{statistics.median(seconds):.1f} s", "3 s"


def _idle() -> Rows:
    dvc = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(dvc, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError("`dvc repro` fails here; `--chain` takes a workspace whose run went through")
    seconds = [_seconds(dvc) for _ in range(REPEATS)]
    yield "`dvc repro`, nothing to do", f"{statistics.median(seconds):.1f} s", "2 s"
    seconds = [_seconds([sys.executable, "-m", "flows.vae_train"]) for _ in range(REPEATS)]
    yield (
        "a flow run, every stage cached",
        f"{statistics.median(seconds):.1f} s",
        "15 s",
    )


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, UNHEALTHY):
        raise InputError(f"{' '.join(command)} ended with exit code {done.returncode}: {done.stderr[-300:]}")
    return time.perf_counter() - begin


def _interleaved(*works: Callable[[], object]) -> list[float]:
    """Seconds of each, the median of several repeats, in turn; once before, unmeasured."""
    seconds: list[list[float]] = [[] for _ in works]
    for repeat in range(REPEATS + 1):
        for work, found in zip(works, seconds, strict=True):
            begin = time.perf_counter()
            work()
            if repeat:
                found.append(time.perf_counter() - begin)
    return [statistics.median(found) for found in seconds]


def _quietly(work: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


@contextlib.contextmanager
def _folder() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["DVC_ROOT"] = folder
        yield


@contextlib.contextmanager
def _timed(module: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Notes how long each call of a function takes."""
    function = getattr(module, name)

    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - begin)
        return result

    setattr(module, name, timed)
    try:
        yield
    finally:
        setattr(module, name, function)


if __name__ == "__main__":
    workspace.run(lambda: typer.run(main))
