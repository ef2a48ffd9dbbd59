"""What a run was made from: commit, data, stage, flow run, machine. Tags for MLflow, links for the report."""

import hashlib
import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks import workspace
from tasks.host import git
from vae.config.constants import SPLITS
from vae.config.parameters import Parameters

# Set by the flow for the stages that it runs.
FLOW_RUN_ID = "VAE_TRAIN_FLOW_RUN_ID"
FLOW_RUN_NAME = "VAE_TRAIN_FLOW_RUN_NAME"
FLOW_RUN_URL = "VAE_TRAIN_FLOW_RUN_URL"
OVERLAY = "VAE_TRAIN_EXPERIMENT"  # the file of experiments/ that is laid over the defaults
EXPERIMENT_NAME = "DVC_EXP_NAME"  # set by DVC for the stages of an experiment
BUDGET_EPOCHS = "budget.epochs"  # a tag: the epochs that `train.budget` paid for

# Libraries that pixels, numbers or tables pass through; torch is among `compute.*`.
_SHAPING = ("numpy", "pandas", "pillow", "scikit-learn", "scipy", "torchmetrics")

# Environment variables by which libraries choose their instructions.
SWITCHES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE",
)  # fmt: skip

MANY = 100  # changed files that a tag names; "…" is for the others


def commit() -> dict[str, str]:
    """`git.commit`, `git.dirty` and `git.changed`: the files that differ from the commit, one per line.

    Without Git, the commit that the container image was built from, or `git.unavailable`: why there is none.
    """
    try:
        head = git.head()
    except git.NoCommit as error:
        image = os.environ.get("GIT_COMMIT")
        return {"git.commit": image} if image else {"git.unavailable": str(error)}
    compared = git.run("diff", "--name-only", "-z", "HEAD")
    if compared.returncode != 0:
        return {"git.unavailable": git.words(compared.stderr)}
    changed = compared.stdout.split("\0")
    # dvc.lock changes while the pipeline runs: it records results and does not affect them.
    changed = [name for name in changed if name and name != str(workspace.LOCK)]
    named = [*changed[:MANY], *(["…"] if len(changed) > MANY else [])]
    return {"git.commit": head, "git.dirty": str(bool(changed)).lower(), "git.changed": "\n".join(named)}


def commit_url(commit: str) -> str | None:
    """The page of a commit on the host of the remote `origin`, if that is a web host."""
    remote = git.says("remote", "get-url", "origin") or ""
    # https://user:secret@host/path.git and git@host:path.git; the credentials are left out
    found = re.fullmatch(r"(?:https?://(?:[^/@]*@)?|ssh://git@|git@)([\w.-]+)(?::\d+/|[:/])(.+?)(?:\.git)?/?", remote)
    return f"https://{found[1]}/{found[2]}/commit/{commit}" if found else None


def flow() -> dict[str, str]:
    """The Prefect flow run, or the `dvc exp run`, that this process belongs to; empty outside both."""
    names = {
        "prefect.flow_run_id": FLOW_RUN_ID,
        "prefect.flow_run_name": FLOW_RUN_NAME,
        "prefect.flow_run_url": FLOW_RUN_URL,
        "experiment": OVERLAY,
        "dvc.experiment": EXPERIMENT_NAME,
    }
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


def data(folder: Path = Path()) -> dict[str, str]:
    """`data.sha256`: one hash over the three arrays of a workspace."""
    hashes = "".join(workspace.sha256(folder / workspace.images(split)) for split in SPLITS)
    return {"data.sha256": hashlib.sha256(hashes.encode()).hexdigest()}


def subject(p: Parameters) -> dict[str, str]:
    """Tags to filter by."""
    return {"data.source": p.data.source, "architecture": p.model.architecture}


def machine() -> dict[str, str]:
    """`machine.*` and `version.*`: what may affect the last bits besides `vae.compute.devices.Compute.describe`."""
    switches = [f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ]
    return {
        "machine.cpu": _cpu(),
        "machine.system": platform.platform(),
        "machine.switches": " ".join(switches) or "none",
        "version.python": platform.python_version(),
        **{f"version.{package}": version(package) for package in _SHAPING},
    }


def stage(name: str) -> dict[str, str]:
    """`dvc.STAGE`: the hash of a stage's entry in dvc.lock, that is, of its code, data, parameters and results."""
    hashed = stage_hash(workspace.LOCK.read_text(encoding="utf-8"), name) if workspace.LOCK.exists() else None
    return {} if hashed is None else {f"dvc.{name}": hashed}


def stage_hash(lock: str, name: str) -> str | None:
    """The hash of a stage's entry in the text of a dvc.lock; None where it has none."""
    stages: dict[str, Any] = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    if name not in stages:
        return None
    return hashlib.sha256(json.dumps(stages[name], sort_keys=True).encode()).hexdigest()


def _cpu() -> str:
    """The processor's model name, where the system reports it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
