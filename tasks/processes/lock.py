"""File locks that say who holds them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks import workspace
from vae.config.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def hold(path: Path, who: str, seconds: float = 0) -> Iterator[None]:
    """Holds a lock, waiting up to `seconds` for it. The kernel releases it when the process ends, however it ends.

    A wait of more than a second is logged, with the holder.

    Raises:
        InputError: another process holds it; names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(path), path.with_suffix(".holder")
    try:
        _acquire(lock, holder, seconds)
    except Timeout:
        raise InputError(f"{_describe(holder)}; wait for it to end, or stop it") from None
    try:
        workspace.write_json(holder, {"pid": os.getpid(), "who": who})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, holder: Path, seconds: float) -> None:
    try:
        lock.acquire(timeout=min(seconds, 1))
    except Timeout:
        if seconds <= 1:
            raise
        log.info("%s; waiting up to %g s", _describe(holder), seconds)
        lock.acquire(timeout=seconds - 1)


def _describe(holder: Path) -> str:
    held = workspace.read_note(holder)
    if {"who", "pid"} <= held.keys():
        return f"this workspace is in use by {held['who']} (process {held['pid']})"
    return f"this workspace is in use: another process holds {holder.with_suffix('.lock')}"
