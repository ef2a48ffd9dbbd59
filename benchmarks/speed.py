"""Training speed beside pythae, Lightning and a plain loop: `make bench`.

Each training runs in its own process. The trainers take turns, several times, so that a ratio compares neighbours in
time. The images are patches of two photos that scikit-learn bundles. Results: `reports/bench.csv`.
"""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import psutil
import torch
import typer
from ruamel.yaml import YAML

from benchmarks.peers import ALL_PEERS, PEERS, PLAIN, now
from tasks import workspace
from tasks.processes import entry
from vae.compute import devices
from vae.compute.devices import Compute
from vae.config import loading
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, resolve
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import measure
from vae.models import saved
from vae.models.flops import training_flops
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE, build
from vae.training import loop

if TYPE_CHECKING:
    import pandas as pd  # half a second, which a training timed from its process's start should not pay

OURS, FP32 = "vae-train", "vae-train, fp32"
COMPILED, EAGER = "vae-train, compiled", "vae-train, not compiled"  # override the default rule
TRAINERS = (OURS, COMPILED, EAGER, FP32, *ALL_PEERS)
TABLE = workspace.REPORTS / "bench.csv"


@dataclass(frozen=True)
class Case:
    """A network, an image size, and enough images that an epoch takes seconds.

    Attributes:
        end_to_end: Time the whole process, with validation, logging and saving; otherwise the epochs alone.
        shape: What is left of the section `model`.
        recompute: `train.gradient_checkpointing`.
        beside: The other trainers.
    """

    side: int
    channels: int
    widths: tuple[int, ...]
    latents: int
    batch: int
    images: int
    epochs: int = 4
    end_to_end: bool = False
    architecture: str = "conv"
    shape: Mapping[str, Any] = field(default_factory=dict)
    recompute: bool = False
    beside: tuple[str, ...] = tuple(PEERS)

    @property
    def trainers(self) -> tuple[str, ...]:
        ours = (OURS, COMPILED) if self.end_to_end else (OURS, COMPILED, FP32)
        return (*ours, *self.beside)


def _residual(side: int, latents: int, batch: int, images: int, recompute: bool = False, **shape: Any) -> Case:
    """Group norm, which needs no statistics over a batch, and a plain loop of the same network."""
    return Case(
        side, 3, (32, 64, 128), latents, batch, images,
        architecture="residual", shape=shape, recompute=recompute, beside=(PLAIN,),
    )  # fmt: skip


CASES = {
    "32": Case(32, 1, (32, 64, 128), 32, 128, 4096, 6),
    "64": Case(64, 3, (32, 64, 128, 256), 64, 64, 1536, 6),
    "128": Case(128, 3, (32, 64, 128, 256), 256, 64, 384, 4),
    "224": Case(224, 3, (32, 64, 128, 256), 256, 32, 128, 3),
    "28, gated MLP": Case(28, 1, (300, 300), 40, 100, 20_000, 5, architecture="gated_mlp"),
    "64, residual": _residual(64, 256, 32, 512),
    "64, residual, map": _residual(64, 256, 32, 512, latent_shape=(8, 8, 4)),
    "64, residual, hvae": _residual(64, 256, 32, 512, lower_latents=128),
    "64, residual, ladder": _residual(64, 320, 32, 512, lower_latents=(8, 8, 4)),
    "256, residual, map": _residual(256, 4096, 16, 48, latent_shape=(32, 32, 4)),
    "256, residual, map, recomputed": _residual(256, 4096, 16, 48, recompute=True, latent_shape=(32, 32, 4)),
    "end to end": Case(64, 3, (32, 64, 128, 256), 64, 64, 10_000, 20, end_to_end=True),
}


def main(
    case: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(CASES)} (default: all); repeat for several")
    ] = None,
    trainer: Annotated[list[str] | None, typer.Option(help=f"{' | '.join(TRAINERS)}; repeat for several")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="repeats of each training; the end-to-end case runs once")] = 3,
) -> None:
    """Train the same network with each trainer in turn; compare speed, memory and skill."""
    import pandas as pd  # see above

    rows, rate = [], 0.0  # the best rate of all cases: other programs may slow the machine
    with tempfile.TemporaryDirectory() as folder:
        for name in case or CASES:
            chosen = known(name, CASES)
            rate = max(rate, *(matrix_rate(precision) for precision in (torch.float32, torch.bfloat16)))
            for repeat in range(1 if chosen.end_to_end else repeats):
                for who in trainer or chosen.trainers:
                    known(who, dict.fromkeys(TRAINERS))
                    found = _in_own_process(name, who, repeat, folder)
                    rows.append({"case": name, "trainer": who, "repeat": repeat, **found})
                    _report(rows[-1])
    table = pd.DataFrame(rows)
    table["of_matrix_rate"] = table["flops_per_second"] / rate
    workspace.REPORTS.mkdir(exist_ok=True)
    table.to_csv(TABLE, index=False)
    print("\n" + "\n".join(markdown(table)))


def usual_adam(**train: Any) -> dict[str, Any]:
    """The section `train` for what users of the other libraries do: Adam with a constant learning rate of 1e-3."""
    usual: dict[str, Any] = {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "learning_rate_schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.0,
    }
    return usual | train


def parameters_of(case: Case, seed: int, device: str = "cpu") -> ResolvedParameters:
    p = loading.parse(
        {
            "seed": seed,
            "data": {
                "source": "npy", "path": ".", "image_size": case.side, "channels": case.channels,
                "valid_fraction": 0.1, "test_fraction": 0.1, "max_bad_fraction": 0.0,
            },
            "model": {
                "architecture": case.architecture, "latent_dim": case.latents, "widths": list(case.widths),
                "batch_norm": False, **case.shape,
            },
            "objective": {"likelihood": "gaussian", "sigma": 0.1, "reduction": "sum"},
            "kl": {"schedule": "constant", "max_weight": 1.0, "annealing_epochs": 0},
            "train": usual_adam(
                device=device, epochs=case.epochs, batch_size=case.batch, select="last", on_collapse="continue",
                gradient_checkpointing=case.recompute,
            ),
            "monitor": {},
            "evaluate": {"importance_samples": 1, "register_as": "vae"},
        },
        "the benchmark's parameters",
    )  # fmt: skip
    return resolve(p, p.train.steps_per_epoch(case.images))


def photos(side: int, channels: int, count: int) -> np.ndarray:
    """Random patches of two photos: uint8 (count, side, side, channels)."""
    from sklearn.datasets import load_sample_images

    random, whole = np.random.default_rng(0), load_sample_images().images
    found = []
    for index in range(count):
        image = whole[index % 2]
        top, left = (random.integers(length - side + 1) for length in image.shape[:2])
        found.append(image[top : top + side, left : left + side])
    patches = np.stack(found)
    return patches if channels == 3 else patches.mean(3, keepdims=True).astype(np.uint8)


def matrix_rate(precision: torch.dtype, seconds: float = 2.0, device: str = "cpu") -> float:
    """The machine's peak floating-point operations per second in this precision.

    The better of a matrix product and a wide convolution: they come from different libraries, and on some machines
    the matrix product is the slower one.
    """
    a, b = torch.randn(2, 2048, 2048, device=device).to(precision)
    x = torch.randn(32, 256, 16, 16, device=device).to(precision)
    w = torch.randn(256, 256, 3, 3, device=device).to(precision)
    x, w = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, w))
    product = _rate(lambda: a @ b, 2 * 2048**3, seconds)
    convolution = _rate(lambda: torch.nn.functional.conv2d(x, w), 2 * 32 * 14 * 14 * 9 * 256**2, seconds)
    return max(product, convolution)


def _rate(operation: Callable[[], torch.Tensor], flops: int, seconds: float) -> float:
    device = operation().device
    begin, count = now(device), 0
    while time.perf_counter() - begin < seconds:
        operation()
        count += 1
    return count * flops / (now(device) - begin)


def one(name: str, trainer: str, seed: int) -> dict[str, Any]:
    """One training in this process: seconds of each epoch, peak memory, and skill."""
    case = CASES[name]
    p = parameters_of(case, seed)
    images = photos(case.side, case.channels, case.images + case.images // (10 if case.end_to_end else 4))
    train, valid = images[: case.images], images[case.images :]
    if trainer in ALL_PEERS:
        model, seconds = by_peer(p, trainer, train, valid if case.end_to_end else None)
    else:
        compute = compute_of(p, trainer, len(train))
        model, speeds = (as_the_stage if case.end_to_end else alone)(p, train, valid, compute)
        seconds = [images_of(case) / speed for speed in speeds]
    return {"seconds": seconds, **spent(), "skill": skill(p, model, valid)}


def spent() -> dict[str, float]:
    """What this process has used since its start."""
    used = os.times()
    return {
        "whole_seconds": time.time() - psutil.Process().create_time(),
        "cpu_seconds": used.user + used.system + used.children_user + used.children_system,
        "peak_megabytes": peak_megabytes(),
    }


def by_peer(
    p: ResolvedParameters, trainer: str, train: np.ndarray, valid: np.ndarray | None
) -> tuple[VAE, list[float]]:
    """Returns the model and the seconds of each epoch."""
    torch.manual_seed(p.seed)
    model = build(p)
    return model, ALL_PEERS[trainer](p, model, train, valid)


def compute_of(p: ResolvedParameters, trainer: str, images: int) -> Compute:
    """The default choice, with the setting that the trainer's name gives."""
    asked: dict[str, dict[str, Any]]
    asked = {FP32: {"precision": "fp32"}, COMPILED: {"compile": True}, EAGER: {"compile": False}}
    return devices.choose(p.train.model_copy(update=asked.get(trainer)), training_flops(p), images)


def alone(p: ResolvedParameters, train: np.ndarray, valid: np.ndarray, compute: Compute) -> tuple[VAE, list[float]]:
    """Returns the model and the images per second of each epoch."""
    speeds: list[float] = []
    trained = loop.train(p, train, valid, compute, on_epoch=lambda e: speeds.append(e.images_per_second))
    return trained.model, speeds


def as_the_stage(
    p: ResolvedParameters, train: np.ndarray, valid: np.ndarray, compute: Compute, root: Path | None = None
) -> tuple[VAE, list[float]]:
    """The same with all of the `train` stage: checkpoints, history, MLflow with its images, the saved model.

    root: a folder with MLflow's store; None makes a new store, which takes seconds.
    """
    import pandas as pd  # see above

    from tasks.train import Job, run

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["DVC_ROOT"] = str(root or folder)
        workspace.IMAGES.mkdir(parents=True)
        for split, images in (("train", train), ("valid", valid), ("test", valid)):
            np.save(workspace.images(split), images)
        YAML().dump(p.model_dump(mode="json"), workspace.PARAMS)
        run(Job(p, train, valid, compute), Path(".checkpoints"))
        speeds = pd.read_csv(workspace.TIMING)["images_per_second"]
        return saved.load(workspace.MODEL).model, speeds.tolist()


def peak_megabytes() -> float:
    """Peak memory of this process. Linux's getrusage would count its parent's, copied at the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: in bytes


def skill(p: ResolvedParameters, model: VAE, images: np.ndarray) -> float:
    """The calibrated ELBO on held-out images minus that of the mean image, in nats per image."""
    compute = Compute(next(model.parameters()).device, "fp32")
    gaussian = Likelihood("gaussian", 1.0)
    measured = measure(model.eval(), images, gaussian, compute, p.seed)
    calibrated = measured.elbo_at_own_sigma(gaussian, int(np.prod(images.shape[1:])))
    return calibrated - MeanImage.of(images).elbo(images, gaussian)


def images_of(case: Case) -> int:
    """Images per epoch: full batches only."""
    return case.images // case.batch * case.batch


def _in_own_process(name: str, trainer: str, seed: int, folder: str) -> dict[str, Any]:
    found = in_own_process("benchmarks.speed", name, trainer, str(seed), folder=folder)
    case = CASES[name]
    p = parameters_of(case, seed)
    steady = statistics.median(found["seconds"][1:])
    speed = images_of(case) / steady
    return {
        "images_per_second": speed,
        "images_per_second_end_to_end": images_of(case) * case.epochs / found["whole_seconds"],
        "first_epoch_seconds": found["seconds"][0],
        "whole_seconds": found["whole_seconds"],
        "flops_per_second": training_flops(p) * speed,
        "peak_megabytes": found["peak_megabytes"],
        "skill": found["skill"],
    }


def in_own_process(module: str, *arguments: str, folder: str) -> dict[str, Any]:
    """What `python -m MODULE --only ARGUMENTS PATH` writes into the JSON file of this path, in a temporary folder.

    Raises: InputError: the process failed, with its last words.
    """
    path = Path(folder) / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", module, "--only", *arguments, str(path)],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(dir=folder)},  # each compiles afresh
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise InputError(f"{' '.join(arguments)}: {last_words(done)}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def program(main: Callable[..., None], one: Callable[..., dict[str, Any]]) -> None:
    """What a bench does as a program: its command, or, in a process of `in_own_process`, one of its parts.

    one: takes the arguments of that process, as text.
    """
    if sys.argv[1:2] == ["--only"]:
        *arguments, path = sys.argv[2:]
        Path(path).write_text(json.dumps(one(*arguments)))
    else:
        entry.run(lambda: typer.run(main))


def known(name: str, among: dict[str, Any]) -> Any:
    if name not in among:
        raise InputError(f"{name!r} is unknown; expected one of {', '.join(among)}")
    return among[name]


def last_words(done: "subprocess.CompletedProcess[str]") -> str:
    """Why a process ended: its last line of output, or its exit code where it printed nothing."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode} without output; −9 usually means out of memory"


def markdown(table: "pd.DataFrame") -> list[str]:
    """Medians, with minimum and maximum. A ratio compares trainings of the same repeat."""
    lines = [
        "| case | trainer | images/s | over pythae | over Lightning | over the plain loop | share of the matrix rate | "
        "first epoch | peak memory | skill over pythae's |",
        "| --- |" + " --- |" * 9,
    ]
    for (name, who), rows in table.groupby(["case", "trainer"], sort=False):
        column = "images_per_second_end_to_end" if CASES[str(name)].end_to_end else "images_per_second"
        speed = rows.set_index("repeat")[column]
        cells = [_spread(speed, ".0f")]
        for peer in ("pythae", "Lightning", PLAIN):
            other = table[(table.case == name) & (table.trainer == peer)].set_index("repeat")[column]
            cells.append("–" if other.empty else _spread(speed / other, ".2f"))
        reference = table[(table.case == name) & (table.trainer == "pythae")]["skill"]
        cells += [
            f"{rows['of_matrix_rate'].median():.0%}",
            f"{rows['first_epoch_seconds'].median():.1f} s",
            f"{rows['peak_megabytes'].median():,.0f} MB",
            "–" if reference.empty else f"{rows['skill'].median() / reference.median():.3f}",
        ]
        lines.append(f"| {_title(str(name))} | {who} | " + " | ".join(cells) + " |")
    return lines


def _title(name: str) -> str:
    case, network = CASES[name], name.partition(", ")[2]
    size = f"{case.side}×{case.side}×{case.channels}, batch {case.batch}, {case.latents} latents"
    size += network and f", {network}"
    return f"{size}; {case.images:,} images × {case.epochs} epochs end to end" if case.end_to_end else size


def _spread(values: Any, form: str) -> str:
    return f"{values.median():{form}} ({values.min():{form}}–{values.max():{form}})"


def _report(row: dict[str, Any]) -> None:
    print(f"{_title(row['case'])}: {row['trainer']}: {row['images_per_second']:.0f} images/s", flush=True)


if __name__ == "__main__":
    program(main, lambda name, trainer, seed: one(name, trainer, int(seed)))
