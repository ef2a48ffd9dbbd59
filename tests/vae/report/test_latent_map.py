"""The latent map: dots in their places, each with its own image, bounded in size."""

import io

import numpy as np
from PIL import Image

from vae.report import latent_map
from vae.report.latent_map import HEIGHT, MOST_DOTS, MOST_TILE, WIDTH, LatentMap


def made(count: int, side: tuple[int, int] = (8, 12), channels: int = 3) -> tuple[LatentMap, np.ndarray]:
    """Images of one grey each, and latents that grow with it."""
    grey = (np.arange(count) * 37 % 256).astype(np.uint8)
    images = np.broadcast_to(grey[:, None, None, None], (count, *side, channels))
    mu = np.stack([grey, np.zeros(count)], axis=1).astype(np.float32)
    labels = np.array([None if i % 5 == 0 else f"class {i % 2}" for i in range(count)], dtype=object)
    return latent_map.draw(mu, images, labels, [f"image {i}" for i in range(count)], seed=0), grey


def tile(drawn: LatentMap, index: int) -> np.ndarray:
    dot, (height, width) = drawn.dots[index], drawn.tile
    sheet = np.asarray(Image.open(io.BytesIO(drawn.sheet)).convert("RGB"))
    return sheet[dot.row * height :, dot.column * width :][:height, :width]


def test_each_dot_has_its_own_image_text_class_and_place() -> None:
    drawn, grey = made(50)
    assert len(drawn.dots) == drawn.images == 50
    assert drawn.tile == (8, 16)  # whole blocks of JPEG's
    for index in (0, 7, 49):
        assert drawn.dots[index].text == f"image {index}"
        assert abs(tile(drawn, index).astype(int) - grey[index]).max() <= 3
    names = [drawn.groups[dot.group][0] for dot in drawn.dots[:3]]
    assert names == ["no class", "class 1", "class 0"]
    order = np.argsort([dot.x for dot in drawn.dots], kind="stable")
    np.testing.assert_array_equal(grey[order], np.sort(grey))
    assert all(0 <= dot.x <= WIDTH and 0 <= dot.y <= HEIGHT for dot in drawn.dots)


def test_a_hundred_thousand_images_are_a_sample_of_small_ones() -> None:
    drawn, grey = made(100_000, side=(2, 2), channels=1)
    assert (len(drawn.dots), drawn.images) == (MOST_DOTS, 100_000)
    for index in (0, MOST_DOTS - 1):
        original = int(drawn.dots[index].text.split()[1])
        assert abs(tile(drawn, index).astype(int) - grey[original]).max() <= 3


def test_large_photos_of_noise_stay_within_a_megabyte_and_repeat_to_the_bit() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (MOST_DOTS, 96, 64, 3), dtype=np.uint8)
    mu = random.normal(size=(MOST_DOTS, 3)).astype(np.float32)
    labels, texts = np.full(MOST_DOTS, None), [""] * MOST_DOTS
    drawn, again = (latent_map.draw(mu, images, labels, texts, seed=0) for _ in range(2))
    assert drawn.tile == (MOST_TILE, 24)
    assert len(drawn.sheet) < 1e6
    assert drawn == again


def test_latents_that_say_nothing_stand_in_the_middle() -> None:
    for mu in (np.zeros((3, 2)), np.full((3, 2), np.nan), np.zeros((3, 1))):
        images = np.zeros((3, 8, 8, 1), np.uint8)
        drawn = latent_map.draw(mu.astype(np.float32), images, np.full(3, None), ["", "", ""], seed=0)
        assert {(dot.x, dot.y) for dot in drawn.dots} == {(WIDTH / 2, HEIGHT / 2)}
