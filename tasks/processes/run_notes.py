"""Notes of what a process works for, told apart from those that a dead process has left.

A living process holds a lock on its note, which the kernel frees however that process ends: neither a
process id that is used again nor a clock that is moved misleads.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextmanager
def noted(folder: Path, name: str, content: Mapping[str, Any]) -> Iterator[None]:
    """Leaves a note, as long as the block lasts or until this process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        note = folder / f"{name}.json"
        try:
            note.write_text(json.dumps(content), encoding="utf-8")
            yield
        finally:
            _remove(note)


def living(folder: Path) -> dict[str, dict[str, Any]]:
    """The notes of processes that live, by name."""
    found = {}
    for note in sorted(folder.glob("*.json")):
        try:
            with FileLock(note.with_suffix(".lock"), timeout=0):
                pass
        except Timeout:
            found[note.stem] = _read(note)
    return found


def left_behind(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of the notes of dead processes; each is removed once the loop has gone on from it."""
    for note in sorted(folder.glob("*.json")):
        try:
            with FileLock(note.with_suffix(".lock"), timeout=0):
                if note.exists():  # it may have ended properly since the list was made
                    yield note.stem, _read(note)
                    _remove(note)
        except Timeout:
            continue


def _remove(note: Path) -> None:
    note.unlink(missing_ok=True)
    note.with_suffix(".lock").unlink(missing_ok=True)


def _read(note: Path) -> dict[str, Any]:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
