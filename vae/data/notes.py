"""What reading an image decided and may have lost: short notes, which the manifest keeps and validation counts.

An image's note is one text, `kind: what happened`, several joined by `; `. The kinds:

- pages: one page, frame or view of several is the image.
- bands: further bands, such as near infrared, are not used.
- alpha: most of the picture is translucent, so that it pales on white paper; a cut-out has few such pixels.
- values: the smallest and the largest value of a 16-bit image, where `data.value_range` does not name black and white.
- colour: a colour image is made grey.
"""

from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np
from PIL import Image

MOST_PAGES = 1000  # counted; a file may hold millions of empty ones
OPAQUE = 250  # alpha from which on nothing visible is lost
MOSTLY = 0.5  # translucent: this share of the pixels
TINTED, TINTED_SHARE = 24, 0.01  # levels between the channels, beyond JPEG's noise, in this share of the pixels

_SAMPLES, _EXTRA_SAMPLES, _SUBFILE = 277, 338, 254  # TIFF 6.0's tags
_REDUCED_OR_MASK = 0b101


def joined(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


def parts(note: str) -> list[tuple[str, str]]:
    """(kind, what happened) of each note in an image's text."""
    split = (part.partition(": ") for part in note.split("; "))
    return [(kind, text) for kind, _, text in split]


def pages(image: Any) -> str | None:
    """Of an opened file, not yet loaded. Previews, masks and a phone's depth maps are no pictures of their own."""
    match image.format:
        case "TIFF":
            found = _tiff_pages(image)
        case "MPO":
            found = 1 + sum("Multi-Frame" in view["Attribute"]["MPType"] for view in image.mpinfo[0xB002][1:])
        case "GIF":  # to count the frames takes a pass over the file
            return "pages: the first of several frames" if image.is_animated else None
        case _:
            found = getattr(image, "n_frames", 1)
    more = " or more" if found == MOST_PAGES else ""
    return f"pages: the first of {found}{more}" if found > 1 else None


def _tiff_pages(image: Any) -> int:
    found = 1
    with suppress(Exception):  # EOFError after the last one; whatever is wrong with a later page, the first is good
        for page in count(1):
            image.seek(page)
            found += not image.tag_v2.get(_SUBFILE, 0) & _REDUCED_OR_MASK
            if found == MOST_PAGES or page == 2 * MOST_PAGES:
                break
    image.seek(0)
    return found


def alpha_is_named(image: Any) -> bool:
    """Whether the last band of an image with alpha is said to be that: a TIFF's fourth band may be anything."""
    return image.format != "TIFF" or bool(image.tag_v2.get(_EXTRA_SAMPLES))


def bands(image: Any) -> str | None:
    """Only a TIFF can have more bands than are used."""
    if image.format != "TIFF":
        return None
    samples = image.tag_v2.get(_SAMPLES, 1)
    used = len(image.getbands()) - (image.mode in ("RGBA", "LA") and not alpha_is_named(image))
    return f"bands: {samples - used} of {samples} not used" if samples > used else None


def alpha(band: Image.Image) -> str | None:
    """band: the alpha of an image, mode L."""
    counts = np.array(band.histogram())
    share = counts[1:OPAQUE].sum() / counts.sum()
    (levels,) = counts.nonzero()
    if levels[-1] == 0:
        return "alpha: 0 everywhere, the picture is hidden"
    if share <= MOSTLY:
        return None
    return f"alpha: from {levels[0]} to {levels[-1]} of 255, {share:.0%} of the pixels translucent"


def values(low: int, high: int, most: int) -> str:
    return f"values: from {low} to {high} of {most}"


def colour(pixels: np.ndarray) -> str | None:
    """pixels: (H, W, 3), a sample of a picture that is going to be grey."""
    tinted = (pixels.max(axis=2).astype(int) - pixels.min(axis=2)) >= TINTED
    return "colour: made grey" if tinted.mean() >= TINTED_SHARE else None
