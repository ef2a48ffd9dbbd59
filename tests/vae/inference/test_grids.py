import base64
import io
import math

import numpy as np
from PIL import Image

from vae.inference import grids


def test_reconstruction_grid_puts_each_original_above_its_reconstruction() -> None:
    originals = np.stack([np.full((8, 8, 1), 20 * i, dtype=np.uint8) for i in range(10)])
    picture = grids.reconstruction_grid(originals, originals / 255 / 2, columns=8)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    factor = picture.shape[1] // (8 * 9 - 1)
    assert factor == 11  # the whole number that brings 71 pixels nearest to 800
    small = picture[::factor, ::factor, 0]
    assert (small[:8, 9:17] == 20).all() and (small[9:17, 9:17] == 10).all()
    second_pair = 17 + 3
    assert (small[second_pair : second_pair + 8, 9:17] == 180).all()
    assert (small[second_pair:, 18:] == 255).all()  # no ninth column of images


def test_grid_takes_floats_beyond_the_range_and_colour() -> None:
    images = np.array([[[[-1.0, 0.5, 2.0]]], [[[math.nan, 0.0, 1.0]]]])
    picture = grids.grid(images, columns=2)
    assert picture[0, 0].tolist() == [0, 128, 255]
    assert picture[0, -1].tolist() == [0, 0, 255]


def test_a_page_keeps_small_pictures_sharp_and_bounds_big_ones() -> None:
    random = np.random.default_rng(0)
    small = grids.png(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    uri, *size = grids.embedded(small)
    assert base64.b64decode(uri.removeprefix("data:image/png;base64,")) == small and size == [60, 40]
    photos = random.normal(0.5, 0.1, (48, 256, 256, 3)).astype(np.float32)  # noise is the worst there is
    picture = grids.png(grids.grid(photos, columns=8))
    uri, *size = grids.embedded(picture)
    assert len(picture) > 3e6 > 1e6 > len(uri)
    assert size == [1200, round(1541 * 1200 / 2055)]
    shown = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert shown.size == tuple(size) and grids.embedded(picture)[0] == uri
