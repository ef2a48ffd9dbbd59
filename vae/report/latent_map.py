"""The interactive latent map: dot coordinates and a sprite sheet of thumbnails.

Its size is bounded whatever the number of images: `MOST_DOTS` dots, thumbnails of at most `MOST_TILE` pixels.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae.report import charts

MOST_DOTS = 800
MOST_TILE = 40  # pixels of the longer side of a thumbnail
BLOCK = 8  # pixels of a JPEG block; thumbnails of whole blocks do not bleed into each other
WIDTH, HEIGHT, MARGIN = 640, 440, 14  # of the SVG


@dataclass(frozen=True)
class Dot:
    """An image: position in the SVG, group, description, and tile on the sheet."""

    x: float
    y: float
    group: int
    text: str
    column: int
    row: int


@dataclass(frozen=True)
class LatentMap:
    """Dots and the sheet of their thumbnails.

    Attributes:
        groups: (name, index of the colour, or None for grey).
        shares: Share of the variance along each axis.
        images: Number of images; the dots are a sample where there are more than `MOST_DOTS`.
        sheet: A JPEG of columns × rows tiles of (height, width) pixels each.
    """

    dots: Sequence[Dot]
    groups: Sequence[tuple[str, int | None]]
    shares: tuple[float, float]
    images: int
    sheet: bytes
    tile: tuple[int, int]
    columns: int
    rows: int


def draw(
    mu: NDArray[np.float32], images: NDArray[np.uint8], labels: NDArray[np.object_], texts: Sequence[str], seed: int
) -> LatentMap:
    """mu: (N, Z). images: uint8 (N, H, W, C). labels: (N,), None for no class. texts: N."""
    chosen = np.arange(len(mu))
    if len(mu) > MOST_DOTS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(mu), MOST_DOTS, replace=False))
    points, shares = charts.principal_components(mu)
    places = _placed(points[chosen])
    groups = charts.groups(labels)
    group_of = np.zeros(len(mu), dtype=np.int64)
    for index, (_, members, _) in enumerate(groups):
        group_of[members] = index
    colours = {colour: index for index, colour in enumerate(charts.CLASSES)}
    columns = math.ceil(math.sqrt(len(chosen)))
    sheet, tile, rows = _sheet(np.asarray(images[chosen]), columns)
    return LatentMap(
        dots=[
            Dot(*place, int(group_of[image]), texts[int(image)], index % columns, index // columns)
            for index, (image, place) in enumerate(zip(chosen, places, strict=True))
        ],
        groups=[(name.strip(), colours.get(colour)) for name, _, colour in groups],
        shares=(float(shares[0]), float(shares[1])),
        images=len(mu),
        sheet=sheet,
        tile=tile,
        columns=columns,
        rows=rows,
    )


def _placed(points: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Positions in the SVG, each axis filled, with one decimal; centred where all points are equal."""
    low, span = points.min(0), np.ptp(points, axis=0)
    share = np.where(span > 0, (points - low) / np.where(span > 0, span, 1), 0.5)
    share[:, 1] = 1 - share[:, 1]  # SVG y points down
    places = MARGIN + share * (np.array([WIDTH, HEIGHT]) - 2 * MARGIN)
    return [(round(float(x), 1), round(float(y), 1)) for x, y in places]


def _sheet(images: NDArray[np.uint8], columns: int) -> tuple[bytes, tuple[int, int], int]:
    """Tiles row by row, the longer side at most `MOST_TILE`. Returns the JPEG, the size of a tile, and the rows."""
    height, width = images.shape[1:3]
    shrunk = min(1.0, MOST_TILE / max(height, width))
    tile = tuple(max(BLOCK, round(side * shrunk / BLOCK) * BLOCK) for side in (height, width))
    rows = math.ceil(len(images) / columns)
    sheet = np.zeros((rows * tile[0], columns * tile[1], 3), dtype=np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(np.broadcast_to(image, (height, width, 3)))
        if picture.size != tile[::-1]:
            picture = picture.resize(tile[::-1], Image.Resampling.BOX if shrunk < 1 else Image.Resampling.NEAREST)
        row, column = divmod(index, columns)
        top, left = row * tile[0], column * tile[1]
        sheet[top : top + tile[0], left : left + tile[1]] = np.asarray(picture)
    buffer = io.BytesIO()
    picture = Image.fromarray(sheet)
    (picture if images.shape[3] == 3 else picture.convert("L")).save(
        buffer, "jpeg", quality=82, subsampling=0, optimize=True
    )
    return buffer.getvalue(), (tile[0], tile[1]), rows
