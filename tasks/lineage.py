"""What a run was made of: commit, data, stage, flow run. Tags for MLflow, links for the report."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

from tasks import workspace

# The flow gives these to the stages that it runs.
FLOW_RUN_ID, FLOW_RUN_NAME, FLOW_RUN_URL = (
    "VAE_TRAIN_FLOW_RUN_ID",
    "VAE_TRAIN_FLOW_RUN_NAME",
    "VAE_TRAIN_FLOW_RUN_URL",
)


def git() -> dict[str, str]:
    """`git.commit` and `git.dirty`; outside a repository the commit that a container image was built from."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"git.commit": os.environ["GIT_COMMIT"]} if os.environ.get("GIT_COMMIT") else {}
    changed = _git("status", "--porcelain", "--untracked-files=no") or ""
    # dvc.lock changes while the pipeline runs: it records results, it does not shape them.
    dirty = any(line[3:] != "dvc.lock" for line in changed.splitlines())
    return {"git.commit": commit, "git.dirty": str(dirty).lower()}


def commit_url(commit: str) -> str | None:
    """Where the commit can be looked at: on the host of the remote `origin`, where that is a web host."""
    remote = _git("remote", "get-url", "origin") or ""
    # https://user:secret@host/path.git and git@host:path.git; who logs in there, and how, is left out
    found = re.fullmatch(
        r"(?:https?://(?:[^/@]*@)?|ssh://git@|git@)([\w.-]+)(?::\d+/|[:/])(.+?)(?:\.git)?/?", remote
    )
    return f"https://{found[1]}/{found[2]}/commit/{commit}" if found else None


def flow() -> dict[str, str]:
    """The Prefect flow run that this process works for; empty outside one."""
    names = {
        "prefect.flow_run_id": FLOW_RUN_ID,
        "prefect.flow_run_name": FLOW_RUN_NAME,
        "prefect.flow_run_url": FLOW_RUN_URL,
    }
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


def data() -> dict[str, str]:
    """`data.sha256`: one hash over the three arrays."""
    digest = hashlib.sha256()
    for split in workspace.SPLITS:
        digest.update(workspace.sha256(workspace.images(split)).encode())
    return {"data.sha256": digest.hexdigest()}


def stage(name: str) -> dict[str, str]:
    """`dvc.STAGE`: the hash of a stage's entry in dvc.lock, so of its code, data, parameters and results."""
    from ruamel.yaml import YAML

    lock = Path("dvc.lock")
    if not lock.exists():
        return {}
    entry = (YAML(typ="safe").load(lock) or {}).get("stages", {}).get(name)
    if entry is None:
        return {}
    return {f"dvc.{name}": hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
