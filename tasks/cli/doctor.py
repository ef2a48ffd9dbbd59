"""Is everything in order here? What is installed, what runs, what lies about; each with what to do about it."""

import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from tasks import data_path, workspace
from tasks.processes import dvc_files
from tasks.processes.lock import hold
from vae.config import loading
from vae.config.errors import InputError

FREE_GB = 2.0  # a run on a few thousand images, its cache, its MLflow artifacts


@dataclass(frozen=True)
class Check:
    """`note`: worth knowing, nothing to do. `problem`: something needs doing, and the text says what."""

    name: str
    state: Literal["ok", "note", "problem"]
    text: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.state:<8} {self.name:<12} {self.text}"


def healthy(checks: list[Check]) -> bool:
    return all(check.state != "problem" for check in checks)


def examine() -> list[Check]:
    """All checks; they change nothing and start nothing. `dvc status` is not asked while a flow run is at work."""
    checks = (python, packages, compute, tools, disk, params, data, model, stages, locks, servers, store)
    return [check for examined in checks for check in _examined(examined)]


def mend() -> list[str]:
    """Puts right what a killed DVC has left half written, so that DVC runs again; says what was done.

    Raises:
        InputError: a flow run or a DVC is at work here.
    """
    done = []
    with hold(workspace.root() / ".run" / "workspace.lock", "vae doctor --mend"):
        removed = dvc_files.free_dvc(workspace.root())
        if removed is None:
            raise InputError("a DVC is at work here: wait for it to end, or stop it, then mend")
        if removed:
            done.append(".dvc/tmp/rwlock: what dead processes had left there is removed")
        if dvc_files.lock_is_torn():
            done.append(dvc_files.restore_lock())
    return done


def _examined(check: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(check())
    except InputError as error:
        return [Check(check.__name__, "problem", str(error))]


def python() -> Iterator[Check]:
    inside = Path(sys.prefix).resolve() == (workspace.root() / ".venv").resolve()
    yield Check(
        "python",
        "ok" if inside else "note",
        f"{platform.python_version()}, {sys.prefix}" + ("" if inside else ": not this project's .venv"),
    )


def packages() -> Iterator[Check]:
    """The installed versions against constraints.txt."""
    pinned = dict(_pins(workspace.root() / "constraints.txt"))
    others = []
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        version = distribution.version.split("+")[0]  # torch 2.13.0+cpu is 2.13.0
        if name in pinned and version not in pinned[name]:
            others.append(f"{name} {version} instead of {' or '.join(sorted(pinned[name]))}")
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        yield Check(
            "packages", "problem", f"{', '.join(sorted(others)[:5])}{more}: `rm .venv/ready; make setup`"
        )
    else:
        yield Check("packages", "ok", f"as pinned in constraints.txt ({len(pinned)} pins)")


def _pins(file: Path) -> Iterator[tuple[str, set[str]]]:
    """Name → versions; a package may be pinned twice, for systems that differ."""
    found: dict[str, set[str]] = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for line in lines:
        if pin := re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line):
            found.setdefault(re.sub(r"[-_.]+", "-", pin[1]).lower(), set()).add(pin[2].split("+")[0])
    yield from found.items()


def compute() -> Iterator[Check]:
    import torch

    from vae.compute.devices import Compute, named

    device = named("auto")
    facts = Compute(device, "fp32").describe()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text = f"{facts['hardware']}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        yield Check("compute", "ok", f"{text}, PyTorch {facts['torch']}")
        return
    text = f"CPU ({facts['cpu_capability']}), {facts['threads']} threads, PyTorch {facts['torch']}"
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        yield Check(
            "compute", "problem", f"{text}: there is an NVIDIA GPU, and this PyTorch is built without CUDA"
        )
    elif torch.version.cuda is not None:
        yield Check("compute", "note", f"{text}, built for CUDA {torch.version.cuda}; no GPU is visible")
    else:
        yield Check("compute", "ok", text)


def tools() -> Iterator[Check]:
    for name, why in (("git", "commits are recorded with every run"), ("make", "`make run` and its like")):
        if not shutil.which(name):
            yield Check("tools", "problem", f"{name} is not found: {why}; install it")
    if not shutil.which(
        "dvc", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ):
        yield Check("tools", "problem", "dvc is not found: `make setup`")
    elif not shutil.which("dvc"):
        yield Check("tools", "note", "dvc is not on the PATH: `source .venv/bin/activate`")


def disk() -> Iterator[Check]:
    free = shutil.disk_usage(workspace.root()).free / 1e9
    low = free < FREE_GB
    text = f"{free:.1f} GB free" + (
        f", under {FREE_GB:g}: free some, `dvc gc --workspace` helps" if low else ""
    )
    yield Check("disk", "problem" if low else "ok", text)


def params() -> Iterator[Check]:
    p = loading.load(workspace.PARAMS)
    yield Check("params", "ok", f"{workspace.PARAMS} is valid; data.source = {p.data.source}")


def data() -> Iterator[Check]:
    try:
        p = loading.load(workspace.PARAMS)
    except InputError:
        return  # told by the check before
    data_path.check(p.data)
    yield Check("data", "ok", f"data.path = {p.data.path}")


def model() -> Iterator[Check]:
    from vae.models import saved

    if not (workspace.MODEL / saved.CONFIG_FILE).exists():
        yield Check("model", "note", f"none in {workspace.MODEL} yet: `make run`")
        return
    found = saved.load(workspace.MODEL)
    verdict = ""
    if workspace.MONITOR.exists():
        verdict = f", verdict {workspace.read_json(workspace.MONITOR)['verdict']}"
    yield Check("model", "ok", f"{workspace.MODEL}, weights {found.sha256[:12]}{verdict}")


def stages() -> Iterator[Check]:
    """Which stages `dvc repro` would run. Not asked while somebody works here: DVC takes its lock for the answer."""
    if _held(workspace.root() / ".run" / "workspace.holder"):
        return
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], capture_output=True, text=True, check=False
    )
    try:
        changed = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        busy = "lock" in reason or "busy" in reason
        if dvc_files.lock_is_torn():
            reason, busy = "dvc.lock is half written: `vae doctor --mend`", False
        yield Check("stages", "note" if busy else "problem", f"`dvc status` failed: {reason}")
        return
    if changed:
        yield Check("stages", "note", f"to run: {', '.join(changed)} (`make run` or `dvc repro`)")
    else:
        yield Check("stages", "ok", "all are up to date")


def locks() -> Iterator[Check]:
    """Who works here, by the notes beside the locks; and what killed processes of DVC left behind."""
    for note in sorted((workspace.root() / ".run").glob("*.holder")):
        if held := _held(note):
            yield Check("locks", "note", f"in use by {held['who']} (process {held['pid']})")
    rwlock = Path(".dvc/tmp/rwlock")
    try:
        entries = json.loads(rwlock.read_text()) if rwlock.exists() else {}
    except ValueError:
        yield Check("locks", "problem", f"{rwlock} is damaged, and DVC refuses to run: `vae doctor --mend`")
        return
    pids = {int(pid) for pid in re.findall(r'"pid": (\d+)', json.dumps(entries))}
    if pids and not any(psutil.pid_exists(pid) for pid in pids):
        yield Check(
            "locks", "note", f"{rwlock} has entries of processes that are gone; DVC removes them itself"
        )


def _held(note: Path) -> dict[str, Any] | None:
    """Who holds a lock, by the note beside it; the lock itself is the kernel's, and a damaged note holds nothing."""
    try:
        held = json.loads(note.read_text())
        return held if psutil.pid_exists(held["pid"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def servers() -> Iterator[Check]:
    """Those of `make up`: one that is noted as running has to answer."""
    urls = {
        "prefect-server": _prefect_health(),
        "mlflow-server": f"http://127.0.0.1:{workspace.MLFLOW_PORT}/health",
    }
    down = []
    for name in ("prefect-server", "mlflow-server", "prefect-worker"):
        url, process = urls.get(name), _noted_process(workspace.root() / ".run" / f"{name}.pid")
        if process is None and (url is None or not _answers(url)):
            down.append(name)
        elif process is None:
            yield Check(
                "servers", "note", f"{name} is not up, and another program answers at its place: {url}"
            )
        elif url is not None and not _answers(url):
            yield Check(
                "servers",
                "problem",
                f"{name} (process {process}) does not answer: `make down`, then `make up`",
            )
        else:
            yield Check("servers", "ok", f"{name} is up")
    if down:
        yield Check("servers", "note", f"not up: {', '.join(down)} (`make up`)")


def store() -> Iterator[Check]:
    """MLflow's database, read without MLflow, so that nothing is made or migrated."""
    file = workspace.root() / "mlflow.db"
    if "MLFLOW_TRACKING_URI" in os.environ:
        yield Check("mlflow", "note", f"MLFLOW_TRACKING_URI is set: {os.environ['MLFLOW_TRACKING_URI']}")
        return
    if not file.exists():
        yield Check("mlflow", "note", "no runs yet")
        return
    try:
        with sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True) as database:
            runs = database.execute("select count(*) from runs").fetchone()[0]
            aliases = database.execute(
                "select alias, version from registered_model_aliases order by alias"
            ).fetchall()
    except sqlite3.Error as error:
        yield Check("mlflow", "problem", f"{file.name} can not be read: {error}")
        return
    told = (
        ", ".join(f"{alias} is version {version}" for alias, version in aliases) or "no model is registered"
    )
    yield Check("mlflow", "ok", f"{runs:,} runs; {told}")


def _prefect_health() -> str | None:
    settings = Path("prefect.toml")
    if not settings.exists():
        return None
    return f"{tomllib.loads(settings.read_text(encoding='utf-8'))['api']['url']}/health"


def _noted_process(note: Path) -> int | None:
    """The id that `make up` has noted, where that process lives."""
    try:
        process = psutil.Process(int(note.read_text()))
        program = note.stem.partition("-")[0]  # prefect or mlflow; the id may be another program's by now
        return process.pid if program in process.cmdline() else None
    except (OSError, ValueError, psutil.Error):
        return None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False
