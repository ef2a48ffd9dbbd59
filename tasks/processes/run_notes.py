"""Notes of what a process works on, and which of them a dead process has left behind.

A living process holds a lock on its note, which the kernel releases however that process ends: neither a reused
process id nor a changed clock misleads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tasks import workspace


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
    """Name and content of each note of a dead process; a note is removed once the loop moves on from it."""
    for note in sorted(folder.glob("*.json")):
        try:
            with FileLock(note.with_suffix(".lock"), timeout=0):
                if note.exists():  # its process may have ended properly since the list was made
                    yield note.stem, workspace.read_note(note)
                    _remove(note)
        except Timeout:
            continue


def _remove(note: Path) -> None:
    note.unlink(missing_ok=True)
    note.with_suffix(".lock").unlink(missing_ok=True)
