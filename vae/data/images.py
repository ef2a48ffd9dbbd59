"""One image, from a file or from memory, becomes a uint8 array (H, W, C).

Ingest and the encoding of new photos both use this module, so that they agree bit for bit. The rules:

- The first frame of an animation or a multi-picture file is the image.
- EXIF orientation is applied; EXIF data that cannot be read are ignored. Colour profiles are not applied.
- JPEGs much larger than the requested size are decoded at 1/2, 1/4 or 1/8 of their size, never below twice
  the requested size.
- Whatever is transparent (alpha, a palette's alpha, a colour key) becomes white; with `alpha` = ignore, alpha is
  dropped. A fourth band that the file does not call alpha is never used as such.
- 16-bit grey is divided by 257 and rounded; a 32-bit integer image within 0..65535 counts as 16-bit, and of a
  12-bit TIFF 4095 is white. 16-bit colour is cut to its high byte, by Pillow. Integers out of that range, and
  floats, have no known range and are refused. With `value_range`, all of these are scaled by it; see `scaled`.
- Everything else (1-bit, palette, CMYK, YCbCr, HSV) is converted by Pillow, to grey or RGB as `channels` says.
- The whole image is resized to (height, width), each axis on its own, nothing cropped: bicubic, antialiased.
- `binarise` comes last; see `binarised`.

What of this may have lost something is noted; see `vae.data.notes`.
An image that cannot be used raises `UnusableImage` and nothing else, whatever the file holds. Decoding is bounded
by `MAX_BYTES` and, from the header, before any pixel is decoded, by `MAX_PIXELS`, `MAX_SIDE` and `MAX_SCANS`. Only
one large image at a time is in memory decoded. A truncated image is refused.
Only the formats of `FORMATS` are tried: Pillow knows others, one of which starts another program (EPS).
"""

import hashlib
import io
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vae.config.preprocessing import Preprocessing
from vae.config.text import one_line, written
from vae.data import notes
from vae.data.folders import file_kinds

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000
MAX_SIDE = 100_000  # pixels; resizing needs memory and time in proportion to the longer side alone
MAX_SCANS = 100  # of a JPEG, libtiff's limit: each costs a pass over all pixels, and few bytes
SET_RANGE = "set data.value_range to the values of black and white"
LARGE = 25_000_000  # pixels: such images are decoded one at a time, since each can take 20 bytes per pixel
_large_image = threading.Lock()
Image.init()  # registers all formats now: left to the first image, it would be a race between threads
with suppress(ModuleNotFoundError):  # the extra `heif`
    import pillow_heif

    # Without thumbnails, which `draft` would take for the image; one thread, as several images are decoded at a time.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
_FORMATS = "AVIF BMP GIF HEIF ICO JPEG JPEG2000 MPO PNG PPM QOI SGI TGA TIFF WEBP"
FORMATS = sorted(set(_FORMATS.split()) & Image.OPEN.keys())
SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}

# Pillow warns about odd metadata, by warnings and by logging. What matters about a file is in the manifest.
# Set once, here: `warnings.catch_warnings` is not safe where several threads decode.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnusableImage(Exception):
    """This image cannot be used; the text is the reason, one line without the image's name."""


class UnusableNow(UnusableImage):
    """The reason is the machine's, not the image's: a later attempt may succeed."""


@dataclass(frozen=True)
class Prepared:
    """An image of the requested size, before binarisation, and what its source was."""

    pixels: NDArray[np.uint8]  # (H, W, C)
    width: int  # of the source, in pixels, as its header says
    height: int
    mode: str  # Pillow's name for the source's kind of pixel: L, RGB, CMYK, I;16, …
    note: str | None  # what may have been lost; see `vae.data.notes`


def load(
    source: Path | bytes | NDArray[np.uint8], preprocessing: Preprocessing, own_size: bool = False
) -> NDArray[np.uint8]:
    """(H, W, C): a new image, exactly as ingest stores one of the validation or test split.

    Args:
        own_size: in the image's own size, instead of that of the preprocessing.
        source: a file; a file's bytes; or pixels, uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with alpha.
            Pixels of other types or ranges go through `scaled` first.

    Raises:
        UnusableImage: it cannot be read or decoded.
    """
    content = read_file(source) if isinstance(source, Path) else source
    return binarised(prepare(content, preprocessing, own_size).pixels, preprocessing)


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`.

    Raises:
        UnusableImage: it is something else, empty, too large, or cannot be read.
    """
    try:
        _check_readable(os.stat(path))  # noqa: PTH116  # a Path costs more than the call
        # O_NONBLOCK: if a pipe has taken the file's place since, opening it must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _check_readable(status := os.fstat(descriptor))
            return file.read(status.st_size)  # with a size, so that a growing file stays bounded
    except OSError as error:
        raise UnusableNow(f"cannot be read: {error.strerror}") from None


def _check_readable(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnusableImage("not a regular file")
    if status.st_size == 0:
        raise UnusableImage("empty file (0 bytes)")
    if status.st_size > MAX_BYTES:
        raise UnusableImage(f"too large: {status.st_size:,} bytes, at most {MAX_BYTES:,} are read")


def prepare(content: bytes | NDArray[np.uint8], preprocessing: Preprocessing, own_size: bool = False) -> Prepared:
    """Decodes, turns upright, flattens and resizes, by this module's rules; `binarised` does the rest.

    own_size: without resizing.

    Raises:
        UnusableImage: it cannot be decoded, is too large, or has no known range.
    """
    with _pillow_errors_as_refusals():
        size = (preprocessing.width, preprocessing.height)
        image = _opened(content) if isinstance(content, bytes) else _from_pixels(content)
        width, height, mode = *image.size, image.mode
        if width * height > MAX_PIXELS:
            raise UnusableImage(f"too large: {width}×{height} pixels, at most {MAX_PIXELS:,} are decoded")
        if max(width, height) > MAX_SIDE:
            raise UnusableImage(f"too large: {width}×{height} pixels, at most {MAX_SIDE:,} per side")
        if image.format in ("JPEG", "MPO") and isinstance(content, bytes) and _scans(content, image) > MAX_SCANS:
            raise UnusableImage(f"broken image: a JPEG of more than {MAX_SCANS} scans")
        several, unused = notes.pages(image), notes.bands(image)
        # The longer side for both, since width and height may change places when the image is turned upright.
        if not own_size:
            image.draft(None, (2 * max(size), 2 * max(size)))
        with _large_image if image.width * image.height > LARGE else nullcontext():
            image.load()
            _turn_upright(image)
            flat, lost = _flattened(image, preprocessing)
            size = flat.size if own_size else size
            if preprocessing.channels == 1 and flat.mode == "RGB":
                lost = notes.joined(lost, notes.colour(np.asarray(flat.resize(size, Image.Resampling.NEAREST))))
            if flat.mode != (stored := "L" if preprocessing.channels == 1 else "RGB"):
                flat = flat.convert(stored)  # without the condition, Pillow would copy it
            pixels = np.asarray(flat.resize(size, Image.Resampling.BICUBIC))
            image.close()  # before the next large one begins
            del flat
        note = notes.joined(several, unused, lost)
        return Prepared(pixels.reshape(size[1], size[0], preprocessing.channels), width, height, mode, note)


def scaled(values: NDArray[Any], value_range: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Numbers as 8-bit pixels of the same shape: from 0 (black) to 255 (white), rounded.

    value_range: the values of black and white. None: uint8 as they are, bool and floats from 0 to 1. Where white is
        beyond what uint8 can hold, uint8 are 8-bit pixels, as they are in files.

    Raises:
        UnusableImage: a value is outside, or the type has no range of its own.
    """
    if values.dtype == np.uint8 and (value_range is None or value_range[1] > 255):
        return values
    low, high = float(values.min()), float(values.max())
    if value_range is None and not (values.dtype == np.bool_ or np.issubdtype(values.dtype, np.floating)):
        raise UnusableImage(f"{values.dtype} values from {low:g} to {high:g}: {SET_RANGE}")
    black, white = value_range or (0.0, 1.0)
    if not (low >= black and high <= white):  # written so that NaN is refused too
        outside = f"values from {low:g} to {high:g}"
        if value_range is None:
            raise UnusableImage(f"{outside}; floats must be in [0, 1]: {SET_RANGE}")
        raise UnusableImage(f"{outside}, outside data.value_range = {written(value_range)}")
    return np.rint((values.astype(np.float64) - black) * (255 / (white - black))).astype(np.uint8)


def binarised(pixels: NDArray[np.uint8], preprocessing: Preprocessing, training: bool = False) -> NDArray[np.uint8]:
    """Applies `data.binarise`: grey (H, W, 1) in, 0 or 255 out.

    - `none`: unchanged.
    - `threshold`: 255 where the pixel is 128 or more.
    - `static`: 255 with probability pixel/255 (Salakhutdinov & Murray 2008), drawn once, from the seed and
      the image itself, so that neither order nor neighbours matter.
    - `dynamic`: images for training stay grey and are drawn anew in every batch; all others as `static`.
    """
    match preprocessing.binarise:
        case "none":
            return pixels
        case "threshold":
            on = pixels >= 128
        case "dynamic" if training:
            return pixels
        case "static" | "dynamic":
            digest = hashlib.sha256(f"{preprocessing.seed}:".encode() + pixels.tobytes()).digest()
            draw = np.random.default_rng(int.from_bytes(digest)).integers(0, 255, pixels.shape)
            on = draw < pixels
        case unknown:
            raise ValueError(f"binarise = {unknown!r}")
    return np.where(on, np.uint8(255), np.uint8(0))


def begins_like_one(head: bytes) -> bool:
    """Whether a file that begins with these bytes, 512 or all of them, claims to be an image; TGA shows no sign."""
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    return not file_kinds.is_text(head) and any(accept is not None and accept(head[:16]) for accept in accepts)


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        head = content[: file_kinds.HEAD]
        if not begins_like_one(head) and (kind := file_kinds.by_content(head)):
            article = "an" if kind.name.startswith(("archive", "SVG")) else "a"
            raise UnusableImage(f"content is {article} {kind.name}; {kind.way_out}") from None
        raise


# Of a JPEG: what begins a segment or ends the image; not restarts (D0..D7), which are part of a scan's data.
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_END, _SCAN = 0xD9, 0xDA
_BITS_PER_SAMPLE = 258  # a tag of TIFF 6.0


def _scans(jpeg: bytes, image: Any) -> int:
    """How many scans are decoded of the first image, counted to just above `MAX_SCANS`; nothing is decoded here.

    Of an image that is not progressive, the decoder reads no scan after one that has all components.
    """
    scans, at = 0, 0
    while scans <= MAX_SCANS and (marker := _JPEG_MARKER.search(jpeg, at)) and marker[1][0] != _END:
        if marker[1][0] == _SCAN:
            scans += 1
            components = jpeg[marker.end() + 2 : marker.end() + 3]
            if scans == 1 and components == bytes([image.layers]) and "progressive" not in image.info:
                break
        at = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2])
    return scans


def _from_pixels(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UnusableImage(f"an array of {pixels.dtype} {pixels.shape} is not an image")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _turn_upright(image: Image.Image) -> None:
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return  # neither can turn it; most photos of data sets have none, and Pillow takes a while to see that
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # whatever the EXIF parser stumbles over, the pixels are good
        pass


def _flattened(image: Image.Image, preprocessing: Preprocessing) -> tuple[Image.Image, str | None]:
    """8 bits a channel, nothing transparent: L or RGB; and what may have been lost."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_numbers(image, preprocessing.value_range)
    if not image.has_transparency_data:
        return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB"), None
    seen = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if preprocessing.alpha == "ignore" or not notes.alpha_is_named(image):
        return seen.convert("RGB"), None
    paper = Image.new("RGBA", seen.size, "white")
    paper.alpha_composite(seen)
    return paper.convert("RGB"), notes.alpha(seen.getchannel("A"))


def _from_numbers(image: Any, value_range: tuple[float, float] | None) -> tuple[Image.Image, str | None]:
    """Grey, from pixels of 12, 16 or 32 bits, or floats."""
    values, note = np.asarray(image), None
    if value_range is None and image.format == "TIFF" and image.tag_v2.get(_BITS_PER_SAMPLE) == (12,):
        value_range = (0, 4095)
    if value_range is None:
        low, high = values.min(), values.max()
        if image.mode == "F" or low < 0 or high > 65535:
            kind = "float" if image.mode == "F" else "integer"
            raise UnusableImage(f"{kind} pixels from {low:g} to {high:g} have no known range: {SET_RANGE}")
        grey, note = ((values.astype(np.int32) + 128) // 257).astype(np.uint8), notes.values(low, high, 65535)
    else:
        grey = scaled(values, value_range)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey), note


@contextmanager
def _pillow_errors_as_refusals() -> Iterator[None]:
    try:
        yield
    except UnusableImage:
        raise
    except UnidentifiedImageError:
        raise UnusableImage("not an image in a supported format, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise UnusableImage(f"too large: at most {MAX_PIXELS:,} pixels are decoded") from None
    except MemoryError:
        raise UnusableNow("broken image: not enough memory to decode it") from None
    except Exception as error:  # a decoder raises anything: OSError, SyntaxError, struct.error, EOFError, …
        raise UnusableImage(f"broken image: {_describe(error)}") from None


def _describe(error: Exception) -> str:
    text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    # Without memory addresses, which differ from run to run.
    return re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", one_line(text))[:200]
