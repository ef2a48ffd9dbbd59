"""Checkpoints to resume from: written atomically, and checked when they are read (each record has a CRC)."""

import contextlib
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from vae.training.state import TrainState

FINISHED = "finished"

log = logging.getLogger(__name__)


def resume(state: TrainState, path: Path, device: torch.device) -> bool:
    """Restores a training from its newest intact checkpoint; False where there is none."""
    found, problems = load(path, device)
    for problem in problems:
        log.warning(problem)
    if found is None:
        return False
    state.load_state_dict(found)
    log.info("resumed after epoch %d of %d", len(state.history), state.p.train.epochs)
    return True


def save_or_warn(path: Path, state: TrainState) -> None:
    """A checkpoint that cannot be written is not fatal: the previous one remains, and training may finish."""
    try:
        save(path, state.state_dict())
    except OSError as error:
        log.warning(
            "no checkpoint of epoch %d: %s; free some space for %s. Training continues; an interruption would lose "
            "the epochs since the last checkpoint",
            len(state.history),
            error.strerror or error,
            path.parent,
        )


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a temporary file, syncs it, renames it: at any moment `path` or the previous checkpoint is intact.

    Raises:
        OSError: the disk is full or may not be written to; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        aside.unlink(missing_ok=True)
        # torch's archive raises an error of its own, which hides the file system's.
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    if path.exists():
        path.replace(_previous(path))
    aside.replace(path)
    _sync_folder(path.parent)


def load(path: Path, device: torch.device) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest intact checkpoint, and what was wrong with the damaged ones.

    Loads without running any code from the file (`weights_only`). A damaged one is removed.

    Raises:
        OSError: a file cannot be read, though it may be whole.
    """
    problems: list[str] = []
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        try:
            _check(candidate)
            return torch.load(candidate, map_location=device, weights_only=True), problems
        except (OSError, torch.cuda.OutOfMemoryError):
            raise  # the file may well be whole
        except Exception as error:  # a damaged archive can raise anything
            problems.append(f"checkpoint {candidate.name} is damaged and skipped: {error}".splitlines()[0])
            # Removed: the next save would rename it over the intact previous one.
            candidate.unlink()
    return None, problems


def finish(folder: Path) -> None:
    """Marks a training as complete. Its checkpoints stay until its results are safe: see `remove_finished`."""
    with contextlib.suppress(OSError):  # a disk that is full or read-only: nothing to mark, or it stays
        (folder / FINISHED).touch()


def remove_finished(root: Path, but: Path | None = None) -> None:
    """Removes the folders of finished trainings, except one."""
    for mark in root.glob(f"*/{FINISHED}"):
        if mark.parent != but:
            shutil.rmtree(mark.parent, ignore_errors=True)


def _check(path: Path) -> None:
    """Raises: zipfile.BadZipFile: a record's CRC is wrong; torch.load does not look at it."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise zipfile.BadZipFile("a record is compressed, as torch never does; it could unpack to any size")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
