"""Image sets for `benchmarks.prediction` that no choice in this project was made on, generated from seeds.

They need nothing but what scikit-learn and matplotlib bundle: two photos and fonts.
"""

import string
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]

CHARACTERS = string.ascii_letters + string.digits
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique", "Mono", "Mono-Bold", "Mono-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)


def photos(count: int) -> Images:
    """Patches of the two photos at full resolution, taken in turn: (count, 32, 32, 3)."""
    from sklearn.datasets import load_sample_images

    random, patches = np.random.default_rng(101), []
    pair = load_sample_images().images
    for index in range(count):
        image = pair[index % 2]
        top, left = (random.integers(length - 31) for length in image.shape[:2])
        patches.append(image[top : top + 32, left : left + 32])
    return np.array(patches, np.uint8)


def characters(count: int) -> Images:
    """Silhouettes of letters and digits, 0 or 255: (count, 28, 28, 1). Font, size, rotation and place are random."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    scale = 4  # drawn larger, so that the edge of a rotated letter is a smooth one
    folder, random = Path(matplotlib.get_data_path()) / "fonts" / "ttf", np.random.default_rng(102)
    drawn = np.empty((count, 28, 28, 1), np.uint8)
    for image in drawn:
        text, font = CHARACTERS[random.integers(len(CHARACTERS))], FONTS[random.integers(len(FONTS))]
        size, angle, shift = random.uniform(18, 26), random.uniform(-20, 20), random.uniform(-2, 2, 2)
        letters = ImageFont.truetype(folder / f"{font}.ttf", size * scale, layout_engine=ImageFont.Layout.BASIC)
        canvas = Image.new("L", (28 * scale, 28 * scale))
        left, top, right, bottom = letters.getbbox(text)
        corner = 14 * scale - (left + right) / 2, 14 * scale - (top + bottom) / 2
        ImageDraw.Draw(canvas).text(corner, text, 255, letters)
        canvas = canvas.rotate(angle, Image.Resampling.BILINEAR, translate=tuple(np.rint(shift * scale).astype(int)))
        image[..., 0] = np.where(np.asarray(canvas.resize((28, 28), Image.Resampling.BOX)) > 127, 255, 0)
    return drawn


def shapes(count: int) -> Images:
    """An ellipse, a square or a triangle on grey: (count, 24, 24, 1). Place, size, rotation and shade are random."""
    random = np.random.default_rng(103)
    kind = random.integers(3, size=count)[:, None, None]
    cy, cx = random.uniform(8, 16, (2, count, 1, 1))
    size, angle = random.uniform(3, 7, (count, 1, 1)), random.uniform(0, 2 * np.pi, (count, 1, 1))
    shade = random.choice([-1, 1], (count, 1, 1)) * random.uniform(0.15, 0.45, (count, 1, 1))
    y, x = np.mgrid[0:24, 0:24] + 0.5
    u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / size
    v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / size
    # How far out a point is: 1 on the outline.
    ellipse, square = np.hypot(u, v / 0.6), np.maximum(abs(u), abs(v)) / 0.8
    triangle = 2 * np.maximum(v, -v / 2 + abs(u) * np.sqrt(3) / 2)
    out = np.select([kind == 0, kind == 1], [ellipse, square], triangle)
    inside = np.clip(0.5 + size * (1 - out) / 2, 0, 1)  # the edge is about a pixel wide
    return np.rint(255 * (0.5 + shade * inside)).astype(np.uint8)[..., None]
