"""What a killed DVC leaves of its two files: a torn lock, half a `dvc.lock`. With either, the next will not start."""

import itertools
import json
import shutil
import time
from pathlib import Path

import psutil
from ruamel.yaml import YAML, YAMLError

from tasks import workspace
from tasks.processes import git
from tasks.workspace import LOCK


def free_dvc(root: Path) -> bool | None:
    """Removes what a dead DVC has left of its lock: a file that is empty or torn, and the entries of processes
    that are no DVC (their ids are in use again). Only for the holder of the workspace's lock.

    DVC clears the entries of dead processes itself, refuses to start with a torn file, and waits for ever for
    a stranger that happens to have the id of a dead DVC.

    Returns:
        Whether there was something to remove; None where a DVC is at work.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    try:
        if path.stat().st_size == 0:
            time.sleep(0.5)  # a living DVC empties it for a moment, whenever it writes it anew
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
        return True  # another user's process: not ours to judge
    except psutil.Error:
        return False


def lock_is_torn() -> bool:
    """Whether DVC would refuse to read dvc.lock."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if not LOCK.exists():
        return False
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(LOCK) or {})
    except (YAMLError, Invalid, UnicodeDecodeError):
        return True
    return False


def restore_lock() -> str:
    """Puts the committed dvc.lock in the place of one that a killed DVC has left half written; says what was done.

    DVC writes the file in place. What stages had finished since the commit DVC finds in its cache of runs.
    """
    if "<<<<<<<" in LOCK.read_text(encoding="utf-8", errors="replace"):
        return f"{LOCK} holds a conflict of a merge: settle it, for instance by `git checkout --ours {LOCK}`"
    torn = workspace.root() / ".run" / f"{LOCK}.torn"
    torn.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(LOCK, torn)
    committed = git.says("checkout", "--", str(LOCK)) is not None
    now = "the committed one stands in its place" if committed else "DVC begins a new one"
    return f"{LOCK} was half written, by a DVC that was killed; it is {torn} now, and {now}"
