"""What a saved model does with images on disk.

They are read in the same way as by ingest, in batches: memory holds two batches of pixels, however many images there
are. Unusable files are skipped, with the reason.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from tasks import workspace
from tasks.cli.named_model import here
from tasks.processes import progress
from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.files import writing, written_aside
from vae.config.preprocessing import Preprocessing
from vae.config.text import printable
from vae.data import images, sources
from vae.data.images import UnusableImage
from vae.data.sources import Item, shown
from vae.inference import generate, grids, scoring
from vae.losses.elbo import kl_per_latent
from vae.metrics import measurement
from vae.metrics.measurement import BATCH
from vae.models.saved import WEIGHTS_FILE, Saved, weights_hash

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass
class Reading:
    """Images on their way to a model, and what became of the others.

    Attributes:
        without: SHA-256 of contents to leave out.
        read: the number of images that the model was given.
        left_out: the number of images left out.
        skipped: (path, reason) of unusable files.
        litter: the paths of hidden and system files.
    """

    items: Sequence[Item]
    preprocessing: Preprocessing
    without: Collection[str] = frozenset()
    read: int = 0
    left_out: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)

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
                elif str(found).startswith(sources.LITTER):
                    self.litter.append(item.path)
                else:
                    self.skipped.append((item.path, str(found)))
                if pixels and (len(pixels) == BATCH or done == len(self.items)):
                    self.read += len(pixels)
                    yield items, np.stack(pixels)
                    items, pixels = [], []
                advance(done)
        if not self.read:
            raise InputError(
                f"none of {len(self.items):,} files can be used: {'; '.join(list(self.summary())[:3])}"
            )

    def _decoded(self) -> Iterator[tuple[Item, Pixels | UnusableImage | None]]:
        """Every item, decoded; None to leave out. The next batch is being decoded while the model works on one."""
        before: Iterable[tuple[Item, Pixels | UnusableImage | None]] = ()
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self.items), BATCH):
                batch = self.items[start : start + BATCH]
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
            return images.load(content, self.preprocessing)
        except UnusableImage as refusal:
            return refusal

    def summary(self) -> Iterator[str]:
        """What was skipped and left out. `repr`, since a file's name may hold line breaks or a terminal's commands."""
        for path, reason in self.skipped:
            yield f"skipped {path!r}: {reason}"
        if self.left_out:
            yield f"{self.left_out:,} images left out: training or validation images of the model"
        if self.litter:
            yield f"skipped {len(self.litter):,} hidden or system files: {self.litter[0]!r}, …"


def reading(path: Path, saved: Saved, without: Collection[str] = frozenset()) -> Reading:
    """The images of a folder or of a `.npy` file, or one image file, for a model.

    Raises:
        InputError: nothing is there.
    """
    path = path.expanduser()
    if not path.exists():
        raise InputError(
            f"{shown(str(path))!r} does not exist; give a folder of images, an image or a .npy file"
        )
    if path.is_dir():
        items = sources.folder(path)
    elif path.suffix == ".npy":
        items = sources.npy(path)
    else:
        items = [Item(shown(path.name), None, None, partial(images.read_file, path))]
    if not items:
        raise InputError(f"{shown(str(path))!r} is empty")
    return Reading(items, saved.config.preprocessing, without)


def trained_on() -> set[str]:
    """SHA-256 of the files in the training and validation splits of the workspace's manifest.

    Raises:
        InputError: there is no manifest.
    """
    manifest = here(workspace.MANIFEST)
    if not manifest.exists():
        raise InputError(
            f"{manifest}, which lists the training images, does not exist; `dvc repro ingest` creates it"
        )
    rows = pd.read_parquet(manifest, columns=["split", "sha256"])
    return set(rows.loc[rows["split"].isin(("train", "valid")), "sha256"])


def is_of_workspace(saved: Saved) -> bool:
    """Whether this is the model in `models/vae`, which was trained on the images of the manifest."""
    folder = here(workspace.MODEL)
    return (folder / WEIGHTS_FILE).exists() and weights_hash(folder) == saved.sha256


def encode(saved: Saved, source: Reading, output: Path, compute: Compute) -> None:
    """Writes a parquet file of path, label, mu and logvar, the last two as lists of Z float32 numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    latents = pa.list_(pa.float32(), saved.model.latent_dim)
    schema = pa.schema(
        {"path": pa.string(), "label": pa.string(), "mu": latents, "logvar": latents},
        metadata={"weights.sha256": saved.sha256},
    )
    with writing(output), written_aside(output) as aside, pq.ParquetWriter(aside, schema) as writer:
        for items, pixels in source.batches():
            mu, logvar = (
                pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), type=latents)
                for part in measurement.encode(saved.model, pixels, compute)
            )
            columns = [[item.path for item in items], [item.label for item in items], mu, logvar]
            writer.write_table(pa.table(columns, schema=schema))


def reconstruct(saved: Saved, source: Reading, output: Path, pairs: bool, compute: Compute) -> None:
    """Writes one PNG per image, PATH.png below `output`; pairs: with the model's input on the left."""
    for items, pixels in source.batches():
        copies = generate.reconstruct(saved.model, pixels, saved.likelihood, compute)
        pictures = np.concatenate([pixels, copies], axis=2) if pairs else copies
        for item, picture in zip(items, pictures, strict=True):
            file = output / f"{item.path}.png"
            with writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file)


@dataclass(frozen=True)
class Threshold:
    """The score in nats above which an image is unusual, None where it is not known, and where it comes from."""

    score: float | None
    origin: str | None

    @classmethod
    def of(cls, saved: Saved, given: float | None, percentile: float) -> "Threshold":
        """The given score, or a percentile of the scores that the model's validation images had."""
        if given is not None:
            return cls(given, "given")
        limit = scoring.threshold(saved, percentile)
        if limit is None:
            return cls(None, None)
        images = f"{saved.config.valid.images or 0:,} validation images"
        return cls(limit, f"the {percentile:g}th percentile of the {images}' scores")


def score(saved: Saved, source: Reading, threshold: float | None, compute: Compute) -> pd.DataFrame:
    """path, label, score (nats), percentile (of the validation images' scores), unusual; the most unusual first."""
    parts = []
    for items, pixels in source.batches():
        found = scoring.scores(saved, pixels, compute)
        columns = {
            "path": [item.path for item in items],
            "label": [item.label for item in items],
            "score": found,
            "percentile": scoring.ranks(saved, found),
            # written so that NaN is unusual
            "unusual": None if threshold is None else ~(found <= threshold),
        }
        parts.append(pd.DataFrame(columns))
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True, na_position="first")


def aurocs(table: pd.DataFrame, usual: str) -> dict[str, float]:
    """How well scores separate each other class, and all of them together, from the usual one (`scoring.auroc`).

    Raises:
        InputError: there are no images of that class, or no others.
    """
    is_usual = table["label"] == usual
    others = sorted(set(table.loc[~is_usual, "label"].dropna()))
    if not is_usual.any() or is_usual.all():
        raise InputError(
            f"{usual!r} has {int(is_usual.sum()):,} of {len(table):,} images; --usual needs class folders of usual "
            f"and of other images; there are: {', '.join(map(repr, others)) or 'no others'}"
        )
    scores = table["score"].fillna(np.inf)  # more unusual than any number
    ours = scores[is_usual].to_numpy()
    groups = {name: table["label"] == name for name in others} if len(others) > 1 else {}
    return {
        name: scoring.auroc(ours, scores[rows].to_numpy())
        for name, rows in {**groups, "all others": ~is_usual}.items()
    }


def findings(
    table: pd.DataFrame, threshold: Threshold, aurocs: dict[str, float], usual: str | None
) -> Iterator[str]:
    """A scored table in a few lines."""
    if threshold.score is None:
        yield "no threshold: this model was saved without validation scores; give --threshold, or train again"
    else:
        unusual = int(table["unusual"].sum())
        yield f"{unusual:,} of {len(table):,} images score above {threshold.score:.6g} nats ({threshold.origin})"
    for name, value in aurocs.items():
        yield f"AUROC {value:.3f}: {printable(name)} against {printable(usual)}"
    if missing := int(table["score"].isna().sum()):
        yield f"{missing:,} scores are not finite: the model has probably diverged"


def latents_of(saved: Saved, image: Pixels, chosen: str, top: int, compute: Compute) -> NDArray[np.int64]:
    """Latents by number (`3,5,7`), or the `top` ones by their KL for this image, (H, W, C)."""
    if not chosen:
        mu, logvar = measurement.encode(saved.model, image[None], compute)
        kl = kl_per_latent(torch.from_numpy(mu[0]), torch.from_numpy(logvar[0])).numpy()
        return np.argsort(-kl, kind="stable")[:top]
    latents = saved.model.latent_dim
    numbers = [int(word) if word.strip().isdecimal() else -1 for word in chosen.split(",")]
    if not all(0 <= number < latents for number in numbers):
        raise InputError(
            f"--latents {chosen!r}: expected numbers from 0 to {latents - 1}, separated by commas"
        )
    return np.array(numbers)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def check_suffix(output: Path, *suffixes: str) -> None:
    if output.suffix not in suffixes:
        raise InputError(f"{str(output)!r}: the name must end in {' or '.join(suffixes)}")


def write_table(table: pd.DataFrame, output: Path) -> None:
    """As .parquet or .csv, by its name."""
    with writing(output), written_aside(output) as aside:
        if output.suffix == ".csv":
            table.to_csv(aside, index=False)
        else:
            table.to_parquet(aside, index=False)


def write_pictures(pictures: NDArray[np.float32], columns: int, output: Path) -> None:
    """One picture with all of them (.png), or the pictures themselves as uint8 (N, H, W, C) (.npy)."""
    with writing(output), written_aside(output) as aside, aside.open("wb") as file:
        if output.suffix == ".png":
            file.write(grids.png(grids.grid(pictures, columns)))
        else:
            np.save(file, np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8))
