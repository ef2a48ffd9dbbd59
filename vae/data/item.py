"""One image of a source that is not read yet."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae.config.errors import InputError
from vae.data.images import UnusableImage, read_file

Content = bytes | NDArray[np.uint8]

_WORDS = {
    "train": "train training",
    "valid": "valid val validation dev",
    "test": "test testing eval evaluation holdout",
}
SPLIT_NAMES = {word: split for split, words in _WORDS.items() for word in words.split()}


@dataclass(frozen=True, slots=True)
class Item:
    path: str  # as in the manifest: relative to data.path, with /, bytes that are not UTF-8 as \xNN
    split: str | None
    label: str | None
    load: Callable[[], Content]  # a file's bytes, or uint8 (H, W) or (H, W, C); raises UnusableImage


@dataclass(frozen=True, slots=True)
class File:
    """Loads a file."""

    root: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.root}/{self.name}"

    def __call__(self) -> Content:
        return read_file(self.path)


@dataclass(frozen=True, slots=True)
class Refused:
    """Loads nothing, for a reason that is known beforehand."""

    reason: str

    def __call__(self) -> Content:
        raise UnusableImage(self.reason)


def storable(name: str) -> str:
    """A file's name as text that can be stored: bytes that are not UTF-8 become \\xNN."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def row_name(name: str, i: int, count: int) -> str:
    """Padded with zeros, so that names sort as the rows do."""
    return f"{name}/{i:0{len(str(count - 1))}}"


def expect_folder(path: Path, source: str) -> None:
    """Raises: InputError: it does not exist, or is a file."""
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"data.path = {str(path)!r} {found}; data.source = {source} needs a folder")
