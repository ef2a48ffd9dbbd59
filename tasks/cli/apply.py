"""Applies a saved model to images, in batches, and writes the results to files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from tasks.cli.reading import Pixels, Reading
from vae.compute.batches import to_pixels
from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.files import writing, written_aside
from vae.data.item import Item
from vae.inference import generate, grids, scoring, tiled
from vae.losses.elbo import kl_per_latent
from vae.metrics import measurement
from vae.models.likelihood import bits_per_dim
from vae.models.saved import Saved


def encode(saved: Saved, source: Reading, output: Path, compute: Compute) -> None:
    """By the name of `output` a table (.parquet), or maps of latents (.npy).

    Raises:
        InputError: a .npy of a model whose latents are a vector.
    """
    if output.suffix == ".parquet":
        encode_table(saved, source, output, compute)
    elif saved.model.latent_map is None:
        raise InputError(f"{str(output)!r} is for maps of latents (model.latent_shape); name a .parquet file")
    else:
        encode_maps(saved, source, output, compute)


def encode_maps(saved: Saved, source: Reading, output: Path, compute: Compute) -> None:
    """Writes mu and logvar, float32 (N, 2, c, h, w), and beside it NAME.npy.csv with path and label of each row.

    Batch by batch: the header is written again once N is known, which it has room for (NumPy pads it).
    """
    assert saved.model.latent_map is not None
    shape, rows = (2, *saved.model.latent_map), list[Item]()

    def header(count: int) -> dict[str, Any]:
        return {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}

    with writing(output), written_aside(output) as aside, aside.open("wb") as file:
        npy.write_array_header_1_0(file, header(0))
        start = file.tell()
        for items, pixels in source.batches():
            rows += items
            parts = measurement.encode(saved.model, pixels, compute)
            file.write(np.stack(parts, axis=1).astype("<f4").tobytes())
        file.seek(0)
        npy.write_array_header_1_0(file, header(len(rows)))
        assert file.tell() == start, "NumPy gave the header another length"
    table = pd.DataFrame({"path": [item.path for item in rows], "label": [item.label for item in rows]})
    write_table(table, output.with_name(f"{output.name}.csv"))


def encode_in_own_size(saved: Saved, source: Reading, output: Path, compute: Compute) -> None:
    """Writes a map for each image, PATH.npy below `output`: mu and logvar, float32 (2, c, h, w), in tiles.

    Raises:
        InputError: the latents are a vector.
    """
    tiled.factor(saved.model)
    for (item,), pixels in source.batches():
        mu, logvar = tiled.encode(saved.model, to_pixels(pixels, compute.device), compute)
        file = output / f"{item.path}.npy"
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, torch.cat([mu, logvar]).cpu().numpy())


def encode_table(saved: Saved, source: Reading, output: Path, compute: Compute) -> None:
    """Writes a parquet file of path, label, mu and logvar, the last two as lists of Z float32 numbers."""
    import pyarrow as pa  # for this command alone, to keep the others quick
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
    """Writes one PNG per image, PATH.png below `output`; pairs: with the model's input on the left.

    Raises:
        InputError: images in their own size, for a model whose latents are a vector.
    """
    if source.own_size:
        tiled.factor(saved.model)
    for items, pixels in source.batches():
        if source.own_size:
            copies = tiled.reconstruct(saved.model, pixels[0], saved.likelihood, compute)[None]
        else:
            copies = generate.reconstruct(saved.model, pixels, saved.likelihood, compute)
        pictures = np.concatenate([pixels, copies], axis=2) if pairs else copies
        for item, picture in zip(items, pictures, strict=True):
            file = output / f"{item.path}.png"
            with writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file)


def kept_threshold(saved: Saved, percentile: float) -> tuple[float | None, str | None]:
    """A percentile of the scores of the model's validation images, in words too; None where the model has none."""
    limit = scoring.threshold(saved, percentile)
    images = f"{saved.config.valid.images or 0:,} validation images"
    return (None, None) if limit is None else (limit, f"the {percentile:g}th percentile of the {images}' scores")


def score(saved: Saved, source: Reading, threshold: float | None, compute: Compute) -> pd.DataFrame:
    """path, label, score (nats), percentile (of the validation images' scores), unusual; the most unusual first.

    And bits_per_dim, the score of each pixel and channel in bits, where the likelihood is of 8-bit levels.
    """
    items: list[Item] = []
    parts: list[NDArray[np.float64]] = []
    for batch, pixels in source.batches():
        items += batch
        parts.append(scoring.scores(saved, pixels, compute))
    scores = np.concatenate(parts)
    table = pd.DataFrame(
        {
            "path": [item.path for item in items],
            "label": [item.label for item in items],
            "score": scores,
            "percentile": scoring.ranks(saved, scores),
            # written so that NaN is unusual
            "unusual": None if threshold is None else ~(scores <= threshold),
        }
    )
    if saved.likelihood.is_discretised:
        table["bits_per_dim"] = [bits_per_dim(-score, saved.pixels) for score in scores]
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True, na_position="first")


def aurocs(table: pd.DataFrame, usual: str) -> dict[str, float]:
    """How well scores separate each other class, and all of them together, from the usual one (`scoring.auroc`).

    Raises:
        InputError: there are no images of that class, or no others.
    """
    is_usual = table["label"] == usual
    others = sorted(set(table.loc[~is_usual, "label"].dropna()))
    if not is_usual.any() or is_usual.all():
        raise InputError(f"--usual {usual!r} needs images of this and of another class folder; others: {others}")
    scores = table["score"].fillna(np.inf)  # more unusual than any number
    ours = scores[is_usual].to_numpy()
    groups = {name: table["label"] == name for name in others} if len(others) > 1 else {}
    return {
        name: scoring.auroc(ours, scores[rows].to_numpy()) for name, rows in {**groups, "all others": ~is_usual}.items()
    }


def findings(table: pd.DataFrame, limit: float | None, origin: str | None) -> Iterator[str]:
    """What a scored table shows, in a line or two."""
    if limit is None:
        yield "no threshold: this model was saved without validation scores; give --threshold, or train again"
    else:
        unusual = int(table["unusual"].sum())
        yield f"{unusual:,} of {len(table):,} images score above {limit:.6g} nats ({origin})"
    if missing := int(table["score"].isna().sum()):
        yield f"{missing:,} scores are not finite: the model has probably diverged"


def latents_of(saved: Saved, image: Pixels, chosen: str, top: int, compute: Compute) -> NDArray[np.int64]:
    """Latents, or channels of a map, by number (`3,5,7`), or the `top` ones by their KL for this image, (H, W, C)."""
    if not chosen:
        mu, logvar = measurement.encode(saved.model, image[None], compute)
        kl = kl_per_latent(torch.from_numpy(mu[0]), torch.from_numpy(logvar[0])).numpy()
        kl = kl.reshape(saved.model.units, -1).sum(1)
        return np.argsort(-kl, kind="stable")[:top]
    latents = saved.model.units
    numbers = [int(word) if word.strip().isdecimal() else -1 for word in chosen.split(",")]
    if not all(0 <= number < latents for number in numbers):
        raise InputError(f"--latents {chosen!r}: expected numbers from 0 to {latents - 1}, separated by commas")
    return np.array(numbers)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has no NaN."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def check_output(output: Path, images: Path, *suffixes: str) -> None:
    """Raises: InputError: another ending, or the images themselves, which would be lost."""
    check_suffix(output, *suffixes)
    if output.exists() and images.expanduser().exists() and output.samefile(images.expanduser()):
        raise InputError(f"{str(output)!r} is what is read: give the result another name")


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
            np.save(file, grids.as_bytes(pictures))
