"""File locks that say who holds them."""

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from vae.config.errors import InputError


@contextmanager
def hold(path: Path, who: str, seconds: float = 0, tell: bool = False) -> Iterator[None]:
    """Holds a lock, waiting up to `seconds` for it. The kernel frees it when the process ends, however it ends.

    With `tell` it says for whom it waits, where that is longer than a second.

    Raises:
        InputError: another process holds it; names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(path), path.with_suffix(".holder")
    try:
        _acquire(lock, holder, seconds, tell)
    except Timeout:
        raise InputError(f"{_describe(holder)}; wait for it to end, or stop it") from None
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "who": who}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, holder: Path, seconds: float, tell: bool) -> None:
    try:
        lock.acquire(timeout=min(seconds, 1))
    except Timeout:
        if seconds <= 1:
            raise
        if tell:
            print(f"{_describe(holder)}; waiting up to {seconds:g} s", file=sys.stderr, flush=True)
        lock.acquire(timeout=seconds - 1)


def _describe(holder: Path) -> str:
    try:
        held = json.loads(holder.read_text())
        return f"this workspace is in use by {held['who']} (process {held['pid']})"
    except (OSError, ValueError, KeyError):
        return f"this workspace is in use: another process holds {holder.with_suffix('.lock')}"


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
