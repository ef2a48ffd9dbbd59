"""Images that are rows of arrays: scikit-learn's digits, idx files and NumPy files."""

import math
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vae.config.errors import InputError
from vae.config.sections import SMALLEST_IMAGE
from vae.config.text import one_line
from vae.data.idx import expect_regular, idx_array
from vae.data.images import MAX_PIXELS, scaled
from vae.data.item import SPLIT_NAMES, Item, expect_folder, row_name

Range: TypeAlias = tuple[float, float] | None


def digits() -> list[Item]:
    """scikit-learn's 1,797 scanned digits: 8×8, grey values 0..16 scaled to 0..255."""
    package = find_spec("sklearn")  # `sklearn.datasets.load_digits` reads the same file, after two seconds of imports
    assert package is not None and package.origin is not None
    rows = np.loadtxt(Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz", delimiter=",")
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return _rows(images, "digits", None, [str(int(label)) for label in rows[:, -1]])


def idx(path: Path, value_range: Range = None) -> list[Item]:
    """MNIST's format, plain or gzipped: `*train-images-idx3-ubyte`, `t10k` or `test`, and their labels.

    Where a file exists both plain and gzipped, the plain one is read.
    """
    expect_folder(path, "idx")
    pattern = re.compile(r"(.*?)[-._]?images[-.]idx3-ubyte(\.gz)?", re.IGNORECASE)
    matches = sorted((m for f in path.iterdir() if (m := pattern.fullmatch(f.name))), key=lambda m: m[0])
    sets = {match[1]: match[0] for match in reversed(matches)}
    if not sets:
        raise InputError(
            f"data.path = {str(path)!r} holds no file named like train-images-idx3-ubyte or "
            "t10k-images-idx3-ubyte.gz, which data.source = idx reads"
        )
    items: list[Item] = []
    seen: dict[str | None, str] = {}
    for prefix, name in sorted(sets.items()):
        split = (SPLIT_NAMES | {"t10k": "test"}).get(re.split(r"[-._]", prefix.lower())[-1])
        if split in seen:
            raise InputError(
                f"{seen[split]} and {name} in {str(path)!r} are both {split or 'without a split'}; keep one"
            )
        seen[split] = name
        images = idx_array(path / name, 3)
        if images.shape[1] * images.shape[2] > MAX_PIXELS:
            raise InputError(f"{name} in {str(path)!r} has images of {images.shape[1:]} pixels: too large")
        labels_file = _idx_labels_file(path / name)
        labels = None if labels_file is None else [str(label) for label in idx_array(labels_file, 1)]
        items += _rows(images, name, split, labels, value_range)
    return items


def _idx_labels_file(images: Path) -> Path | None:
    plain = re.sub(r"(?i)images([-.])idx3-ubyte(\.gz)?$", r"labels\1idx1-ubyte", images.name)
    candidates = (images.with_name(plain), images.with_name(plain + ".gz"))
    return next((file for file in candidates if file.exists()), None)


def npy(path: Path, value_range: Range = None) -> list[Item]:
    """NumPy arrays: N×H×W or N×H×W×C (C of 1, 3, or 4 with alpha), uint8, bool, or floats in [0, 1].

    With a `value_range`, [black, white], integers and floats of any type.

    One file (all images), or a folder with train.npy and optionally valid.npy and test.npy, or other names of splits.
    Labels, if any, are in NAME_labels.npy beside each: N integers or strings.
    """
    if not path.exists():
        raise InputError(f"data.path = {str(path)!r} does not exist; give a .npy file or a folder with train.npy")
    if path.is_file():
        return _npy_rows(path, None, value_range)
    files = {f: SPLIT_NAMES[f.stem.lower()] for f in sorted(path.glob("*.npy")) if f.stem.lower() in SPLIT_NAMES}
    if "train" not in files.values():
        raise InputError(f"data.path = {str(path)!r} holds no train.npy, which data.source = npy needs in a folder")
    if len(set(files.values())) < len(files):
        names = ", ".join(file.name for file in files)
        raise InputError(f"{str(path)!r} has two files for the same split among {names}; keep one")
    return [item for file, split in files.items() for item in _npy_rows(file, split, value_range)]


def _npy_rows(file: Path, split: str | None, value_range: Range) -> list[Item]:
    images = _npy_array(file)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise InputError(
            f"{str(file)!r} has the shape {images.shape}; N×H×W or N×H×W×C is expected{_hint(images.shape)}"
        )
    if 0 in images.shape or images.shape[1] * images.shape[2] > MAX_PIXELS:
        raise InputError(f"{str(file)!r} has the shape {images.shape}: no images, or too large")
    if value_range is None and not (images.dtype in (np.uint8, np.bool_) or np.issubdtype(images.dtype, np.floating)):
        raise InputError(
            f"{str(file)!r} is of {images.dtype}; uint8, bool, or floats in [0, 1] are expected. For others, "
            "set data.value_range to the values of black and white, such as [0, 4095] or [0, 65535]"
        )
    if images.dtype.kind not in "biuf":
        raise InputError(f"{str(file)!r} is of {images.dtype}; integers, floats or bool are expected")
    labels_file = file.with_name(f"{file.stem}_labels.npy")
    labels = _npy_labels(labels_file, len(images)) if labels_file.exists() else None
    if labels is None and images.ndim == 3 and images.shape[2] in (1, 3, 4) and min(images.shape[:2]) >= SMALLEST_IMAGE:
        height, width, channels = images.shape
        raise InputError(
            f"{str(file)!r} has the shape {images.shape}: one image of {height}×{width} with {channels} channels, or "
            f"{height} images of {width}×{channels}? Save one image as array[None], grey images as array[..., None]"
        )
    return _rows(images, file.name, split, labels, value_range)


def _hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[1] in (1, 3, 4):
        return "; move the channels last"
    if len(shape) == 2:
        side = math.isqrt(shape[1])
        size = f"{side}, {side}" if side**2 == shape[1] else "H, W"
        return f"; save flat rows as array.reshape(-1, {size}), and one grey image as array[None]"
    return ""


def _npy_array(file: Path) -> NDArray[Any]:
    expect_regular(file)
    try:
        return np.lib.format.open_memmap(file, mode="r")  # np.load would also accept zip files and pickles
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # NumPy gives the header to Python's own parser, which raises anything
        objects = "; images of different sizes belong into a folder of image files" * ("object" in str(error))
        raise InputError(f"{str(file)!r} is not a usable .npy file: {one_line(error)}{objects}") from None


def _npy_labels(file: Path, count: int) -> list[str]:
    labels = _npy_array(file)
    if labels.shape != (count,) or labels.dtype.kind not in "iuU":
        raise InputError(
            f"{str(file)!r} is {labels.dtype} of shape {labels.shape}; expected {count} integers or strings"
        )
    return [str(label) for label in labels.tolist()]


def _rows(
    images: NDArray[Any], name: str, split: str | None, labels: list[str] | None, value_range: Range = None
) -> list[Item]:
    if labels is not None and len(labels) != len(images):
        raise InputError(f"{name} holds {len(images)} images and {len(labels)} labels; the counts must match")
    return [
        Item(
            row_name(name, i, len(images)), split, labels[i] if labels else None, partial(_row, images, i, value_range)
        )
        for i in range(len(images))
    ]


def _row(images: NDArray[Any], i: int, value_range: Range) -> NDArray[np.uint8]:
    return scaled(np.asarray(images[i]), value_range)
