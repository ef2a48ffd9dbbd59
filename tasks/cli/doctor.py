"""Checks of the installation and the workspace that find problems before a run does; each says what to do."""

import importlib.util
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import psutil
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasks import host, overlay, workspace
from tasks.host import addresses, place
from tasks.host.git import NoCommit, head, refusal, says
from tasks.processes import dvc_files, services
from tasks.processes.lock import hold
from tasks.processes.owner import ask_dvc
from vae.compute.devices import Compute, named
from vae.config import loading
from vae.config.errors import InputError
from vae.config.text import printable
from vae.data.folders import folder
from vae.features.network import file_of

MOST_FILES = 20_000  # of data.path that are looked at: a few seconds
FREE_GB = 2.0  # enough for a run on a few thousand images with its cache and its MLflow artifacts

Found: TypeAlias = Iterator[tuple[str, str]]  # (state, text); `note`: worth knowing, `problem`: something to do


def examine() -> list[dict[str, str]]:
    """The name, state and text of all checks, which change nothing and start nothing."""
    checks = (
        packages, location, environment, compute, disk, git, cache, parameters, folders, validation, stages, results,
        locks, servers, mlflow,
    )  # fmt: skip
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
        repair = "`rm .venv/ready*; make setup`, and `make test` for what only tests and documentation need"
        yield "problem", f"{', '.join(others)}: {repair}"
    else:
        yield "ok", f"as pinned in constraints.txt ({len(pins)} pins)"


def environment() -> Found:
    """What of the user's shell is ignored, and what leads elsewhere although it cannot be ignored."""
    found = [("note", change) for change in host.environment.changes]
    if "DVC_ROOT" in os.environ and "DVC_STAGE" not in os.environ:
        found.append(("problem", f"DVC_ROOT = {os.environ['DVC_ROOT']}: stores and locks are sought there; unset it"))
    for name in ("numpy", "torch", "mlflow", "dvc", "prefect"):
        spec = importlib.util.find_spec(name)
        if os.environ.get("PYTHONPATH") and spec and spec.origin and not Path(spec.origin).is_relative_to(sys.prefix):
            place = Path(spec.origin).parent
            found.append(("problem", f"{name} is loaded from {place}, not from .venv: unset PYTHONPATH"))
    yield from found or [("ok", "nothing in it is ignored")]


def location() -> Found:
    """Whether everything that holds the folder's path names this folder: it may have been moved or copied."""
    found = list(place.unsettled())
    yield from found
    if not found:
        yield "ok", f"{workspace.root()}, and nothing names another folder"


def compute() -> Found:
    facts = Compute(named("auto"), "fp32").describe()
    if torch.cuda.is_available():
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
        yield "ok", f"{facts['hardware']}, {free:.0f} of {total:.0f} GiB free, PyTorch {facts['torch']}"
        return
    text = f"CPU ({facts['cpu_capability']}), {facts['threads']} threads, PyTorch {facts['torch']}"
    if torch.backends.mps.is_available():
        text += "; Apple's GPU is not used: it lacks float64, in which sums are kept"
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


def parameters() -> Found:
    """Whether params.yaml is valid, and which of its values come from the last run's EXPERIMENT and SET."""
    try:
        p = loading.load(workspace.PARAMS)
        if p.objective.uses_features:
            file_of(p.objective.features)
        laid_over = overlay.laid_over()
    except InputError as error:
        yield from (("problem", line) for line in str(error).splitlines())
        return
    if laid_over:
        yield (
            "note",
            f"EXPERIMENT and SET of the last run: {', '.join(laid_over)}; a plain `make run` restores your own",
        )
    else:
        yield "ok", f"{workspace.PARAMS} is valid"


def results() -> Found:
    """The last verdict."""
    if verdict := workspace.read_note(workspace.MONITOR):
        yield (
            "ok" if verdict.get("verdict") == "healthy" else "note",
            f"last run: {verdict.get('verdict')}: {verdict.get('summary')}",
        )


def validation() -> Found:
    """What the last validation found, a line for each rule."""
    try:
        rules = json.loads(workspace.VALIDATION.read_text("utf-8"))["rules"]
        broken = [rule for rule in rules if rule["count"]]
        for rule in broken:
            example = rule["examples"][0]
            where = example["file"] or example["split"]
            found = f"last run: {rule['name']} ({rule['count']:,}): {f'{where}: ' * bool(where)}{example['value']}"
            text = f"{found}; to do: {rule.get('what_to_do', rule['checks'])}"
            yield "problem" if rule["severity"] == "error" else "note", printable(text)
    except FileNotFoundError:
        yield "note", "not validated yet"
    except (ValueError, LookupError, TypeError):
        yield "problem", f"{workspace.VALIDATION} is damaged: `dvc repro --force --single-item validate`"
    else:
        yield (
            ("note", f"all findings: {workspace.VALIDATION_FAILURES}") if broken else ("ok", "validation found nothing")
        )


def git() -> Found:
    """Whether runs are recorded with their commit and kept as experiments, and why not."""
    lock = Path(says("rev-parse", "--git-path", "index.lock") or "")
    if lock.is_file():
        yield "note", f"{lock} exists: if no Git is running here, a killed one has left it; remove it then"
    try:
        yield "ok", f"commit {head()[:12]}"
    except NoCommit as error:
        broken = os.path.lexists(".git") and refusal()
        yield "problem" if broken else "note", f"{error}; runs record no commit and are not kept as experiments"


def cache() -> Found:
    """DVC's cache, which may be on another disk."""
    folder = Path(ask_dvc("cache", "dir").stdout.strip() or ".dvc/cache").absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        yield "problem", f"{folder} cannot be written to; check its permissions, or `dvc cache dir` for another"
    elif free < FREE_GB:
        yield "problem", f"{free:.1f} GB free at {folder}, less than {FREE_GB:g}: `dvc gc --workspace` frees some"
    else:
        yield "ok", str(folder)


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
    done = ask_dvc("status", "--json", "dvc.yaml")  # DVC files of a data folder are not this pipeline's
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
    api, named = services.prefect_url(), os.environ.get("PREFECT_API_URL")
    if named and api and not addresses.same(named, api):
        if (reason := services.silence(f"{named}/health")) is None:
            yield "note", f"PREFECT_API_URL = {addresses.shown(named)}: that server is used"
        else:
            yield "problem", f"PREFECT_API_URL = {addresses.shown(named)}: {reason}; start that server, or unset it"
    health = {services.PREFECT: f"{api}/health" if api else None, services.MLFLOW: services.MLFLOW_HEALTH}
    for name in (services.PREFECT, services.MLFLOW, services.WORKER):
        yield _server(name, health.get(name))


def _server(name: str, url: str | None) -> tuple[str, str]:
    process, port = services.noted_process(name), urlsplit(url).port or 80 if url else 0
    answers = url is not None and services.answers(url)
    if outdated := services.outdated_process(name):
        return "problem", f"{name} (process {outdated.pid}): {services.OUTDATED}; `make up` replaces it"
    if process is None:
        other = f", but another program answers at {url}{services.listener(port)}" if answers else ""
        return "note", f"{name} is not up{other}"
    if url is not None and not (answers and services.listens(process, port)):
        return "problem", f"{name} (process {process.pid}) does not answer: `make down`, then `make up`"
    return "ok", f"{name} is up"


def mlflow() -> Found:
    """MLflow's database, read without MLflow, so that nothing is created or migrated."""
    file = workspace.root() / "mlflow.db"
    try:
        named = addresses.tracking_uri()
    except InputError as error:
        yield "problem", str(error)
        return
    if named:
        reason = services.silence(named) if named.startswith("http") else None
        text = f"MLFLOW_TRACKING_URI = {addresses.shown(named)}"
        yield ("problem", f"{text}: {reason}; start that server, or unset it") if reason else ("note", text)
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
