"""What only a GPU can show, in a few minutes, the most valuable first: `make gpu`.

Each part is a process with a time limit; one that fails or runs over is noted, and the next one begins. Results are
written as they are found: `results.jsonl`, a line each, and `results.md`, the same as tables, in `reports/gpu/`. A
second call skips the parts that are done and continues the trainings of `papers` from their checkpoints.

Imports only what `vae/` and ingest need: neither Prefect, MLflow nor DVC. A peer that is not installed is left out.
"""

import contextlib
import functools
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import speed
from benchmarks.peers import ALL_PEERS, TUNED
from benchmarks.time_to_quality import ingested
from tasks import PROJECT, workspace
from tasks.processes import entry
from vae.compute import devices
from vae.compute.batches import open_images
from vae.config import loading
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, changed, resolve
from vae.evaluation.importance_weighted import importance_weighted_bound
from vae.training import loop
from vae.training.loop import Epoch

FOLDER = workspace.REPORTS / "gpu"

# The image sizes of `make bench`, with epochs that take a GPU long enough.
SIZES = {
    "64": replace(speed.CASES["64"], images=8192, epochs=4),
    "128": replace(speed.CASES["128"], images=4096, epochs=4),
    "32": replace(speed.CASES["32"], images=16384, epochs=4),
    "224": replace(speed.CASES["224"], images=1024, epochs=4),
}
TRAINERS = (speed.OURS, TUNED, speed.COMPILED, "pythae", "Lightning", "plain loop")

# Rows of docs/benchmarks.md that take a CPU hours: an experiment and its changes. The perceptrons in fp32, as there.
PAPERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mnist-conv": ("mnist-conv", {}),
    "IWAE, k = 50": ("iwae-table", {"objective.importance_samples_train": 50, "train.precision": "fp32"}),
    "IWAE, k = 5": ("iwae-table", {"objective.importance_samples_train": 5, "train.precision": "fp32"}),
    "gated MLP": ("mnist-table", {"train.precision": "fp32"}),
}
PATIENCE = 5  # by how much a part on a CPU, with tiny trainings, may exceed its limit
FEW_SAMPLES = 100  # of the importance-weighted bound, of a training that has not ended
SECONDS_TO_EVALUATE = 20


@dataclass(frozen=True)
class Session:
    """What every part is given. quick: tiny trainings, to try the script itself. ends: in seconds, as time.time()."""

    out: str
    device: str
    quick: bool
    mnist: str | None
    ends: float

    @property
    def results(self) -> Path:
        return Path(self.out) / "results.jsonl"

    def note(self, part: str, **found: Any) -> None:
        """Appends a line, at once: what is written stays if this process is killed."""
        line = json.dumps({"part": part, **found}, ensure_ascii=False, default=str)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def has(self, part: str, **what: Any) -> bool:
        """Whether an earlier call has noted this, without an error."""
        return any({"part": part, **what}.items() <= row.items() and "error" not in row for row in read(self.results))

    @contextlib.contextmanager
    def attempt(self, part: str, **what: Any) -> Iterator[None]:
        """Notes an error, so that what comes next still runs."""
        try:
            yield
        except Exception as error:
            self.note(part, **what, error=f"{type(error).__name__}: {error}"[:500])


def main(
    out: Annotated[Path, typer.Option(help="the folder of the results")] = FOLDER,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script")] = "cuda",
    minutes: Annotated[float, typer.Option(min=0.1, help="for all parts together")] = 8,
    part: Annotated[list[str] | None, typer.Option(help="a part (default: all in order); repeat for several")] = None,
    mnist: Annotated[Path | None, typer.Option(envvar="MNIST", help="the folder of MNIST's four idx files")] = None,
    quick: Annotated[bool, typer.Option(help="tiny trainings")] = False,
) -> None:
    """Run the parts, each within its time limit."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no GPU here; `python -m benchmarks.gpu --device cpu --quick` tries the script")
    devices.named(device)
    chosen = {name: speed.known(name, PARTS) for name in part or PARTS}
    out.mkdir(parents=True, exist_ok=True)
    path = None if mnist is None else str(mnist.absolute())
    session = Session(str(out.absolute()), device, quick, path, time.time() + 60 * minutes)
    done = {row["part"] for row in read(session.results) if row.get("outcome") == "done"}
    for name, (_, seconds) in chosen.items():
        if name in done and not part:
            continue
        limit = min(seconds * (PATIENCE if quick else 1), session.ends - time.time())
        given = json.dumps(asdict(replace(session, ends=time.time() + limit)))
        command = [sys.executable, "-m", "benchmarks.gpu", "--only", name, given]
        session.note(name, **bounded(command, limit, out / "log.txt"))
        (out / "results.md").write_text("\n".join(markdown(read(session.results))) + "\n", encoding="utf-8")


def bounded(command: list[str], limit: float, log: Path) -> dict[str, Any]:
    """Runs a command for at most `limit` seconds, then ends all that it started. Returns its outcome and seconds."""
    if limit < 1:
        return {"outcome": "no time left"}
    began = time.perf_counter()
    with log.open("ab") as file, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        # A cache of its own: a compilation that is killed leaves half a file, which the next one would load.
        process = subprocess.Popen(
            command, cwd=PROJECT, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            outcome = "done" if code == 0 else f"failed with exit code {code}; see {log.name}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"outcome": outcome, "seconds": round(time.perf_counter() - began, 1)}


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.exists() else []


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """A table for each part."""
    lines: list[str] = []
    for part in dict.fromkeys(row["part"] for row in rows):
        found = [{k: v for k, v in row.items() if k != "part"} for row in rows if row["part"] == part]
        columns = list(dict.fromkeys(name for row in found for name in row))
        lines += [f"## {part}", "", f"| {' | '.join(columns)} |", "| --- |" + " --- |" * (len(columns) - 1)]
        lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in found] + [""]
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")


def machine(session: Session) -> None:
    """What the other parts ran on, and the best rate of its products and convolutions."""
    device = torch.device(session.device)
    facts: dict[str, Any] = {"torch": torch.__version__, "cores": os.cpu_count(), "cc": shutil.which("cc") or "none"}
    facts["Python.h"] = (Path(sysconfig.get_path("include")) / "Python.h").exists()  # Triton compiles against it
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "GiB": round(properties.total_memory / 2**30, 1)}
        facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    session.note("machine", **facts)
    for precision in (torch.bfloat16, torch.float32):
        rate = speed.matrix_rate(precision, 0.1 if session.quick else 1.0, session.device)
        session.note("machine", precision=str(precision), tera_flops_per_second=rate / 1e12)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def tests(session: Session, only: str) -> None:
    """`tests/test_cuda.py`; what has passed by the time limit counts."""
    options = ["-v", "-k", only, "--tb=short", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", *options]
    part, counts = f"tests, {only}", Counter[str]()
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.match(r"tests/test_cuda\.py::(.*) (PASSED|FAILED|ERROR|SKIPPED)", line):
                counts[found[2]] += 1
                if found[2] in ("FAILED", "ERROR"):
                    session.note(part, test=found[1], result=found[2])
                elif found[2] == "PASSED" and counts["PASSED"] % 10 == 0:
                    session.note(part, passed_so_far=counts["PASSED"])
    session.note(part, **counts)


def bits(session: Session) -> None:
    """The same training twice, and once more with a kill in its middle: are the weights the same to the bit?"""
    spawn = multiprocessing.get_context("spawn")
    folder = Path(session.out) / "bits"
    shutil.rmtree(folder, ignore_errors=True)

    def start(precision: str, name: str, kill_after: int | None) -> Any:
        place = folder / precision / name
        place.mkdir(parents=True, exist_ok=True)
        process = spawn.Process(target=hash_of_training, args=(session, precision, place, kill_after))
        process.start()
        return process

    both = ("fp32", "bf16")
    for round_of in ({"once": None, "again": None, "killed": 2}, {"killed": None}):
        for process in [start(precision, *one) for precision in both for one in round_of.items()]:
            process.join()
    for precision in both:
        with session.attempt("bits", precision=precision):
            found = {place.name: (place / "sha256").read_text() for place in (folder / precision).iterdir()}
            session.note("bits", precision=precision, same=len(set(found.values())) == 1, **found)
    shutil.rmtree(folder)


def hash_of_training(session: Session, precision: str, place: Path, kill_after: int | None) -> None:
    """Trains from `place`'s checkpoint, if there is one, and leaves the SHA-256 of weights and history there."""
    images = speed.photos(32, 3, 300 if session.quick else 3000)
    train = {"device": session.device, "precision": precision, "epochs": 4, "batch_size": 64, "ema": 0.99}
    p = _resolved({"data": {"image_size": 32, "channels": 3, "augment": "flip"}, "train": train}, len(images) - 100)

    def on_epoch(epoch: Epoch) -> None:
        if epoch.row["epoch"] == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    compute = devices.choose(p.train)
    trained = loop.train(p, images[100:], images[:100], compute, place / "state.pt", on_epoch=on_epoch)
    digest = hashlib.sha256(repr(trained.history).encode())
    for name, weight in sorted(trained.model.state_dict().items()):
        digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    (place / "sha256").write_text(digest.hexdigest()[:16])


def speeds(session: Session) -> None:
    """Images per second beside the others, at four sizes."""
    for size in sizes(session):
        for trainer in TRAINERS:
            what = {"size": size, "trainer": trainer}
            if session.has("speeds", **what):
                continue
            with session.attempt("speeds", **what):
                p, case = sized(session, size)
                session.note("speeds", **what, **images_per_second(p, case, trainer))


def costs(session: Session) -> None:
    """What determinism, the optimiser, compiling and CUDA graphs cost or give, by images per second."""
    for size in sizes(session)[::2]:  # 64 and 32, where launching kernels takes the largest share
        p, case = sized(session, size)
        variants: dict[str, tuple[str, dict[str, Any]]] = {
            "AdamW": (speed.EAGER, {}),
            "train.optimizer = muon": (speed.EAGER, {"train.optimizer": "muon"}),
            "train.deterministic = false": (speed.EAGER, {"train.deterministic": False}),
            "compiled": (speed.COMPILED, {}),
            "compiled, CUDA graphs": (speed.COMPILED, {}),
        }
        for name, (trainer, changes) in variants.items():
            if session.has("costs", size=size, variant=name):
                continue
            graphs = cuda_graphs() if "graphs" in name else contextlib.nullcontext()
            with session.attempt("costs", size=size, variant=name), graphs:
                found = images_per_second(changed(p, changes), case, trainer)
                session.note("costs", size=size, variant=name, **found)


@contextlib.contextmanager
def cuda_graphs() -> Iterator[None]:
    """`torch.compile` with Inductor's CUDA graphs, which this project does not use: a step is then launched at once."""
    plain, torch.compile = torch.compile, functools.partial(torch.compile, mode="reduce-overhead")
    try:
        yield
    finally:
        torch.compile = plain


def images_per_second(p: ResolvedParameters, case: speed.Case, trainer: str) -> dict[str, float]:
    """Of the epochs after the first, which compiles; and the seconds of that one."""
    _as_a_new_process()
    images = speed.photos(case.side, case.channels, case.images + 64)
    train, valid = images[64:], images[:64]
    if trainer in ALL_PEERS:
        seconds = speed.by_peer(p, trainer, train, None)[1]
    else:
        rates = speed.alone(p, train, valid, speed.compute_of(p, trainer, len(train)))[1]
        seconds = [speed.images_of(case) / rate for rate in rates]
    return {"images_per_second": speed.images_of(case) / statistics.median(seconds[1:]), "first_epoch": seconds[0]}


def _as_a_new_process() -> None:
    """Undoes what a training sets for its whole process."""
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sizes(session: Session) -> list[str]:
    return ["32"] if session.quick else list(SIZES)


def sized(session: Session, size: str) -> tuple[ResolvedParameters, speed.Case]:
    case = SIZES[size]
    if session.quick:
        case = replace(case, widths=(8, 16), images=2 * case.batch, epochs=2)
    return speed.parameters_of(case, 0, session.device), case


def papers(session: Session) -> None:
    """The open rows of MNIST, all at once: such small steps leave most of a GPU idle."""
    if session.mnist is None:
        session.note("papers", row="all", error="skipped; give --mnist PATH")
        return
    images = Path(session.out) / "mnist"
    if not (images / workspace.images("train")).exists():
        shutil.rmtree(images, ignore_errors=True)
        ingested({**_experiment("mnist-conv")["data"], "path": session.mnist}, images)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=paper, args=(session, name, images)) for name in PAPERS]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


class _TimeIsUp(Exception):
    pass


def paper(session: Session, name: str, images: Path) -> None:
    """Trains a row, from its checkpoint where there is one, and bounds the log-likelihood of the test images."""
    experiment, changes = PAPERS[name]
    train, valid, test = (open_images(images / workspace.images(split)) for split in ("train", "valid", "test"))
    if session.quick:
        train, valid, test = train[:1000], valid[:200], test[:200]
    p = changed(_resolved(_experiment(experiment), len(train)), {**changes, "train.device": session.device})
    if session.quick:
        p = changed(p, {"train.epochs": 2, "evaluate.importance_samples": 5})
    key = hashlib.sha256(f"{p!r} {len(train)}".encode()).hexdigest()[:8]
    compute, last = devices.choose(p.train), None
    ends = session.ends - (0 if session.quick else SECONDS_TO_EVALUATE)

    def on_epoch(epoch: Epoch) -> None:
        nonlocal last
        last = epoch
        if time.time() > ends:
            raise _TimeIsUp

    with session.attempt("papers", row=name):
        trained = None
        with contextlib.suppress(_TimeIsUp):
            path = Path(session.out) / "checkpoints" / f"{name.replace(' ', '')}-{key}" / "state.pt"
            trained = loop.train(p, train, valid, compute, path, on_epoch=on_epoch)
        found = trained or last
        assert found is not None, "time is up after an epoch"
        row = trained.history[-1] if trained else last.row  # type: ignore[union-attr]  # one of the two is there
        samples = [FEW_SAMPLES, p.evaluate.importance_samples] if trained else [FEW_SAMPLES]
        state = {"row": name, "epoch": f"{row['epoch']:.0f} of {p.train.epochs}", "valid_elbo": row["valid/elbo"]}
        if last is not None:
            state["seconds_per_epoch"] = last.seconds
        for count in samples:
            bound = importance_weighted_bound(found.model, test, found.likelihood, compute, count, p.seed)
            session.note("papers", **state, samples=count, test_nll=-bound)


def _experiment(name: str) -> dict[str, Any]:
    file = PROJECT / "experiments" / f"{name}.yaml"
    return loading.read_mapping(loading.read_text(file), str(file))


def _resolved(values: dict[str, Any], images: int) -> ResolvedParameters:
    p = loading.parse(values, "the parameters of a part")
    return resolve(p, p.train.steps_per_epoch(images))


# In order of worth, each with its limit in seconds.
PARTS: dict[str, tuple[Callable[[Session], None], float]] = {
    "machine": (machine, 25),
    "tests": (functools.partial(tests, only="not compiled"), 100),
    "bits": (bits, 60),
    "speeds": (speeds, 140),
    "costs": (costs, 70),
    "compiled tests": (functools.partial(tests, only="compiled"), 60),
    "papers": (papers, math.inf),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        PARTS[sys.argv[2]][0](Session(**json.loads(sys.argv[3])))
    else:
        entry.run(lambda: typer.run(main))
