"""The idx format of MNIST, plain or gzipped."""

import gzip
import math
import os
import tempfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vae.config.errors import InputError


def expect_regular(path: Path) -> None:
    """Raises: InputError: it is not a regular file: opening a pipe, for example, would wait forever."""
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is not a regular file; replace it by one")


def idx_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, memory-mapped.

    The format (http://yann.lecun.com/exdb/mnist): 00 00 08 for unsigned bytes, the number of dimensions, each
    size as 4 bytes, high byte first, then the data. A gzipped file is unpacked into a temporary one without a
    name, since it cannot be memory-mapped.

    Raises:
        InputError: it cannot be read, is broken, is another kind of file, or its size contradicts its header.
    """
    try:
        expect_regular(path)
        if path.suffix.lower() != ".gz":
            with path.open("rb") as plain:
                return _mapped(plain, path, dimensions)
        with gzip.open(path, "rb") as packed, tempfile.TemporaryFile() as unpacked:
            _unpack(packed, unpacked, dimensions)
            unpacked.seek(0)
            return _mapped(unpacked, path, dimensions)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{str(path)!r} is a broken gzip file: {error}; download it again") from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def _unpack(packed: gzip.GzipFile, unpacked: IO[bytes], dimensions: int) -> None:
    """As much as the header promises, and one byte to detect more: a gzip bomb does not fill the disk."""
    head = packed.read(4 + 4 * dimensions)
    unpacked.write(head)
    left = math.prod(_shape(head)) + 1
    while left > 0 and (block := packed.read(min(left, 2**20))):
        unpacked.write(block)
        left -= len(block)


def _shape(head: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(head[i : i + 4]) for i in range(4, len(head), 4))


def _mapped(file: IO[bytes], path: Path, dimensions: int) -> NDArray[np.uint8]:
    head = file.read(4 + 4 * dimensions)
    if head[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(
            f"{str(path)!r} begins with {head[:4].hex(' ') or 'nothing'}; an idx file of bytes with "
            f"{dimensions} dimensions begins with 00 00 08 {dimensions:02}"
        )
    shape = _shape(head)
    size, promised = file.seek(0, os.SEEK_END), len(head) + math.prod(shape)
    if len(shape) != dimensions or size != promised:
        raise InputError(
            f"{str(path)!r} holds {size:,} bytes where its header {shape} promises {promised:,}; download it again"
        )
    if 0 in shape:
        raise InputError(f"{str(path)!r} holds no images: its header says {shape}")
    return np.memmap(file, np.uint8, "r", len(head), shape)
