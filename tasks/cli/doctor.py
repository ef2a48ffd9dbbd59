"""Checks of the installation and the workspace that find problems before a run does; each says what to do."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasks import workspace
from tasks.processes import dvc_files, services
from tasks.processes.lock import hold
from vae.compute.devices import Compute, named
from vae.config import loading
from vae.config.errors import InputError
from vae.data.folders import folder

MOST_FILES = 20_000  # of data.path that are looked at: a few seconds
FREE_GB = 2.0  # enough for a run on a few thousand images with its cache and its MLflow artifacts

Found: TypeAlias = Iterator[tuple[str, str]]  # (state, text); `note`: worth knowing, `problem`: something to do


def examine() -> list[dict[str, str]]:
    """The name, state and text of all checks, which change nothing and start nothing."""
    checks = (packages, compute, disk, folders, stages, locks, servers, mlflow)
    return [{"name": check.__name__, "state": state, "text": text} for check in checks for state, text in check()]


def mend() -> Iterator[str]:
    """Repairs what a killed DVC left half written, so that DVC runs again; yields what was done.

    Raises:
        InputError: a flow run or a DVC is at work here.
    """
    with hold(workspace.root() / ".run" / "workspace.lock", "vae doctor --mend"):
        removed = dvc_files.free_dvc(workspace.root())
        if removed is None:
            raise InputError("DVC is running here: wait for it to end, or stop it, then repeat")
        if removed:
            yield ".dvc/tmp/rwlock: removed, as a killed DVC had left it"
        if dvc_files.lock_is_torn():
            yield dvc_files.restore_lock()


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
        yield "problem", f"{', '.join(others)}: `rm .venv/ready; make setup`"
    else:
        yield "ok", f"as pinned in constraints.txt ({len(pins)} pins)"


def compute() -> Found:
    facts = Compute(named("auto"), "fp32").describe()
    if torch.cuda.is_available():
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
        yield "ok", f"{facts['hardware']}, {free:.0f} of {total:.0f} GiB free, PyTorch {facts['torch']}"
        return
    text = f"CPU ({facts['cpu_capability']}), {facts['threads']} threads, PyTorch {facts['torch']}"
    if torch.version.cuda is not None:
        yield "note", f"{text}, built for CUDA {torch.version.cuda}; no GPU is visible"
    elif shutil.which("nvidia-smi"):
        yield "problem", f"{text}: there is an NVIDIA GPU, but this PyTorch is built without CUDA"
    else:
        yield "ok", text


def disk() -> Found:
    free = shutil.disk_usage(workspace.root()).free / 1e9
    if free < FREE_GB:
        yield "problem", f"{free:.1f} GB free, less than {FREE_GB:g}: free some, for example by `dvc gc --workspace`"
    else:
        yield "ok", f"{free:.1f} GB free"


def folders() -> Found:
    """What the folders of data.path are taken for, where it is a folder of images; no image is decoded."""
    try:
        params = loading.load(workspace.root() / workspace.PARAMS)
        if params.data.source != "folder":
            return
        found = folder.read(workspace.root() / Path(params.data.path).expanduser(), most=MOST_FILES)
    except folder.TooManyFiles as error:
        yield "note", f"{error}: ingest says what it takes the folders for"
    except InputError as error:
        yield "problem", str(error)
    else:
        yield from (("ok", line) for line in found.lines)
        yield from (("note", warning) for warning in found.warnings)


def stages() -> Found:
    """Which stages `dvc repro` would run. Not asked during a flow run: DVC takes its lock for the answer."""
    if _at_work(workspace.root() / ".run" / "workspace.holder"):
        return
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        changed = json.loads(done.stdout)
    except ValueError:
        if dvc_files.lock_is_torn():
            yield "problem", "dvc.lock is half written: `vae doctor --mend`"
        else:  # while another DVC holds its lock, that is no problem
            yield "note" if "lock" in done.stderr else "problem", f"`dvc status` failed: {done.stderr.strip()[-200:]}"
        return
    if changed:
        yield "note", f"to run: {', '.join(changed)} (`make run` or `dvc repro`)"
    else:
        yield "ok", "all up to date"


def locks() -> Found:
    """Who is at work here, by the notes beside the locks; and what a killed DVC left behind."""
    for note in sorted((workspace.root() / ".run").glob("*.holder")):
        if who := _at_work(note):
            yield "note", f"in use by {who}"
    rwlock = Path(".dvc/tmp/rwlock")
    try:
        if rwlock.exists():
            json.loads(rwlock.read_text())
    except ValueError:
        yield "problem", f"{rwlock} is damaged, so DVC does not start: `vae doctor --mend`"


def _at_work(note: Path) -> str | None:
    """Who holds a lock, by the note beside it; None where that process is dead."""
    holder = workspace.read_note(note)
    alive = psutil.pid_exists(holder.get("pid", -1))
    return f"{holder.get('who')} (process {holder['pid']})" if alive else None


def servers() -> Found:
    """Those of `make up`: one that is noted as running has to answer."""
    settings = Path("prefect.toml")
    api = tomllib.loads(settings.read_text("utf-8"))["api"]["url"] if settings.exists() else None
    health = {services.PREFECT: f"{api}/health" if api else None, services.MLFLOW: services.MLFLOW_HEALTH}
    for name in (services.PREFECT, services.MLFLOW, services.WORKER):
        process, url = services.noted_process(name), health.get(name)
        answers = url is not None and services.answers(url)
        if process is None:
            yield "note", f"{name} is not up, but another program answers at {url}" if answers else f"{name} is not up"
        elif url is not None and not answers:
            yield "problem", f"{name} (process {process.pid}) does not answer: `make down`, then `make up`"
        else:
            yield "ok", f"{name} is up"


def mlflow() -> Found:
    """MLflow's database, read without MLflow, so that nothing is created or migrated."""
    file = workspace.root() / "mlflow.db"
    if "MLFLOW_TRACKING_URI" in os.environ:
        yield "note", f"MLFLOW_TRACKING_URI is set: {os.environ['MLFLOW_TRACKING_URI']}"
    elif not file.exists():
        yield "note", "no runs yet"
    else:
        try:
            with sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True) as database:
                runs = database.execute("select count(*) from runs").fetchone()[0]
                aliases = database.execute("select alias, version from registered_model_aliases order by alias")
                models = ", ".join(f"{alias} is version {version}" for alias, version in aliases)
            yield "ok", f"{runs:,} runs; {models or 'no model is registered'}"
        except sqlite3.Error as error:
            yield "problem", f"{file.name} cannot be read: {error}"
