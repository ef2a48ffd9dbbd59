"""What ingest has decoded, kept on disk in chunks, so that an interrupted ingest resumes after it.

A finished chunk is one file, named by a hash of the path, size, times and inode of each of its items: a chunk in
which a file was changed, replaced, added or removed is not found again. Neither is a chunk with rows of an array, or
with an item that was refused for a reason of the machine's, such as too little memory.
A kill or a power cut may leave a file incomplete: the directory and the checksums of the zip format reveal it.
"""

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NamedTuple
from zipfile import ZipFile, ZipInfo

import numpy as np
import PIL
from numpy.typing import NDArray

from vae.config.preprocessing import Preprocessing
from vae.data.images import UnusableImage, UnusableNow, prepare
from vae.data.item import File, Item, Refused

CHUNK_ITEMS, CHUNK_BYTES = 64, 2**23  # at most; an interruption costs a chunk of each worker
_PIXELS, _EXAMINED = "pixels", "examined.json"


class Examined(NamedTuple):
    """What was learnt of an item; one with a reason cannot be used."""

    width: int | None = None
    height: int | None = None
    mode: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    reason: str | None = None
    note: str | None = None  # what may have been lost; see `vae.data.notes`
    transient: bool = False  # the reason is the machine's, not the image's


@dataclass(frozen=True, slots=True)
class Chunk:
    examined: list[Examined]
    file: Path  # of the prepared pixels of the usable items
    resumed: bool  # decoded by an earlier run

    def pixels(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """(usable items, H, W, C)

        shape: of an image.
        """
        with ZipFile(self.file) as parts:
            return np.frombuffer(parts.read(_PIXELS), np.uint8).reshape(-1, *shape)


class DecodeCache:
    """Chunks that may be found again are under `folder`, the others in `scratch`.

    Attributes:
        stop: once it is set, no further image is decoded.
    """

    def __init__(self, folder: Path, scratch: Path, preprocessing: Preprocessing) -> None:
        self._preprocessing, self._scratch, self.stop = preprocessing, scratch, Event()
        code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py")))
        settings = preprocessing.shape, preprocessing.value_range, preprocessing.alpha
        key = hashlib.sha256(f"{settings}, Pillow {PIL.__version__}\n".encode() + code).hexdigest()
        self.folder = folder / key
        for other in set(folder.glob("*")) - {self.folder}:
            shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def split(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """The same chunks whenever the items and the size of the images are the same."""
        size = max(min(CHUNK_ITEMS, CHUNK_BYTES // math.prod(self._preprocessing.shape)), 1)
        return [items[start : start + size] for start in range(0, len(items), size)]

    def decode(self, items: Sequence[Item]) -> Chunk:
        """Finds a chunk or decodes it; safe to call from several threads.

        Raises:
            CancelledError: `stop` was set.
        """
        stamps = [_stamp(item) for item in items]
        file = self.folder / f"{hashlib.sha256(repr(stamps).encode()).hexdigest()}.zip"
        if None not in stamps and (found := _read(file)):
            return Chunk(found, file, resumed=True)
        examined, pixels = [], []
        for item in items:
            if self.stop.is_set():
                raise CancelledError
            learnt, image = _examine(item, self._preprocessing)
            examined.append(learnt)
            pixels += [] if image is None else [image.data]
        if None in stamps or any(learnt.transient for learnt in examined):
            file = self._scratch / f"{uuid.uuid4()}.zip"
        with ZipFile(file, "w") as parts:
            parts.writestr(ZipInfo(_PIXELS), b"".join(pixels))
            parts.writestr(ZipInfo(_EXAMINED), json.dumps(examined))
        return Chunk(examined, file, resumed=False)


def _stamp(item: Item) -> tuple[str | int, ...] | None:
    """What changes when a file does, taken before it is read; None for what is not a file."""
    match item.load:
        case File():
            with suppress(OSError):
                s = os.stat(item.load.path)  # noqa: PTH116  # a Path costs more than the call
                return (item.path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev)
        case Refused(reason):
            return (item.path, reason)
    return None


def _read(file: Path) -> list[Examined] | None:
    try:
        with ZipFile(file) as parts:
            parts.read(_PIXELS)  # compares the checksum
            return [Examined(*learnt) for learnt in json.loads(parts.read(_EXAMINED))]
    except Exception:  # no such file, or a damaged one, which raises anything
        return None


def _examine(item: Item, preprocessing: Preprocessing) -> tuple[Examined, NDArray[np.uint8] | None]:
    size, digest = None, None
    try:
        content = item.load()
        raw = content if isinstance(content, bytes) else content.tobytes()
        size, digest = len(raw), hashlib.sha256(raw).hexdigest()
        prepared = prepare(content, preprocessing)
    except UnusableImage as refusal:
        transient = isinstance(refusal, UnusableNow)
        return Examined(bytes=size, sha256=digest, reason=str(refusal), transient=transient), None
    learnt = Examined(prepared.width, prepared.height, prepared.mode, size, digest, note=prepared.note)
    return learnt, prepared.pixels
