"""Is everything in order here? Checks of the installation, the servers and the workspace, each with what to do."""

import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasks import data_path, workspace
from tasks.processes import dvc_files, services
from tasks.processes.lock import hold
from vae.compute.devices import Compute, named
from vae.config import loading
from vae.config.errors import InputError
from vae.models import saved

FREE_GB = 2.0  # enough for a run on a few thousand images with its cache and its MLflow artifacts

State: TypeAlias = Literal["ok", "note", "problem"]
Found: TypeAlias = Iterator[tuple[State, str]]


@dataclass(frozen=True)
class Check:
    """`note`: worth knowing, nothing to do. `problem`: something to do, which the text names."""

    name: str
    state: State
    text: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.name:<12} {self.text}"


def examine() -> list[Check]:
    """All checks; they change nothing and start nothing."""
    checks = (python, packages, compute, tools, disk, params, data, model, stages, locks, servers, mlflow)
    return [Check(check.__name__, state, text) for check in checks for state, text in _found(check)]


def _found(check: Callable[[], Found]) -> Found:
    try:
        yield from check()
    except InputError as error:
        yield "problem", str(error)


def mend() -> Iterator[str]:
    """Repairs what a killed DVC left half written, so that DVC runs again; yields what was done.

    Raises:
        InputError: a flow run or a DVC is at work here.
    """
    with hold(workspace.root() / ".run" / "workspace.lock", "vae doctor --mend"):
        removed = dvc_files.free_dvc(workspace.root())
        if removed is None:
            raise InputError("a DVC is running here: wait for it to end, or stop it, then mend")
        if removed:
            yield ".dvc/tmp/rwlock: removed, as a killed DVC had left it"
        if dvc_files.lock_is_torn():
            yield dvc_files.restore_lock()


def python() -> Found:
    inside = Path(sys.prefix).resolve() == (workspace.root() / ".venv").resolve()
    where = "" if inside else ": not this project's .venv"
    yield "ok" if inside else "note", f"{platform.python_version()}, {sys.prefix}{where}"


def packages() -> Found:
    """The installed versions against constraints.txt."""
    file = workspace.root() / "constraints.txt"
    pins = [Requirement(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    installed: dict[str, str] = {canonicalize_name(one.name): one.version for one in metadata.distributions()}
    others = [
        f"{pin.name} {installed[pin.name]} instead of {str(pin.specifier).removeprefix('==')}"
        for pin in pins
        if pin.name in installed and (pin.marker is None or pin.marker.evaluate())
        if not pin.specifier.contains(installed[pin.name])
    ]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        yield "problem", f"{', '.join(others[:5])}{more}: `rm .venv/ready; make setup`"
    else:
        yield "ok", f"as pinned in constraints.txt ({len(pins)} pins)"


def compute() -> Found:
    device = named("auto")
    facts = Compute(device, "fp32").describe()
    if device.type == "cuda":
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        yield "ok", f"{facts['hardware']}, {free:.0f} of {total:.0f} GiB free, PyTorch {facts['torch']}"
        return
    text = f"CPU ({facts['cpu_capability']}), {facts['threads']} threads, PyTorch {facts['torch']}"
    if torch.version.cuda is not None:
        yield "note", f"{text}, built for CUDA {torch.version.cuda}; no GPU is visible"
    elif shutil.which("nvidia-smi"):
        yield "problem", f"{text}: there is an NVIDIA GPU, but this PyTorch is built without CUDA"
    else:
        yield "ok", text


def tools() -> Found:
    for name, why in (("git", "it records the commit of every run"), ("make", "`make run` needs it")):
        if not shutil.which(name):
            yield "problem", f"{name} is not installed: {why}"
    with_venv = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if not shutil.which("dvc", path=with_venv):
        yield "problem", "dvc is not installed: `make setup`"
    elif not shutil.which("dvc"):
        yield "note", "dvc is not on the PATH: `source .venv/bin/activate`"


def disk() -> Found:
    free = shutil.disk_usage(workspace.root()).free / 1e9
    if free < FREE_GB:
        yield (
            "problem",
            f"{free:.1f} GB free, less than {FREE_GB:g}: free some, for example by `dvc gc --workspace`",
        )
    else:
        yield "ok", f"{free:.1f} GB free"


def params() -> Found:
    p = loading.load(workspace.PARAMS)
    yield "ok", f"{workspace.PARAMS} is valid; data.source = {p.data.source}"


def data() -> Found:
    try:
        p = loading.load(workspace.PARAMS)
    except InputError:
        return  # reported by `params`
    data_path.check(p.data)
    yield "ok", f"data.path = {p.data.path}"


def model() -> Found:
    if not (workspace.MODEL / saved.CONFIG_FILE).exists():
        yield "note", f"none in {workspace.MODEL} yet: `make run`"
        return
    found = saved.load(workspace.MODEL)
    monitored = workspace.MONITOR.exists()
    verdict = f", verdict {workspace.read_json(workspace.MONITOR)['verdict']}" if monitored else ""
    yield "ok", f"{workspace.MODEL}, weights {found.sha256[:12]}{verdict}"


def stages() -> Found:
    """Which stages `dvc repro` would run. Not asked during a flow run: DVC takes its lock for the answer."""
    if _holder(workspace.root() / ".run" / "workspace.holder"):
        return
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        changed = json.loads(done.stdout)
    except ValueError:
        torn = dvc_files.lock_is_torn()
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        busy = not torn and ("lock" in reason or "busy" in reason)
        reason = "dvc.lock is half written: `vae doctor --mend`" if torn else reason
        yield "note" if busy else "problem", f"`dvc status` failed: {reason}"
        return
    if changed:
        yield "note", f"to run: {', '.join(changed)} (`make run` or `dvc repro`)"
    else:
        yield "ok", "all up to date"


def locks() -> Found:
    """Who is at work here, by the notes beside the locks; and what a killed DVC left behind."""
    for note in sorted((workspace.root() / ".run").glob("*.holder")):
        if holder := _holder(note):
            yield "note", f"in use by {holder['who']} (process {holder['pid']})"
    rwlock = Path(".dvc/tmp/rwlock")
    try:
        if rwlock.exists():
            json.loads(rwlock.read_text())
    except ValueError:
        yield "problem", f"{rwlock} is damaged, so DVC does not start: `vae doctor --mend`"


def _holder(note: Path) -> dict[str, Any] | None:
    """Who holds a lock, by the note beside it; None where the note is damaged or its process is dead."""
    try:
        holder = json.loads(note.read_text())
        return holder if psutil.pid_exists(holder["pid"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def servers() -> Found:
    """Those of `make up`: one that is noted as running has to answer."""
    settings = Path("prefect.toml")
    api = tomllib.loads(settings.read_text("utf-8"))["api"]["url"] if settings.exists() else None
    health = {services.PREFECT: f"{api}/health" if api else None, services.MLFLOW: services.MLFLOW_HEALTH}
    down = []
    for name in (services.PREFECT, services.MLFLOW, services.WORKER):
        process, url = services.noted_process(name), health.get(name)
        answers = url is not None and services.answers(url)
        if process is None and not answers:
            down.append(name)
        elif process is None:
            yield "note", f"{name} is not up, but another program answers at {url}"
        elif url is not None and not answers:
            yield "problem", f"{name} (process {process.pid}) does not answer: `make down`, then `make up`"
        else:
            yield "ok", f"{name} is up"
    if down:
        yield "note", f"not up: {', '.join(down)} (`make up`)"


def mlflow() -> Found:
    """MLflow's database, read without MLflow, so that nothing is created or migrated."""
    file = workspace.root() / "mlflow.db"
    if "MLFLOW_TRACKING_URI" in os.environ:
        yield "note", f"MLFLOW_TRACKING_URI is set: {os.environ['MLFLOW_TRACKING_URI']}"
        return
    if not file.exists():
        yield "note", "no runs yet"
        return
    try:
        with sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True) as database:
            runs = database.execute("select count(*) from runs").fetchone()[0]
            aliases = database.execute("select alias, version from registered_model_aliases order by alias")
            models = ", ".join(f"{alias} is version {version}" for alias, version in aliases)
    except sqlite3.Error as error:
        yield "problem", f"{file.name} cannot be read: {error}"
        return
    yield "ok", f"{runs:,} runs; {models or 'no model is registered'}"
