"""Where images come from: each source gives a list of items, one for every image or file it holds.

An item knows its name, its split and label where the source tells them, and how to load itself. Nothing is
decoded here and no pixels are held; large arrays are mapped, not read.

`folder`: every file of the tree is an item, judged by its content and not by its extension. The layout is

- split folders, when all folders are named train, valid (or val, validation) and test, in any case, or when
  train and at least one other of them are there; in each, class folders, or images directly (no label);
- else class folders, when there is any folder with a file in it; the folders in a class folder belong to it;
- else a flat folder: no labels.

What does not fit is an item that refuses to load, so that it is quarantined and not dropped: files beside
the split or class folders, links that lead out of the folder or nowhere, links to folders (never followed,
hence no loops), and what systems and programs leave behind (hidden files and folders, Thumbs.db and the
like: their reason begins with `LITTER`).
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae.config.errors import InputError
from vae.config.parameters import Data
from vae.data.idx import expect_regular, idx_array
from vae.data.images import MAX_PIXELS, UnusableImage, read_file

Content = bytes | NDArray[np.uint8]

SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
LITTER = "litter"
_LITTER_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source, not yet read."""

    path: str  # as the manifest shows it: relative to data.path, with /, bytes that are no UTF-8 as \xNN
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


def find(data: Data) -> list[Item]:
    """What the source holds, in an order that depends on nothing but its content.

    Raises:
        InputError: `data.path` is missing, empty, or not what `data.source` expects.
    """
    path = Path(data.path).expanduser()
    match data.source:
        case "digits":
            items = digits()
        case "folder":
            items = folder(path)
        case "idx":
            items = idx(path)
        case "npy":
            items = npy(path)
        case "huggingface":
            items = huggingface(data.path)
    if not items:
        raise InputError(f"data.path = {data.path!r} holds no image; give a place with images in it")
    return items


def digits() -> list[Item]:
    """scikit-learn's 1,797 scanned digits: 8×8, grey values 0..16 brought to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return _rows(images, "digits", None, [str(label) for label in bunch.target])


def folder(path: Path) -> list[Item]:
    """Image files in split folders, class folders or flat; this module's text says which."""
    _expect_folder(path, "folder")
    root = path.resolve()
    place = str(root)
    files = sorted(_files(root))
    proper = [parts for parts in files if not _is_litter(parts)]
    splits = _split_folders(sorted({parts[0] for parts in proper if len(parts) > 1}), path)
    depth = 1 if splits else 0  # how many leading folders name the split
    with_classes = {parts[:depth] for parts in proper if len(parts) > depth + 1}

    def item(parts: tuple[str, ...]) -> Item:
        top, inner = parts[:depth], parts[depth:]
        split = splits.get(parts[0]) if len(parts) > 1 else None
        label = inner[0] if len(inner) > 1 and (split or not splits) else None
        reason: str | None
        if _is_litter(parts):
            label = None
            reason = f"{LITTER}: left by a system or a program, or hidden"
        elif splits and split is None:
            reason = f"beside the split folders ({', '.join(map(shown, splits))}): move it into one"
        elif label is None and top in with_classes:
            reason = "beside the class folders: move it into one"
        else:
            reason = _link_reason(root.joinpath(*parts), root)
        name = "/".join(parts)
        load = Refused(reason) if reason else File(place, name)
        return Item(shown(name), split, None if label is None else shown(label), load)

    return [item(parts) for parts in files]


def shown(name: str) -> str:
    """A file's name as text that can be stored: bytes that are no UTF-8 become \\xNN."""
    return (
        name
        if name.isascii()
        else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )


def _files(root: Path) -> Iterator[tuple[str, ...]]:
    """Path parts below `root` of all that is not a folder; a link counts as itself and is not followed."""

    def unreadable(error: OSError) -> None:
        raise InputError(f"cannot read the folder {shown(str(error.filename))!r}: {error.strerror}")

    for place, folders, names in os.walk(root, onerror=unreadable):
        here = Path(place)
        above = here.relative_to(root).parts
        yield from ((*above, name) for name in names)
        yield from ((*above, name) for name in folders if (here / name).is_symlink())


def _is_litter(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part.lower() in _LITTER_NAMES for part in parts)


def _split_folders(folders: list[str], path: Path) -> dict[str, str]:
    """Folder → split, or nothing where these are class folders."""
    splits = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    found = set(splits.values())
    if not splits or not (len(splits) == len(folders) or ("train" in found and len(found) > 1)):
        return {}
    if "train" not in found:
        raise InputError(f"{str(path)!r} has {' and '.join(splits)} but no folder named train; add one")
    if len(found) < len(splits):
        raise InputError(f"{str(path)!r} has two folders for one split among {', '.join(splits)}; join them")
    return splits


def _link_reason(file: Path, root: Path) -> str | None:
    if not file.is_symlink():
        return None
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        return "a link that leads nowhere"
    if not target.is_relative_to(root):
        return "a link that leads out of the folder: copy the file instead"
    return "a link to a folder: not followed" if target.is_dir() else None


def idx(path: Path) -> list[Item]:
    """MNIST's format, plain or gzipped: `*train-images-idx3-ubyte`, `t10k` or `test`, and their labels.

    Where a file is there both plain and gzipped, the plain one is read. Gzipped images are unpacked into a
    temporary file, since they cannot be read from the middle.
    """
    _expect_folder(path, "idx")
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
        split = _idx_split(prefix)
        if split in seen:
            raise InputError(
                f"{seen[split]} and {name} in {str(path)!r} are both {split or 'unnamed'}; keep one"
            )
        seen[split] = name
        images = idx_array(path / name, 3)
        if images.shape[1] * images.shape[2] > MAX_PIXELS:
            raise InputError(f"{name} in {str(path)!r} has images of {images.shape[1:]}: too large")
        labels_file = _idx_labels_file(path / name)
        labels = None if labels_file is None else [str(label) for label in idx_array(labels_file, 1)]
        items += _rows(images, name, split, labels)
    return items


def _idx_split(prefix: str) -> str | None:
    word = re.split(r"[-._]", prefix.lower())[-1]
    return "test" if word == "t10k" else SPLIT_NAMES.get(word)


def _idx_labels_file(images: Path) -> Path | None:
    plain = re.sub(r"(?i)images([-.])idx3-ubyte(\.gz)?$", r"labels\1idx1-ubyte", images.name)
    candidates = (images.with_name(plain), images.with_name(plain + ".gz"))
    return next((file for file in candidates if file.exists()), None)


def npy(path: Path) -> list[Item]:
    """NumPy arrays: N×H×W or N×H×W×C (C of 1, 3, or 4 with alpha), uint8, bool, or floats in [0, 1].

    One file (all images), or a folder with train.npy and perhaps valid.npy (or val, validation) and test.npy;
    labels, if any, beside each in NAME_labels.npy: integers or strings, N of them.
    """
    if not path.exists():
        raise InputError(
            f"data.path = {str(path)!r} does not exist; give a .npy file or a folder with train.npy"
        )
    if path.is_file():
        return _npy_rows(path, None)
    files = {f: SPLIT_NAMES[f.stem] for f in sorted(path.glob("*.npy")) if f.stem in SPLIT_NAMES}
    if "train" not in files.values():
        raise InputError(
            f"data.path = {str(path)!r} holds no train.npy, which data.source = npy wants in a folder"
        )
    if len(set(files.values())) < len(files):
        names = ", ".join(file.name for file in files)
        raise InputError(f"{str(path)!r} has two files for one split among {names}; keep one")
    return [item for file, split in files.items() for item in _npy_rows(file, split)]


def _npy_rows(file: Path, split: str | None) -> list[Item]:
    images = _npy_array(file)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        hint = "; move the channels last" if images.ndim == 4 and images.shape[1] in (1, 3, 4) else ""
        raise InputError(f"{str(file)!r} has the shape {images.shape}; N×H×W or N×H×W×C is expected{hint}")
    if 0 in images.shape or images.shape[1] * images.shape[2] > MAX_PIXELS:
        raise InputError(f"{str(file)!r} has the shape {images.shape}: no image, or one that is too large")
    if not (images.dtype in (np.uint8, np.bool_) or np.issubdtype(images.dtype, np.floating)):
        raise InputError(f"{str(file)!r} is of {images.dtype}; uint8, bool, or floats in [0, 1] are expected")
    labels_file = file.with_name(f"{file.stem}_labels.npy")
    labels = _npy_labels(labels_file, len(images)) if labels_file.exists() else None
    return _rows(images, file.name, split, labels)


def _npy_array(file: Path) -> NDArray[Any]:
    try:
        expect_regular(file)
        return np.lib.format.open_memmap(file, mode="r")  # np.load would also take zip files and pickles
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # NumPy gives the header to Python's own parser, which raises anything
        raise InputError(f"{str(file)!r} is no usable .npy file: {' '.join(str(error).split())}") from None


def _npy_labels(file: Path, count: int) -> list[str]:
    labels = _npy_array(file)
    if labels.shape != (count,) or labels.dtype.kind not in "iuU":
        raise InputError(
            f"{str(file)!r} is {labels.dtype} of shape {labels.shape}; {count} integers or strings are wanted"
        )
    return [str(label) for label in labels.tolist()]


def huggingface(path: str) -> list[Item]:
    """A folder written by `save_to_disk`, or whatever `datasets.load_dataset` takes by name.

    The images are the one column of type Image; labels are the column named label or labels, else the first
    of type ClassLabel, by its names.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(
            "data.source = huggingface needs the package datasets: pip install -e '.[huggingface]'"
        ) from None

    datasets.disable_progress_bars()
    place = Path(path).expanduser()
    try:
        found = datasets.load_from_disk(str(place)) if place.is_dir() else datasets.load_dataset(path)
    except Exception as error:  # its readers raise anything, from a missing file to a refused connection
        raise InputError(
            f"data.path = {path!r}: datasets cannot load it: {' '.join(str(error).split())}"
        ) from None
    parts = dict(found) if isinstance(found, dict) else {"": found}
    unknown = [name for name in parts if name and name not in SPLIT_NAMES]
    if unknown or len({SPLIT_NAMES.get(name) for name in parts}) < len(parts):
        raise InputError(
            f"data.path = {path!r} has the splits {', '.join(parts)}; train, validation, test are known"
        )
    return [item for name, part in parts.items() for item in _huggingface_rows(part, name, path)]


def _huggingface_rows(dataset: Any, name: str, path: str) -> list[Item]:
    from datasets import ClassLabel, Image

    images = [column for column, kind in dataset.features.items() if isinstance(kind, Image)]
    if len(images) != 1:
        raise InputError(
            f"data.path = {path!r} has {len(images)} columns of images ({', '.join(images)}); one is read"
        )
    classes = [column for column, kind in dataset.features.items() if isinstance(kind, ClassLabel)]
    named = [column for column in ("label", "labels") if column in dataset.features]
    labels: list[str | None] = [None] * len(dataset)
    if column := next(iter(named + classes), None):
        kind = dataset.features[column]
        values = dataset[column]
        labels = [
            None
            if v is None or (column in classes and v < 0)
            else kind.int2str(v)
            if column in classes
            else str(v)
            for v in values
        ]
    encoded, lock = dataset.cast_column(images[0], Image(decode=False)), threading.Lock()

    def load(i: int) -> Content:
        try:
            with lock:
                record = encoded[i][images[0]]
        except Exception as error:  # a damaged file shows only here, in whatever way
            raise UnusableImage(f"cannot be read: {' '.join(str(error).split())}") from None
        if record is None:
            raise UnusableImage("no image in this row")
        return record["bytes"] or read_file(record["path"])

    split = SPLIT_NAMES.get(name)
    return [
        Item(_row_name(name or "rows", i, len(labels)), split, labels[i], partial(load, i))
        for i in range(len(labels))
    ]


def _rows(images: NDArray[Any], name: str, split: str | None, labels: list[str] | None) -> list[Item]:
    if labels is not None and len(labels) != len(images):
        raise InputError(f"{name} holds {len(images)} images and {len(labels)} labels; they must be as many")
    return [
        Item(_row_name(name, i, len(images)), split, labels[i] if labels else None, partial(_row, images, i))
        for i in range(len(images))
    ]


def _row_name(name: str, i: int, count: int) -> str:
    """Padded with zeros, so that names sort as the rows do."""
    return f"{name}/{i:0{len(str(count - 1))}}"


def _row(images: NDArray[Any], i: int) -> NDArray[np.uint8]:
    image = np.asarray(images[i])
    if image.dtype == np.uint8:
        return image
    values = image.astype(np.float64)
    if not (values.min() >= 0 and values.max() <= 1):  # written so that NaN is refused too
        raise UnusableImage(f"values from {values.min():g} to {values.max():g}; floats must be in [0, 1]")
    return np.rint(values * 255).astype(np.uint8)


def _expect_folder(path: Path, source: str) -> None:
    if not path.exists():
        raise InputError(f"data.path = {str(path)!r} does not exist; data.source = {source} wants a folder")
    if not path.is_dir():
        raise InputError(f"data.path = {str(path)!r} is a file; data.source = {source} wants a folder")
