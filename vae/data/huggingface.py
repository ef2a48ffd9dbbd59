"""Data sets of the package `datasets`, saved locally or loaded by name."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

from vae.config.errors import InputError
from vae.config.text import one_line
from vae.data.images import UnusableImage, read_file
from vae.data.item import SPLIT_NAMES, Content, Item, row_name


def find(path: str) -> list[Item]:
    """A folder written by `save_to_disk`, or any name that `datasets.load_dataset` accepts.

    The images are the one column of type Image; the labels are the column named label or labels, else the first
    of type ClassLabel, by its names.
    """
    try:
        import datasets  # optional, and slow to import
    except ModuleNotFoundError:
        raise InputError(
            "data.source = huggingface needs the package datasets: pip install -e '.[huggingface]'"
        ) from None

    datasets.disable_progress_bars()
    place = Path(path).expanduser()
    try:
        found = datasets.load_from_disk(str(place)) if place.is_dir() else datasets.load_dataset(path)
    except Exception as error:  # its readers raise anything, from a missing file to a refused connection
        raise InputError(f"data.path = {path!r}: datasets cannot load it: {one_line(error)}") from None
    parts = dict(found) if isinstance(found, dict) else {"": found}
    unknown = [name for name in parts if name and name.lower() not in SPLIT_NAMES]
    if unknown or len({SPLIT_NAMES.get(name.lower()) for name in parts}) < len(parts):
        raise InputError(
            f"data.path = {path!r} has the splits {', '.join(parts)}; only train, validation and test are read"
        )
    return [item for name, part in parts.items() for item in _rows(part, name, path)]


def _rows(dataset: Any, name: str, path: str) -> list[Item]:
    from datasets import Image

    images = [column for column, kind in dataset.features.items() if isinstance(kind, Image)]
    if len(images) != 1:
        raise InputError(
            f"data.path = {path!r} has {len(images)} image columns ({', '.join(images)}); exactly one is needed"
        )
    labels = _labels(dataset)
    encoded, lock = dataset.cast_column(images[0], Image(decode=False)), threading.Lock()

    def load(i: int) -> Content:
        try:
            with lock:
                record = encoded[i][images[0]]
        except Exception as error:  # a damaged file shows only here, and raises anything
            raise UnusableImage(f"cannot be read: {one_line(error)}") from None
        if record is None:
            raise UnusableImage("no image in this row")
        return record["bytes"] or read_file(record["path"])

    split = SPLIT_NAMES.get(name.lower())
    return [
        Item(row_name(name or "rows", i, len(labels)), split, label, partial(load, i)) for i, label in enumerate(labels)
    ]


def _labels(dataset: Any) -> list[str | None]:
    from datasets import ClassLabel

    classes = [column for column, kind in dataset.features.items() if isinstance(kind, ClassLabel)]
    named = [column for column in ("label", "labels") if column in dataset.features]
    column = next(iter(named + classes), None)
    if column is None:
        return [None] * len(dataset)
    if column not in classes:
        return [None if value is None else str(value) for value in dataset[column]]
    name_of = dataset.features[column].int2str
    return [None if value is None or value < 0 else name_of(value) for value in dataset[column]]
