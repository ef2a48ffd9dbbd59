"""What a killed DVC leaves of its two files: a damaged lock, half a `dvc.lock`. With either, DVC refuses to start."""

import itertools
import json
import shutil
import time
from pathlib import Path

import psutil
from ruamel.yaml import YAML, YAMLError

from tasks import workspace
from tasks.host import git
from tasks.workspace import LOCK
from vae.config.errors import InputError


def free_dvc(root: Path) -> bool | None:
    """Removes DVC's own lock file where it is empty, damaged, or names only processes that are not DVC.

    DVC drops the entries of dead processes itself, but refuses a damaged file, and waits forever for a stranger
    that has been given the process id of a dead DVC. Only for the holder of the workspace's lock.

    Returns:
        Whether a file was removed; None where a DVC is running.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    try:
        if path.stat().st_size == 0:
            time.sleep(0.5)  # a living DVC truncates it for a moment whenever it rewrites it
        entries = json.loads(path.read_text())
        holders = [*entries.get("write", {}).values(), *itertools.chain(*entries.get("read", {}).values())]
        in_use = any(_is_dvc(holder["pid"]) for holder in holders)
    except FileNotFoundError:
        return False
    except (ValueError, AttributeError, KeyError, TypeError):
        in_use = False
    if in_use:
        return None
    path.unlink(missing_ok=True)
    return True


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in Path(word).name for word in psutil.Process(pid).cmdline())
    except psutil.AccessDenied:
        return True  # another user's process: it may be one
    except psutil.Error:
        return False


def lock_is_torn() -> bool:
    """Whether DVC would refuse to read dvc.lock."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # takes a second to import
    from voluptuous import Invalid

    if not LOCK.exists():
        return False
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(LOCK) or {})
    except (YAMLError, Invalid, UnicodeDecodeError):
        return True
    return False


def restore_lock() -> str:
    """Replaces a dvc.lock that a killed DVC has left half written by the committed one; returns what was done.

    DVC writes the file in place. Stages that had finished since the commit come back from DVC's run cache.

    Raises:
        InputError: it has a merge conflict.
    """
    if "<<<<<<<" in LOCK.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{LOCK} has a merge conflict: resolve it, for instance by `git checkout --ours {LOCK}`")
    torn = workspace.root() / ".run" / f"{LOCK}.torn"
    torn.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(LOCK, torn)
    committed = git.says("show", f":{LOCK}")  # `git checkout` would need a lock, which a killed Git may have left
    if committed is not None:
        workspace.write(LOCK, committed + "\n")
    now = "DVC begins a new one" if committed is None else "the committed version is restored"
    return f"{LOCK} was half written by a DVC that was killed; it was moved to {torn}, and {now}"
