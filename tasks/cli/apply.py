"""What a saved model does to images on disk. They are read as ingest reads them, in batches: however many there
are, memory holds two batches of pixels. What can not be used is skipped, and its reason kept."""

import hashlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from tasks import workspace
from tasks.tracking.lookup import here
from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.data import arrays, folder, images
from vae.data.images import UnusableImage
from vae.data.item import Item, storable
from vae.inference import generate, scoring
from vae.losses.elbo import kl_per_latent
from vae.metrics import measurement
from vae.metrics.measurement import BATCH
from vae.models.saved import WEIGHTS_FILE, Saved, weights_hash

Decoded = Future[NDArray[np.uint8] | UnusableImage | None]


@dataclass
class Reading:
    """Images on their way to a model, and what became of those that did not get there.

    Attributes:
        without: SHA-256 of contents to leave out.
        read: how many images the model was given. left_out: how many were not wanted.
        skipped: (path, reason) of what can not be used. litter: of what systems and programs left behind.
    """

    items: Sequence[Item]
    preprocessing: Preprocessing
    without: Collection[str] = frozenset()
    read: int = 0
    left_out: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    litter: list[tuple[str, str]] = field(default_factory=list)

    def batches(self) -> Iterator[tuple[list[Item], NDArray[np.uint8]]]:
        """Usable items with their pixels, (B, H, W, C). The next batch is decoded while the model works on one.

        Raises:
            InputError: at the end, where none was usable.
        """
        chunks = [self.items[start : start + BATCH] for start in range(0, len(self.items), BATCH)]
        before: Sequence[Item] = ()
        waiting: list[Decoded] = []
        with ThreadPoolExecutor() as pool, _bar(len(self.items)) as advance:
            for chunk in (*chunks, ()):
                coming = [pool.submit(self._decoded, item) for item in chunk]
                usable, pixels = self._gathered(before, waiting)
                if usable:
                    yield usable, np.stack(pixels)
                advance(len(before))
                before, waiting = chunk, coming
        if not self.read:
            reasons = "; ".join(f"{path!r}: {reason}" for path, reason in (*self.skipped, *self.litter)[:3])
            left_out = f"{self.left_out:,} left out; " if self.left_out else ""
            raise InputError(
                f"none of {len(self.items):,} files can be used: {left_out}{reasons}".rstrip("; ")
            )

    def _decoded(self, item: Item) -> NDArray[np.uint8] | UnusableImage | None:
        try:
            content = item.load()
            if self.without:
                raw = content if isinstance(content, bytes) else content.tobytes()
                if hashlib.sha256(raw).hexdigest() in self.without:
                    return None
            return images.load(content, self.preprocessing)
        except UnusableImage as refusal:
            return refusal

    def _gathered(
        self, items: Iterable[Item], decoded: Iterable[Decoded]
    ) -> tuple[list[Item], list[NDArray[np.uint8]]]:
        usable: list[Item] = []
        pixels: list[NDArray[np.uint8]] = []
        for item, future in zip(items, decoded, strict=True):
            match future.result():
                case None:
                    self.left_out += 1
                case UnusableImage() as refusal:
                    litter = str(refusal).startswith(folder.LITTER)
                    (self.litter if litter else self.skipped).append((item.path, str(refusal)))
                case found:
                    usable.append(item)
                    pixels.append(found)
        self.read += len(usable)
        return usable, pixels


def reading(path: Path, saved: Saved, without: Collection[str] = frozenset()) -> Reading:
    """The images of a folder or of a `.npy` file, or one image file, for a model.

    Raises:
        InputError: nothing is there.
    """
    path = path.expanduser()
    if not path.exists():
        raise InputError(
            f"{storable(str(path))!r} does not exist; give a folder of images, an image or a .npy file"
        )
    if path.is_dir():
        items = folder.find(path)
    elif path.suffix == ".npy":
        items = arrays.npy(path)
    else:
        items = [Item(storable(path.name), None, None, partial(images.read_file, path))]
    if not items:
        raise InputError(f"{storable(str(path))!r} is empty")
    return Reading(items, saved.config.preprocessing, without)


def trained_on() -> set[str]:
    """SHA-256 of the files that the workspace's manifest has in its training and validation splits.

    Raises:
        InputError: there is no manifest.
    """
    manifest = here(workspace.MANIFEST)
    if not manifest.exists():
        raise InputError(
            f"{manifest} does not exist; it knows which images were trained on: run ingest again"
        )
    rows = pd.read_parquet(manifest, columns=["split", "sha256"])
    return set(rows.loc[rows["split"].isin(("train", "valid")), "sha256"])


def is_of_workspace(saved: Saved) -> bool:
    """Whether this is the model in `models/vae`, which the manifest belongs to."""
    folder = here(workspace.MODEL)
    return (folder / WEIGHTS_FILE).exists() and weights_hash(folder) == saved.sha256


def encode(saved: Saved, source: Reading, output: Path, compute: Compute) -> None:
    """A parquet file of path, label, mu and logvar, the latter lists of Z float32 numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    latents = pa.list_(pa.float32(), saved.model.latent_dim)
    schema = pa.schema(
        {"path": pa.string(), "label": pa.string(), "mu": latents, "logvar": latents},
        metadata={"weights.sha256": saved.sha256},
    )
    with _written_aside(output) as aside, pq.ParquetWriter(aside, schema) as writer:
        for items, pixels in source.batches():
            mu, logvar = (
                pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), type=latents)
                for part in measurement.encode(saved.model, pixels, compute)
            )
            columns = [[item.path for item in items], [item.label for item in items], mu, logvar]
            writer.write_table(pa.table(columns, schema=schema))


def score(saved: Saved, source: Reading, threshold: float | None, compute: Compute) -> pd.DataFrame:
    """path, label, score (nats), percentile (of the validation images' scores), unusual; the most unusual first.

    threshold: the score, in nats, above which an image is unusual; None where it is not known.
    """
    parts = []
    for items, pixels in source.batches():
        found = scoring.scores(saved, pixels, compute)
        parts.append(
            pd.DataFrame(
                {
                    "path": [item.path for item in items],
                    "label": [item.label for item in items],
                    "score": found,
                    "percentile": scoring.ranks(saved, found),
                    # A score that is no number lies below no threshold.
                    "unusual": ~(found <= threshold) if threshold is not None else None,
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True, na_position="first")


def reconstruct(saved: Saved, source: Reading, output: Path, pairs: bool, compute: Compute) -> None:
    """A PNG for each image, PATH.png below `output`; pairs: the image as the model saw it on its left."""
    for items, pixels in source.batches():
        copies = generate.reconstruct(saved.model, pixels, saved.likelihood, compute)
        for item, image in zip(
            items, np.concatenate([pixels, copies], axis=2) if pairs else copies, strict=True
        ):
            file = output / f"{item.path}.png"
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file)
            except OSError as error:
                raise InputError(f"cannot write {str(file)!r}: {error.strerror or error}") from None


def aurocs(table: pd.DataFrame, usual: str) -> dict[str, float]:
    """How well scores tell each other class, and all of them together, from the usual one (`scoring.auroc`).

    Raises:
        InputError: no image is of that class, or none of another.
    """
    is_usual = table["label"] == usual
    others = sorted(set(table.loc[~is_usual, "label"].dropna()))
    if not is_usual.any() or is_usual.all():
        raise InputError(
            f"{usual!r} has {int(is_usual.sum()):,} of {len(table):,} images; class folders are wanted, of usual "
            f"images and of others; there are: {', '.join(map(repr, others)) or 'no others'}"
        )
    scores = table["score"].fillna(np.inf)  # no number: more unusual than any
    ours = scores[is_usual].to_numpy()
    groups = {name: table["label"] == name for name in others} if len(others) > 1 else {}
    return {
        name: scoring.auroc(ours, scores[rows].to_numpy())
        for name, rows in {**groups, "all others": ~is_usual}.items()
    }


def latents_of(
    saved: Saved, image: NDArray[np.uint8], wanted: str, top: int, compute: Compute
) -> NDArray[np.int64]:
    """Latents by number (`3,5,7`), or the `top` ones by the KL that this image, (H, W, C), costs them."""
    if not wanted:
        mu, logvar = measurement.encode(saved.model, image[None], compute)
        kl = kl_per_latent(torch.from_numpy(mu[0]), torch.from_numpy(logvar[0])).numpy()
        return np.argsort(-kl, kind="stable")[:top]
    latents = saved.model.latent_dim
    numbers = [int(word) if word.strip().isdecimal() else -1 for word in wanted.split(",")]
    if not all(0 <= number < latents for number in numbers):
        raise InputError(
            f"--latents {wanted!r}: numbers from 0 to {latents - 1}, parted by commas, are wanted"
        )
    return np.array(numbers)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def check_table_name(output: Path) -> None:
    if output.suffix not in (".parquet", ".csv"):
        raise InputError(f"{str(output)!r}: a name that ends in .parquet or .csv is wanted")


def write_table(table: pd.DataFrame, output: Path) -> None:
    """As its name says: .parquet or .csv."""
    check_table_name(output)
    with _written_aside(output) as aside:
        if output.suffix == ".csv":
            table.to_csv(aside, index=False)
        else:
            table.to_parquet(aside, index=False)


def write_pictures(pictures: NDArray[np.float32], columns: int, output: Path) -> None:
    """One picture of them all (.png), or the pictures themselves as uint8 (N, H, W, C) (.npy)."""
    from vae.inference import grids

    if output.suffix not in (".png", ".npy"):
        raise InputError(f"{str(output)!r}: a name that ends in .png or .npy is wanted")
    with _written_aside(output) as aside:
        if output.suffix == ".png":
            aside.write_bytes(grids.png(grids.grid(pictures, columns)))
        else:
            with aside.open("wb") as file:
                np.save(file, np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8))


@contextmanager
def _written_aside(output: Path) -> Iterator[Path]:
    """A file beside `output` that takes its place when all of it is written."""
    aside = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(output)
    except OSError as error:
        raise InputError(f"cannot write {str(output)!r}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # where it could not be made it need not go
            aside.unlink(missing_ok=True)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where a person watches."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("images", total=total)
        yield lambda done: bar.advance(task, done)
