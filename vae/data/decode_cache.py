"""What ingest has decoded so far, kept on disk: an interrupted ingest goes on after it.

Two files grow together: the prepared pixels of the usable items, one image after another, and the journal, which has a
line for each item. Lines are written only once their pixels are safe, so that the journal never promises too much. A
line holds for a file that has the name, size and times that it had when it was read; from the first item on for which
that fails, all are decoded anew. A file that the machine could not read is tried again; a row of an array never holds.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vae.config.errors import InputError
from vae.data.images import UnusableImage, UnusableNow
from vae.data.sources import File, Item, Refused

SECONDS_BETWEEN_SYNCS = 5.0  # of decoding, which an interruption costs at most


@dataclass(frozen=True, slots=True)
class Examined:
    """What was learnt of an item; a reason means that it cannot be used."""

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    reason: str | None = None


class Decoded:
    """The items that were decoded, by this run and by one before it; open while used in a `with`.

    Attributes:
        pixels: the file of the prepared images.
        examined: one entry for each of the first items.
        kept: how many of them the journal holds.
    """

    def __init__(self, folder: Path, key: str, items: Sequence[Item], image_bytes: int) -> None:
        """`key`: a text that is the same as long as the same items give the same pixels."""
        self.pixels, self._journal = folder / "pixels.bin", folder / "journal.jsonl"
        self._key, self._items, self._image_bytes = key, items, image_bytes
        self.examined: list[Examined] = []
        self._lines: list[str] = []  # not yet in the journal
        self.kept, self._open = 0, ExitStack()
        self._can_hold = True  # what comes next

    def __enter__(self) -> Self:
        good = self._read()
        self._journal_file = self._open.enter_context(self._journal.open("a", encoding="utf-8"))
        # It goes first, and safely: never may it promise what is not there.
        if self._journal_file.tell() > good:
            self._journal_file.truncate(good)
            os.fsync(self._journal_file.fileno())
        self._pixels_file = self._open.enter_context(self.pixels.open("ab"))
        self._pixels_file.truncate(self._usable() * self._image_bytes)
        self.kept, self._synced = len(self.examined), time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open:
            # A short ingest has nothing to keep, be it good or refused; an interrupted one keeps all.
            if self.kept or not (kind is None or issubclass(kind, InputError)):
                with suppress(OSError):
                    self._sync()

    def add(self, found: Sequence[Examined], stamps: Sequence[str | None], pixels: bytes) -> None:
        """The next items, and the pixels of those that can be used."""
        self._pixels_file.write(pixels)
        for stamped, one in zip(stamps, found, strict=True):
            self._can_hold &= stamped is not None or one.reason is not None
            if self._can_hold:
                learnt = (one.width, one.height, one.mode, one.bytes, one.sha256, one.reason)
                self._lines.append(json.dumps((stamped, *learnt)) + "\n")
        self.examined += found
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            self._sync()

    def is_worth_keeping(self) -> bool:
        """Whether a journal is there: this run's, or that of the one before, should it not be read yet."""
        with suppress(OSError):
            return self._journal.stat().st_size > 0
        return False

    def flush(self) -> None:
        """All pixels are in the file, though perhaps not yet safe.

        Raises:
            RuntimeError: the file holds something else; nothing here can bring that about.
        """
        self._pixels_file.flush()
        usable = self._usable()
        if (size := self.pixels.stat().st_size) != usable * self._image_bytes:
            raise RuntimeError(f"{self.pixels} has {size:,} bytes, not those of {usable:,} images")

    def _usable(self) -> int:
        return sum(found.reason is None for found in self.examined)

    def _sync(self) -> None:
        if self._lines:
            self._pixels_file.flush()
            os.fsync(self._pixels_file.fileno())
            if not self.kept:
                self._journal_file.write(json.dumps(self._key) + "\n")
            self._journal_file.writelines(self._lines)
            self._journal_file.flush()
            os.fsync(self._journal_file.fileno())
        self.kept, self._lines, self._synced = self.kept + len(self._lines), [], time.monotonic()

    def _read(self) -> int:
        """Fills `examined` with what still holds. Returns the bytes of the journal that say so."""
        good, room = 0, 0
        with suppress(OSError, ValueError, TypeError, StopIteration), self._journal.open("rb") as lines:
            # The line that an interruption left half written is no JSON, or has no end.
            first = next(lines)
            if json.loads(first) != self._key:
                return 0
            good, room = len(first), self.pixels.stat().st_size
            for line, item in zip(lines, self._items, strict=False):
                stamped, *learnt = json.loads(line)
                found = Examined(*learnt)
                room -= self._image_bytes * (found.reason is None)
                same = stamped == stamp(item) if stamped is not None else found == _unreadable(item)
                if not same or room < 0 or not line.endswith(b"\n"):
                    break
                self.examined.append(found)
                good += len(line)
        return good if self.examined else 0


def _unreadable(item: Item) -> Examined | None:
    """What is learnt of an item that the machine cannot read now either."""
    try:
        item.load()
    except UnusableNow as refusal:
        return Examined(reason=str(refusal))
    except UnusableImage:
        return None
    return None


def stamp(item: Item) -> str | None:
    """What changes when a file does, taken before it is read; None for what is no file."""
    match item.load:
        case File():
            with suppress(OSError):
                status = Path(item.load.path).stat()
                numbers = (
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                    status.st_ino,
                    status.st_dev,
                )
                return f"{item.path} {numbers}"
        case Refused(reason):
            return f"{item.path} {reason}"
    return None
