"""Images on disk for a saved model, read in the same way as by ingest; unusable files are skipped, with the reason.

Memory holds three batches of pixels, however many images there are; of images in their own size, a few of them.
"""

import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks import workspace
from tasks.cli.named_model import here
from tasks.processes import progress
from vae.config.constants import SKIPPED
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.data import arrays, images
from vae.data.folders import folder
from vae.data.images import UnusableImage
from vae.data.item import Item, storable
from vae.metrics.measurement import BATCH
from vae.models.files import WEIGHTS_FILE, weights_hash
from vae.models.saved import Saved

Pixels: TypeAlias = NDArray[np.uint8]
Decoded: TypeAlias = tuple[Item, Pixels | UnusableImage | None]  # None: left out

OWN_SIZE_AT_A_TIME = 4

log = logging.getLogger(__name__)


@dataclass
class Reading:
    """Images on their way to a model, and what became of the others.

    Attributes:
        without: SHA-256 of contents to leave out.
        own_size: images in their own size, in batches of one.
        read: the number of images that the model was given.
        left_out: the number of images left out.
        skipped: (path, reason) of unusable files.
    """

    items: Sequence[Item]
    preprocessing: Preprocessing
    without: Collection[str] = frozenset()
    own_size: bool = False
    read: int = 0
    left_out: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def batches(self) -> Iterator[tuple[list[Item], Pixels]]:
        """Usable items with their pixels, (B, H, W, C).

        Raises:
            InputError: at the end, if none was usable.
        """
        items: list[Item] = []
        pixels: list[Pixels] = []
        with progress.bar("images", len(self.items)) as advance:
            for done, (item, found) in enumerate(self._decoded(), 1):
                if found is None:
                    self.left_out += 1
                elif isinstance(found, np.ndarray):
                    items.append(item)
                    pixels.append(found)
                elif not str(found).startswith(SKIPPED):  # which `folder.find` has logged
                    self.skipped.append((item.path, str(found)))
                if pixels and (self.own_size or len(pixels) == BATCH or done == len(self.items)):
                    self.read += len(pixels)
                    yield items, np.stack(pixels)
                    items, pixels = [], []
                advance(done)
        if not self.read:
            reasons = "; ".join([*self.summary()][:3])
            raise InputError(f"none of {self.images:,} files can be used: {reasons}")

    @property
    def images(self) -> int:
        """The number of files so far that claim to be images."""
        return self.read + self.left_out + len(self.skipped)

    def _decoded(self) -> Iterator[Decoded]:
        """Every item in order; the next batch is being decoded while the model works on one."""
        before: Iterable[Decoded] = ()
        size = OWN_SIZE_AT_A_TIME if self.own_size else BATCH
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self.items), size):
                batch = self.items[start : start + size]
                coming = zip(batch, pool.map(self._decode, batch), strict=True)
                yield from before
                before = coming
            yield from before

    def _decode(self, item: Item) -> Pixels | UnusableImage | None:
        try:
            content = item.load()
            if self.without:
                raw = content if isinstance(content, bytes) else content.tobytes()
                if hashlib.sha256(raw).hexdigest() in self.without:
                    return None
            return images.load(content, self.preprocessing, self.own_size)
        except UnusableImage as refusal:
            return refusal

    def summary(self) -> Iterator[str]:
        """What was skipped and left out. `repr`, since a file's name may hold line breaks or a terminal's commands."""
        for path, reason in self.skipped:
            yield f"skipped {path!r}: {reason}"
        if self.left_out:
            yield f"{self.left_out:,} images left out: training or validation images of the model"


def reading(path: Path, saved: Saved, without: Collection[str] = frozenset(), own_size: bool = False) -> Reading:
    """The images of a folder or of a `.npy` file, or one image file, for a model.

    Raises:
        InputError: nothing is there.
    """
    path = path.expanduser()
    if not path.exists():
        raise InputError(f"{storable(str(path))!r} does not exist; give a folder of images, an image or a .npy file")
    if path.is_dir():
        items = folder.find(path)
    elif path.suffix == ".npy":
        items = arrays.npy(path, saved.config.preprocessing.value_range)
    else:
        items = [Item(storable(path.name), None, None, partial(images.read_file, path))]
    if not items:
        raise InputError(f"{storable(str(path))!r} is empty")
    return Reading(items, saved.config.preprocessing, without, own_size)


def trained_on(saved: Saved) -> set[str]:
    """SHA-256 of the files in the training and validation splits of the workspace's manifest.

    Raises:
        InputError: there is no manifest.
    """
    manifest, model = here(workspace.MANIFEST), here(workspace.MODEL)
    if not manifest.exists():
        raise InputError(f"{manifest}, which lists the training images, does not exist; `dvc repro ingest` creates it")
    if not (model / WEIGHTS_FILE).exists() or weights_hash(model) != saved.sha256:
        log.warning("--unseen uses %s, which does not belong to this model", manifest)
    rows = pd.read_parquet(manifest, columns=["split", "sha256"])
    return set(rows.loc[rows["split"].isin(("train", "valid")), "sha256"])
