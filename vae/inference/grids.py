"""Grids of images in one picture, enlarged where the images are tiny."""

import base64
import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PIXELS = 800  # a grid is enlarged, by a whole factor, to at most this width
BIG, SCREEN = 100_000, 1200  # a page embeds a PNG of more bytes as a JPEG of at most this width
GAP = 1  # pixels between images, before enlarging


def reconstruction_grid(originals: NDArray[Any], reconstructions: NDArray[Any], columns: int = 8) -> NDArray[np.uint8]:
    """Pairs of rows, each original above its reconstruction: uint8 (H, W, 3), enlarged for viewing.

    originals, reconstructions: (N, H, W, C) each, uint8, or floats in [0, 1].
    """
    columns = min(columns, len(originals))
    rows = [
        _row(images[start : start + columns], columns)
        for start in range(0, len(originals), columns)
        for images in (originals, reconstructions)
    ]
    return enlarged(_stacked(rows, space_after_every=2))


def grid(images: NDArray[Any], columns: int) -> NDArray[np.uint8]:
    """Images row by row: uint8 (H, W, 3), enlarged for viewing. images: (N, H, W, C), as above."""
    rows = [_row(images[start : start + columns], columns) for start in range(0, len(images), columns)]
    return enlarged(_stacked(rows))


def enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """By the largest integer factor that keeps it within `PIXELS`: pixels of tiny images remain squares."""
    factor = max(1, PIXELS // picture.shape[1])
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def png(picture: NDArray[np.uint8]) -> bytes:
    """The same bytes for the same picture, (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def embedded(picture: bytes) -> tuple[str, int, int]:
    """A PNG for a page, as a data URI with its width and height in pixels; a big one as a JPEG no wider than a screen.

    So photos of 256×256 pixels do not make a page of many megabytes, and small scans keep sharp pixels.
    """
    image: Image.Image = Image.open(io.BytesIO(picture))
    if len(picture) <= BIG:
        return f"data:image/png;base64,{base64.b64encode(picture).decode()}", image.width, image.height
    if image.width > SCREEN:
        image = image.resize((SCREEN, round(image.height * SCREEN / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width, image.height


def _row(images: NDArray[Any], columns: int) -> NDArray[np.uint8]:
    """One row of images with white gaps, padded with white: uint8 (H, W, 3)."""
    pixels = _as_rgb(images)
    count, height, width, _ = pixels.shape
    row = np.full((height, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for place in range(count):
        left = place * (width + GAP)
        row[:, left : left + width] = pixels[place]
    return row


def _stacked(rows: list[NDArray[np.uint8]], space_after_every: int = 1) -> NDArray[np.uint8]:
    """Rows below one another; with `space_after_every` 2, pairs are closer together."""
    wide = GAP if space_after_every == 1 else max(3 * GAP, math.ceil(rows[0].shape[0] / 8))
    parts: list[NDArray[np.uint8]] = []
    for number, row in enumerate(rows):
        if number:
            height = wide if number % space_after_every == 0 else GAP
            parts.append(np.full((height, row.shape[1], 3), 255, dtype=np.uint8))
        parts.append(row)
    return np.concatenate(parts)


def as_bytes(pictures: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels in [0, 1], clipped to that, as 0 to 255; 0 where a diverged model gave no number."""
    return np.rint(np.nan_to_num(np.clip(pictures, 0, 1)) * 255).astype(np.uint8)


def _as_rgb(images: NDArray[Any]) -> NDArray[np.uint8]:
    """(N, H, W, C) → uint8 (N, H, W, 3)."""
    if images.dtype != np.uint8:
        images = as_bytes(images)
    return np.broadcast_to(images, (*images.shape[:3], 3))
