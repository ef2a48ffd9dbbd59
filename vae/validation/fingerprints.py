"""What identifies an image: its statistics, its exact pixels, and its perceptual hash.

Sums are integer sums, so that every number here is the same on every machine. Memory is bounded by a
chunk, so that the arrays may be memory-mapped and larger than memory.
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CHUNK_PIXELS = 1 << 22  # pixel values that are widened to 4 or 8 bytes at once, at most

BITS_APART = 3  # two hashes this close are candidates; with four bands of 16 bits, one band must agree
CROWD = 2048  # hashes compared with one hash, of those that share a band with it, at most
CANDIDATES = 8  # images compared with one image pixel by pixel, the closest by hash


@dataclass(frozen=True)
class Fingerprints:
    """One entry per image."""

    mean: NDArray[np.float64]  # of the pixels, in [0, 1]
    std: NDArray[np.float64]  # of the pixels, in [0, 1]
    contrast: NDArray[np.float64]  # std around each channel's own mean: 0 for an image of one colour
    binary: NDArray[np.bool_]  # every value is 0 or 255
    low: NDArray[np.uint8]  # the smallest value, 0 to 255
    high: NDArray[np.uint8]  # the largest
    grey: NDArray[np.bool_]  # all channels are equal
    pixels: NDArray[np.uint64]  # the same for equal pixels; differs otherwise, but for a chance of 2⁻⁶⁴
    perceptual: NDArray[np.uint64]  # see `perceptual_hash`


def fingerprint(images: NDArray[np.uint8]) -> Fingerprints:
    """Reads each image once.

    images: (N, H, W, C), N at least 1.
    """
    step = _images_per_chunk(images)
    chunks = (images[start : start + step] for start in range(0, len(images), step))
    parts = [_fingerprint(np.ascontiguousarray(chunk)) for chunk in chunks]
    return Fingerprints(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def perceptual_hash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A hash that hardly changes when a picture is saved again, resized or brightened (pHash, Zauner 2010).

    Of the 8×8 lowest cosine frequencies of the brightness, except the constant one: which are above
    their median. The Hamming distance over the 63 bits measures how much two pictures differ.

    images: (N, H, W, C) with H and W at least 8. Returns (N,).
    """
    from scipy.fft import dct

    brightness = images.sum(axis=3, dtype=np.float64)
    low = dct(dct(brightness, axis=1)[:, :8], axis=2)[:, :, :8].reshape(len(images), 64)[:, 1:]
    low = low.round(3)  # rounding errors around zero must not decide a bit
    bits = low > np.median(low, axis=1, keepdims=True)
    return (bits.astype(np.uint64) << np.arange(63, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)


def near_duplicates(
    images: NDArray[np.uint8],
    prints: Fingerprints,
    others: NDArray[np.uint8],
    other_prints: Fingerprints,
    *,
    correlation: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The images that look like one of the others without being equal to it.

    Perceptual hashes propose, pixels decide: hashes of pictures with little detail (digits on black)
    collide by chance. Correlation ignores brightness and contrast, so that a lightened copy counts; it is
    undefined for an image of one colour.

    images, others: (N, H, W, C) and (M, H, W, C), with their fingerprints.
    Returns the rows of the images, ascending, the row of the most similar other image for each, and the
    correlation of their pixels, at least `correlation`.
    """
    here, there = (np.flatnonzero(p.contrast > 0) for p in (prints, other_prints))
    rows, other_rows = _candidates(prints.perceptual[here], other_prints.perceptual[there])
    rows, other_rows = here[rows], there[other_rows]
    differ = prints.pixels[rows] != other_prints.pixels[other_rows]
    rows, other_rows = rows[differ], other_rows[differ]
    r = np.empty(len(rows))
    step = _images_per_chunk(images)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        r[part] = _correlation(images[rows[part]], others[other_rows[part]])
    order = np.lexsort((other_rows, -r, rows))
    order = order[r[order] >= correlation]
    best = order[np.unique(rows[order], return_index=True)[1]]
    return rows[best], other_rows[best], r[best]


def _images_per_chunk(images: NDArray[np.uint8]) -> int:
    return max(1, CHUNK_PIXELS // images[0].size)


def _fingerprint(images: NDArray[np.uint8]) -> tuple[NDArray[np.generic], ...]:
    flat = images.reshape(len(images), -1)
    n, n_c = flat.shape[1], flat.shape[1] // images.shape[3]
    sums = images.sum(axis=(1, 2), dtype=np.int64)
    total = sums.sum(axis=1)
    squares = np.square(flat, dtype=np.uint32).sum(axis=1, dtype=np.int64)
    return (
        total / (255 * n),
        np.sqrt(squares * n - total**2) / (255 * n),
        np.sqrt((squares * n_c - (sums**2).sum(axis=1)) / (n * n_c)) / 255,
        ((flat == 0) | (flat == 255)).all(axis=1),
        flat.min(axis=1),
        flat.max(axis=1),
        (images == images[..., :1]).all(axis=(1, 2, 3)),
        np.array([int.from_bytes(blake2b(row.data, digest_size=8).digest()) for row in flat], dtype=np.uint64),
        perceptual_hash(images),
    )


def _correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Pearson's, over the pixels of each pair. (B, H, W, C) twice, no image of one colour. Returns (B,)."""
    x, y = (v.reshape(len(v), -1).astype(np.float32) for v in (a, b))
    x -= x.mean(axis=1, keepdims=True)
    y -= y.mean(axis=1, keepdims=True)
    norm = np.sqrt((x * x).sum(axis=1, dtype=np.float64) * (y * y).sum(axis=1, dtype=np.float64))
    return (x * y).sum(axis=1, dtype=np.float64) / norm


def _candidates(of: NDArray[np.uint64], among: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of rows whose hashes differ in at most BITS_APART bits, the closest CANDIDATES of each row.

    Two hashes that differ in three bits agree in at least one of four bands of 16 bits: only hashes that
    share a band are compared, which turns minutes into seconds.
    """
    rows_of = [pd.Series(band).groupby(band).indices for band in _bands(among).T]
    nobody = np.empty(0, np.int64)
    found = [nobody]
    for value, bands in zip(of, _bands(of), strict=True):
        sharing = [rows.get(band, nobody)[:CROWD] for rows, band in zip(rows_of, bands, strict=True)]
        others = np.unique(np.concatenate(sharing))
        apart = np.bitwise_count(among[others] ^ value)
        near = np.argsort(apart, kind="stable")[:CANDIDATES]
        found.append(others[near[apart[near] <= BITS_APART]])
    rows = np.repeat(np.arange(len(of)), [len(others) for others in found[1:]])
    return rows, np.concatenate(found)


def _bands(hashes: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """(N,) → (N, 4)"""
    return hashes.view(np.uint16).reshape(-1, 4)
