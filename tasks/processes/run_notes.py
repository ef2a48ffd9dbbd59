"""Notes of what a process works on, and which of them a dead process has left behind.

A living process holds a lock on its note, which the kernel releases however that process ends: neither a reused
process id nor a changed clock misleads. In a copy of the folder nobody holds the lock; there, the note names the
process that works in the other folder.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from tasks import workspace

SAME_START = 2.0  # seconds; the time of boot, on which a process's start is based, is adjusted now and then


@contextmanager
def noted(folder: Path, name: str, content: Mapping[str, Any]) -> Iterator[None]:
    """Leaves a note until the block ends or this process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        note = folder / f"{name}.json"
        try:
            workspace.write_json(note, content)
            yield
        finally:
            _remove(note)


def this_process() -> dict[str, Any]:
    """Content by which a copy of the note is known as one, as long as this process lives."""
    return {"pid": os.getpid(), "started": psutil.Process().create_time()}


def living(folder: Path) -> dict[str, dict[str, Any]]:
    """The notes of living processes, by name."""
    found = {}
    for note in sorted(folder.glob("*.json")):
        try:
            with FileLock(note.with_suffix(".lock"), timeout=0):
                pass
        except Timeout:
            found[note.stem] = workspace.read_note(note)
    return found


def left_behind(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of each note of a dead process; a note is removed once the loop moves on from it.

    A note that was copied from the folder of a living process is left, until that process has ended.
    """
    for note in sorted(folder.glob("*.json")):
        try:
            with FileLock(note.with_suffix(".lock"), timeout=0):
                content = workspace.read_note(note)
                if note.exists() and not _lives(content):  # it may have ended properly since the list was made
                    yield note.stem, content
                    _remove(note)
        except Timeout:
            continue


def _lives(content: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a note is alive, and not only another one with its id."""
    try:
        process = psutil.Process(content["pid"])
        same = abs(process.create_time() - content["started"]) < SAME_START
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (KeyError, TypeError, ValueError, psutil.Error):
        return False


def _remove(note: Path) -> None:
    note.unlink(missing_ok=True)
    note.with_suffix(".lock").unlink(missing_ok=True)
