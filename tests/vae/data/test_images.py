import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.ingests import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vae.config.parameters import Parameters
from vae.config.preprocessing import Preprocessing
from vae.data.images import MAX_BYTES, UnusableImage, binarised, load, prepare, read_file

# pytest sets warning filters of its own over those of vae.images.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

RGB = Preprocessing(8, 8, 3)
GREY = Preprocessing(8, 8, 1)


def pixels_of(image: Image.Image, kind: str = "PNG", want: Preprocessing = RGB, **options: object) -> np.ndarray:
    return load(encoded(image, kind, **options), want)


def same_everywhere(pixels: np.ndarray) -> list[int]:
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0].tolist()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# The EXIF standard says where the stored first row and column are seen; here as array operations that bring
# what is stored to what is seen.
TURN_UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURN_UPRIGHT)
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    seen = TURN_UPRIGHT[orientation](stored)
    content = encoded(Image.fromarray(stored), kind, exif=turned(orientation))
    assert np.array_equal(load(content, Preprocessing(*seen.shape)), seen)


def test_a_photo_turned_right_has_its_red_corner_at_the_top_left_and_is_described_as_stored() -> None:
    stored = np.zeros((80, 160, 3), np.uint8)
    stored[40:, :80] = (255, 0, 0)  # bottom left as stored; orientation 6 is turned clockwise to be seen
    prepared = prepare(encoded(Image.fromarray(stored), "JPEG", exif=turned(6)), RGB)
    assert (prepared.width, prepared.height, prepared.mode) == (160, 80, "RGB")
    pixels = prepared.pixels
    assert pixels[0, 0, 0] > 240 and pixels[0, 0, 1:].max() < 15
    assert max(pixels[0, -1].max(), pixels[-1, 0].max(), pixels[-1, -1].max()) < 15


BIG_ENDIAN = b"MM\x00*\x00\x00\x00\x08"
TEXT = BIG_ENDIAN + struct.pack(">HHHI4s", 1, 0x0112, 2, 4, b"up!\x00") + bytes(4)  # an orientation of type text


@pytest.mark.parametrize("exif", [b"nonsense", b"II*\x00\xff\xff\xff\xff", BIG_ENDIAN, TEXT])
def test_exif_that_cannot_be_read_does_not_matter(exif: bytes) -> None:
    image = Image.new("RGB", (8, 8), (10, 200, 30))
    assert np.array_equal(pixels_of(image, "JPEG", exif=b"Exif\x00\x00" + exif), pixels_of(image, "JPEG"))


def test_pillow_warns_nobody(tmp_path: Path) -> None:
    odd = tmp_path / "odd.jpg"
    odd.write_bytes(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\x00\x00" + BIG_ENDIAN + b"\x00\x09"))
    program = "import sys; {} Image.open(sys.argv[1]).getexif()"
    aware, quiet = (
        subprocess.run([sys.executable, "-c", program.format(imports), odd], capture_output=True, text=True)
        for imports in ("from PIL import Image;", "import vae.data.images; from PIL import Image;")
    )
    assert "UserWarning" in aware.stderr  # else this file would prove nothing
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("RGB", (1, 2, 3), "PNG", [1, 2, 3]),
        ("L", 77, "PNG", [77, 77, 77]),
        ("1", 1, "PNG", [255, 255, 255]),
        ("CMYK", (0, 255, 255, 0), "TIFF", [255, 0, 0]),
        ("RGBA", (0, 0, 0, 255), "PNG", [0, 0, 0]),
        ("RGBA", (0, 0, 0, 0), "PNG", [255, 255, 255]),
        ("RGBA", (255, 0, 0, 51), "PNG", [255, 204, 204]),  # a fifth red on white
        ("LA", (0, 51), "PNG", [204, 204, 204]),
        ("YCbCr", (76, 85, 255), "TIFF", [254, 0, 0]),  # red, rounded twice
        ("RGB", (9, 99, 9), "QOI", [9, 99, 9]),
        ("RGB", (9, 99, 9), "PPM", [9, 99, 9]),
        ("RGB", (9, 99, 9), "BMP", [9, 99, 9]),
    ],
)
def test_modes_come_to_rgb(mode: str, colour: object, kind: str, expected: list[int]) -> None:
    assert same_everywhere(pixels_of(Image.new(mode, (16, 12), colour), kind)) == expected


@pytest.mark.parametrize(
    ("mode", "left", "right", "transparency", "seen"),
    [
        ("P", 0, 1, bytes([0, 255]), [[255, 255, 255], [0, 0, 200]]),
        ("P", 0, 1, 1, [[200, 0, 0], [255, 255, 255]]),
        ("RGB", (1, 2, 3), (4, 5, 6), (1, 2, 3), [[255, 255, 255], [4, 5, 6]]),
    ],
)
def test_what_is_transparent_shows_white(mode: str, left: Any, right: Any, transparency: Any, seen: list) -> None:
    image = Image.new(mode, (8, 8), left)
    if mode == "P":
        image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(right, (4, 0, 8, 8))
    assert pixels_of(image, transparency=transparency)[0, [0, 7]].tolist() == seen


def test_a_transparent_grey_shows_white() -> None:
    assert same_everywhere(pixels_of(Image.new("1", (8, 8), 0), transparency=0)) == [255, 255, 255]
    assert same_everywhere(pixels_of(Image.fromarray(np.full((8, 8), 700, np.uint16)), transparency=700)) == [255] * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_rounded_to_8(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 25700, 32896, 65406, 65535]] * 8, np.uint16)
    pixels = pixels_of(Image.fromarray(values), kind, GREY)
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 100, 128, 254, 255]


def test_pixels_without_a_known_range_are_refused() -> None:
    with pytest.raises(UnusableImage, match="float"):
        pixels_of(Image.new("F", (8, 8), 0.5), "TIFF")
    for value in (70000, -1):
        with pytest.raises(UnusableImage, match=f"from {value} to {value}"):
            pixels_of(Image.new("I", (8, 8), value), "TIFF")
    assert same_everywhere(pixels_of(Image.new("I", (8, 8), 65535), "TIFF")) == [255, 255, 255]


def test_colour_comes_to_grey_by_luma() -> None:
    assert same_everywhere(pixels_of(Image.new("RGB", (8, 8), (255, 0, 0)), want=GREY)) == [76]
    assert pixels_of(Image.new("RGB", (8, 8)), want=GREY).shape == (8, 8, 1)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_is_the_image(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    pixels = pixels_of(first, kind, save_all=True, append_images=[second])
    assert np.allclose(pixels, [255, 0, 0], atol=3)


def test_resizing_is_antialiased_and_uses_the_whole_image() -> None:
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    assert np.abs(pixels_of(Image.fromarray(board.astype(np.uint8)), want=GREY).astype(int) - 127).max() <= 3
    wide = np.zeros((16, 160), np.uint8)
    wide[:, 80:] = 255
    pixels = pixels_of(Image.fromarray(wide), want=GREY)
    assert pixels[:, :3].max() < 20 and pixels[:, 5:].min() > 235
    assert pixels_of(Image.new("L", (7, 300)), want=Preprocessing(12, 20, 1)).shape == (12, 20, 1)


def test_a_large_jpeg_is_nearly_what_full_decoding_gives() -> None:
    y, x = np.mgrid[0:512, 0:768]
    photo = Image.fromarray(np.stack([x // 3, y // 2, (x + y) // 5], axis=-1).astype(np.uint8))
    jpeg = encoded(photo, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(jpeg)).resize((8, 8), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(load(jpeg, RGB).astype(int) - full).max() <= 2


def test_arrays_are_images_too() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(load(grey, GREY)[..., 0], grey)
    assert np.array_equal(load(grey[..., None], GREY)[..., 0], grey)
    assert np.array_equal(load(np.dstack([grey] * 3), RGB), np.dstack([grey] * 3))
    for wrong in (grey.astype(np.float32), np.zeros((8, 0), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(UnusableImage):
            load(wrong, GREY)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds one pixel."""
    content = encoded(Image.new("RGB", (1, 1)))
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize("side", [10_001, 12_000, 20_000, 100_000])
def test_a_huge_image_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(UnusableImage, match=r"too large.* at most 100,000,000"):
        load(png_header(side, side), RGB)


@pytest.mark.parametrize("content", [b"plain text", b"\x00" * 500, png_header(8, 8), b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(UnusableImage) as refusal:
        load(content, RGB)
    reason = str(refusal.value)
    assert reason and "\n" not in reason and "0x" not in reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), kind)
    for part in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(UnusableImage):
            load(content[: int(len(content) * part)], RGB)


SAMPLES = [
    encoded(Image.effect_noise((40, 30), 50).convert(mode), kind)
    for mode, kind in [
        *[("RGB", kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "ICO", "JPEG2000", "TGA")],
        *[("P", "GIF"), ("LA", "PNG"), ("CMYK", "JPEG"), ("I;16", "PNG"), ("RGBA", "SGI")],
    ]
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.data())
def test_damaged_bytes_give_an_image_or_a_refusal(
    content: bytes, changes: list[tuple[float, int]], data: st.DataObject
) -> None:
    damaged = bytearray(content)
    for where, value in changes:
        damaged[int(where * (len(damaged) - 1))] = value
    end = data.draw(st.integers(0, len(damaged)))
    try:
        pixels = load(bytes(damaged[:end]), RGB)
    except UnusableImage as refusal:
        assert str(refusal).isprintable()
    else:
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8


def test_only_regular_files_of_a_sane_size_are_read(tmp_path: Path) -> None:
    pipe, empty, large = tmp_path / "pipe.png", tmp_path / "empty.png", tmp_path / "large.png"
    os.mkfifo(pipe)
    empty.touch()
    large.touch()
    os.truncate(large, MAX_BYTES + 1)
    for path, reason in (
        (pipe, "not a regular file"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (empty, "empty file"),
        (large, "268,435,457 bytes"),
        (tmp_path / "gone.png", "No such file"),
    ):
        with pytest.raises(UnusableImage, match=reason):
            read_file(path)


def test_threshold() -> None:
    grey = np.array([0, 127, 128, 255], np.uint8).reshape(2, 2, 1)
    assert binarised(grey, Preprocessing(2, 2, 1, "threshold")).ravel().tolist() == [0, 0, 255, 255]
    assert np.array_equal(binarised(grey, Preprocessing(2, 2, 1)), grey)


def test_static_draws_each_pixel_with_its_own_probability() -> None:
    rule = Preprocessing(200, 200, 1, "static", seed=3)
    for value in (0, 26, 128, 255):
        drawn = binarised(np.full((200, 200, 1), value, np.uint8), rule)
        assert set(np.unique(drawn)) <= {0, 255}
        p = value / 255
        assert abs((drawn == 255).mean() - p) <= 4 * (p * (1 - p) / 40_000) ** 0.5


def test_static_depends_on_image_and_seed_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
    rule = Preprocessing(16, 16, 1, "static", seed=3)
    first, second = binarised(images[0], rule), binarised(images[1], rule)
    assert np.array_equal(binarised(images[1], rule), second) and np.array_equal(binarised(images[0], rule), first)
    assert not np.array_equal(binarised(images[0], Preprocessing(16, 16, 1, "static", seed=4)), first)
    dynamic = Preprocessing(16, 16, 1, "dynamic", seed=3)
    assert np.array_equal(binarised(images[0], dynamic), first)
    assert np.array_equal(binarised(images[0], dynamic, training=True), images[0])


def test_preprocessing_follows_the_parameters() -> None:
    params = Parameters(data={"image_size": [12, 20], "binarise": "static"}, seed=3)
    assert Preprocessing.of(params) == Preprocessing(12, 20, 1, "static", seed=3)


@pytest.mark.parametrize("size", [(3, 5), (40, 90)])
def test_in_its_own_size_an_image_stays_as_it_is(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    for source in (pixels, buffer.getvalue()):
        assert np.array_equal(load(source, Preprocessing(16, 16, 3), own_size=True), pixels)
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((300, 500, 3), np.uint8)).save(jpeg, "jpeg")
    assert load(jpeg.getvalue(), Preprocessing(16, 16, 3), own_size=True).shape == (300, 500, 3)
