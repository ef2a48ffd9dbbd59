"""What a pixel's value means, and which bands, pages and axes a picture has, is never assumed without a word.

Tried, with what happened before:

- 12 bits in 16-bit PNG and TIFF files: 17 grey levels were left, without a word. The same with 10 and 14 bits, with
  thermal images between 41,000 and 52,000 (github.com/microsoft/arcticseals/issues/4), and with uint8 arrays of 0..16.
- a TIFF of 12 bits a sample: the same, though the file itself says what is white.
- float TIFFs, uint16 arrays, floats in [0, 255] or [-1, 1]: refused, without a way on but to save them again.
- a fourth band of near infrared: taken for alpha, so that the picture paled on white, where the TIFF does not say what
  the band is or says alpha, and in PNG; dropped silently where the TIFF says that it is not alpha. Alpha 0 everywhere
  (exported textures): a white image.
- TIFF stacks, GIF, APNG: the first page, silently. Previews in a TIFF and the depth maps in phones' MPO files are no
  pages.
- one H×W×3 array: read as H images of W×3. Flat rows (N, 784) and object arrays: refused, without the way out.
- colour photos with the default data.channels = 1: grey, silently. Grey photos with 3: three times the numbers.
- right before: CMYK, cut-outs with alpha, N×3×H×W, values that are not numbers, Fortran order, one dark photo among
  others.
"""

import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import pictures
from helpers.ingests import encoded
from helpers.models import config, network
from helpers.validations import noted, pixels, validated, write
from mlflow.exceptions import MlflowException
from PIL import Image

from tasks import workspace
from tasks.cli import doctor, reading
from tasks.tracking.served_model import ServedVAE
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.config.sections import Data, Model
from vae.data import notes, sources
from vae.data.images import UnusableImage, load, prepare, scaled
from vae.models import saved

COUNT = 30
RGB = Preprocessing(16, 16, 3)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scenes(low: float, high: float, seed: int = 0) -> np.ndarray:
    """(N, 16, 16) floats from low to high, both reached."""
    values = pictures(COUNT, seed, 16, 16)[..., 0].astype(float)
    return low + (values - values.min()) / (values.max() - values.min()) * (high - low)


def files(images: np.ndarray, kind: str = "PNG") -> dict[str, bytes]:
    return {f"photos/{i:02}.{kind.lower()}": encoded(Image.fromarray(image), kind) for i, image in enumerate(images)}


def finding(rule: dict[str, Any]) -> str:
    (example,) = rule["examples"]
    return example["value"]


# Values


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_12_bits_in_16_are_noticed_with_numbers_and_the_parameter_keeps_all_levels(here: Path, kind: str) -> None:
    path = write(here, files(scenes(0, 4095).round().astype(np.uint16), kind)) + "/photos"
    broken = validated(path)
    assert broken["narrow_range"]["severity"] == "warning"
    assert finding(broken["narrow_range"]) == (
        "30 images of 16 bits have values from 0 to 4095, 17 of 256 grey levels; "
        "data.value_range: [0, 4095] if they have 12 bits"
    )
    assert noted()[f"00.{kind.lower()}"].startswith("values: from ")
    assert len(np.unique(pixels())) < 25

    assert "narrow_range" not in validated(path, value_range=[0, 4095])
    assert len(np.unique(pixels())) > 200 and noted() == {}


def test_a_narrow_band_far_from_black_is_noticed_too(here: Path) -> None:
    broken = validated(write(here, files(scenes(41_000, 52_181).round().astype(np.uint16))) + "/photos")
    assert "data.value_range: [41000, 52181]" in finding(broken["narrow_range"])


def test_one_dark_photo_or_a_full_range_is_no_sign(here: Path) -> None:
    images = scenes(0, 65535)
    images[3] /= 20
    assert "narrow_range" not in validated(write(here, files(images.round().astype(np.uint16))) + "/photos")


def test_a_tiff_of_12_bits_says_itself_what_is_white() -> None:
    packed = bytes.fromhex("000fff") * 32  # black and white by turns
    tags = {256: 8, 257: 8, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(packed)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = 8 + len(packed)
    content = struct.pack("<2sHI", b"II", 42, start) + packed + struct.pack("<H", len(tags)) + directory + bytes(4)
    seen = prepare(content, Preprocessing(8, 8, 1))
    assert seen.pixels[0, :4, 0].tolist() == [0, 255, 0, 255] and seen.note is None


def test_arrays_of_few_values_are_noticed(here: Path) -> None:
    np.save("digits.npy", scenes(0, 16).round().astype(np.uint8))
    broken = validated("digits.npy", source="npy")
    assert finding(broken["narrow_range"]) == "all 30 images lie between 0 and 16 of 255: 17 grey levels"
    assert "data.value_range" in str(doctor_says())
    assert "narrow_range" not in validated("digits.npy", source="npy", value_range=[0, 16])
    assert (pixels().min(), pixels().max()) == (0, 255)


@pytest.mark.parametrize(
    ("images", "value_range"),
    [
        (scenes(0, 4095).round().astype(np.uint16), [0, 4095]),
        (scenes(-1, 1), [-1, 1]),
        (scenes(0, 255).astype(np.float32), [0, 255]),
        (scenes(-1000, 3000).round().astype(np.int16), [-1000, 3000]),  # Hounsfield units
    ],
)
def test_arrays_of_any_type_need_the_values_of_black_and_white(images: np.ndarray, value_range: list[float]) -> None:
    np.save("x.npy", images)
    with pytest.raises(InputError, match=r"set data\.value_range to the values of black and white"):
        validated("x.npy", source="npy")
    validated("x.npy", source="npy", value_range=value_range)
    assert len(np.unique(pixels())) > 200
    black, white = value_range
    assert read("x.npy", model_with(Preprocessing(16, 16, 1, value_range=(black, white)))) == stored()


def test_a_float_tiff_is_refused_with_the_way_out_and_read_with_a_range() -> None:
    image = Image.fromarray(np.linspace(-1, 3, 256, dtype=np.float32).reshape(16, 16))
    with pytest.raises(UnusableImage, match=r"float pixels from -1 to 3 .* set data\.value_range"):
        load(encoded(image, "TIFF"), RGB)
    seen = load(encoded(image, "TIFF"), Preprocessing(16, 16, 1, value_range=(-1, 3)))
    assert seen.ravel().tolist() == list(range(256))


def test_a_value_outside_the_range_is_refused_with_its_number() -> None:
    image = Image.fromarray(np.full((16, 16), 5000, np.uint16))
    with pytest.raises(UnusableImage, match=r"values from 5000 to 5000, outside data\.value_range = \[0, 4095\]"):
        load(encoded(image), Preprocessing(16, 16, 1, value_range=(0, 4095)))


@pytest.mark.parametrize("value_range", [[5, 5], [9, 0], [0], 4095, [0, float("inf")], [0, 10**400], ["0", 1]])
def test_what_is_no_range_is_refused(value_range: object) -> None:
    with pytest.raises(ValueError, match="value_range"):
        Data.model_validate({"value_range": value_range})


def test_8_bits_have_their_range() -> None:
    """Or else one grey JPEG among 12-bit files would be black, and so would what ingest has stored."""
    grey = encoded(Image.new("L", (16, 16), 200))
    assert load(grey, Preprocessing(16, 16, 1, value_range=(0, 4095))).max() == 200
    assert scaled(np.array([7, 200], np.uint8), (0, 4095)).tolist() == [7, 200]


def test_the_served_model_reads_numbers_as_ingest_does() -> None:
    served = ServedVAE()
    served.saved = model_with(Preprocessing(16, 16, 1, value_range=(0, 4095)))
    values = scenes(0, 4095).round().astype(np.uint16)
    by_file = [load(encoded(Image.fromarray(image)), served.saved.config.preprocessing) for image in values]
    assert np.array_equal(served.prepared(list(values)), by_file)
    assert np.array_equal(served.prepared([image.tolist() for image in values]), by_file)
    assert np.array_equal(served.prepared(by_file), by_file)
    with pytest.raises(MlflowException, match=r"image 0: values from 5000 to 5000, outside"):
        served.prepared([np.full((16, 16), 5000)])


def test_16_bit_colour_of_12_bits_is_noticed_though_only_its_owner_can_mend_it(here: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (4, 16, 16, 3)).astype(">u2")
    content = {f"{i}.png": png_of_16_bits(image) for i, image in enumerate(values)}
    broken = validated(write(here / "photos", content), channels=3, value_range=[0, 4095])
    assert finding(broken["narrow_range"]) == "all 4 images lie between 0 and 15 of 255: 16 grey levels"
    assert "colour images" in broken["narrow_range"]["what_to_do"]


def png_of_16_bits(image: np.ndarray) -> bytes:
    """image: (H, W, 3), big-endian. Pillow writes none."""
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in image))
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# Bands


def four_bands(fourth: np.ndarray, kind: str = "TIFF") -> bytes:
    colours = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    return encoded(Image.fromarray(np.dstack([colours, fourth.astype(np.uint8)])), kind)


NEAR_INFRARED = np.linspace(10, 240, 256).reshape(16, 16)
CUT_OUT = np.pad(np.full((12, 12), 255), 2)
EXTRA_SAMPLES = struct.pack("<HHIHH", 338, 3, 1, 2, 0)  # as Pillow writes it: one band more, which is alpha


@pytest.mark.parametrize("entry", [struct.pack("<HHIHH", 338, 3, 1, 0, 0), struct.pack("<HHIHH", 65000, 3, 1, 2, 0)])
def test_a_band_that_is_not_called_alpha_pales_nothing(entry: bytes) -> None:
    """Where the file says that it is unspecified, and where it says nothing."""
    content = four_bands(NEAR_INFRARED)
    assert content.count(EXTRA_SAMPLES) == 1
    seen = prepare(content.replace(EXTRA_SAMPLES, entry), RGB)
    assert (seen.pixels == (200, 100, 50)).all() and seen.note == "bands: 1 of 4 not used"


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_near_infrared_that_is_called_alpha_is_noticed_with_numbers(here: Path, kind: str) -> None:
    path = write(here / "photos", {f"{i}.x": four_bands(NEAR_INFRARED - i, kind) for i in range(4)})
    broken = validated(path, channels=3)
    assert broken["translucent"]["count"] == 4 and "data.alpha" in str(doctor_says())
    values = {example["file"]: example["value"] for example in broken["translucent"]["examples"]}
    assert values["0.x"] == "from 10 to 240 of 255, 100% of the pixels translucent"
    validated(path, channels=3, alpha="ignore")
    assert (pixels() == (200, 100, 50)).all() and noted() == {}


def test_alpha_that_hides_everything_is_noticed_and_a_cut_out_is_not() -> None:
    hidden = prepare(four_bands(np.zeros((16, 16)), "PNG"), RGB)
    assert hidden.note == "alpha: 0 everywhere, the picture is hidden"
    cut_out = prepare(four_bands(CUT_OUT, "PNG"), RGB)
    assert cut_out.note is None and cut_out.pixels[0, 0].tolist() == [255, 255, 255]


def test_an_array_with_four_channels_may_hold_near_infrared(here: Path) -> None:
    images = np.full((COUNT, 16, 16, 4), (200, 100, 50, 0), np.uint8)
    images[..., 3] = NEAR_INFRARED
    images[:, 0, 0, 0] = np.arange(COUNT)
    np.save("x.npy", images)
    assert validated("x.npy", source="npy", channels=3)["translucent"]["count"] == COUNT
    validated("x.npy", source="npy", channels=3, alpha="ignore")
    assert (pixels()[:, 8, 8] == (200, 100, 50)).all()


def test_colour_that_is_made_grey_is_noticed_and_grey_that_is_kept_as_colour(here: Path) -> None:
    colour = write(here / "colour", files(pictures(COUNT, 0, 16, 16, channels=3)))
    assert finding(validated(colour)["colour_lost"]).startswith("30 of 30 images have colour; data.channels = 1")
    assert "colour_lost" not in validated(colour, channels=3)
    grey = write(here / "grey", files(np.repeat(pictures(COUNT, 0, 16, 16), 3, axis=3)))
    assert finding(validated(grey, channels=3)["grey_in_colour"]) == "all 30 images are grey"
    assert not {"colour_lost", "grey_in_colour"} & validated(grey).keys()


# Pages


def stack(kind: str, count: int = 12) -> bytes:
    first, *others = [Image.fromarray(image[..., 0]).convert("RGB") for image in pictures(count, 0, 16, 16)]
    return encoded(first, kind, save_all=True, append_images=others)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("TIFF", "the first of 12"), ("PNG", "the first of 12"), ("GIF", "the first of several frames")],
)
def test_the_first_of_several_pages_is_noted(here: Path, kind: str, text: str) -> None:
    singles = files(pictures(COUNT, 5, 16, 16)[..., 0])
    path = write(here, singles | {f"photos/stack.{kind.lower()}": stack(kind)}) + "/photos"
    broken = validated(path)
    assert finding(broken["several_pages"]) == text and noted() == {f"stack.{kind.lower()}": f"pages: {text}"}


def test_previews_and_a_phones_second_picture_are_no_pages() -> None:
    assert prepare(stack("MPO", 2), RGB).note is None
    content = stack("TIFF", 2)
    entry, preview = (struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in ((277, 3), (254, 1)))
    at = content.rindex(entry)  # of the second page
    assert content.count(entry) == 2
    assert prepare(content, RGB).note == "pages: the first of 2"
    assert prepare(content[:at] + preview + content[at + len(preview) :], RGB).note is None


def test_a_stereo_picture_has_two() -> None:
    content = stack("MPO", 2)
    undefined, disparity = struct.pack("<I", 0x000000), struct.pack("<I", 0x020002)
    image = Image.open(io.BytesIO(content))
    size = struct.pack("<I", image.mpinfo[0xB002][1]["Size"])  # type: ignore[attr-defined]
    seen = prepare(content.replace(undefined + size, disparity + size), RGB)
    assert seen.note == "pages: the first of 2"


def test_pages_without_end_are_not_counted_to_the_end() -> None:
    first = encoded(Image.new("L", (16, 16)), "TIFF")
    (at,) = struct.unpack("<I", first[4:8])
    after = at + 2 + 12 * struct.unpack("<H", first[at : at + 2])[0]
    page, size = first[at:after], after - at + 4
    more = b"".join(page + struct.pack("<I", len(first) + (i + 1) * size) for i in range(100_000))
    begun = time.monotonic()
    seen = prepare(first[:after] + struct.pack("<I", len(first)) + first[after + 4 :] + more, RGB)
    assert seen.note == f"pages: the first of {notes.MOST_PAGES} or more" and time.monotonic() - begun < 5


# Axes


@pytest.mark.parametrize(
    ("array", "way_out"),
    [
        (
            np.zeros((48, 64, 3), np.uint8),
            r"one image of 48×64 with 3 channels, or 48 images of 64×3\? .*array\[None\]",
        ),
        (np.zeros((48, 64, 4), np.uint8), r"one image of 48×64 with 4 channels"),
        (np.zeros((50, 784), np.uint8), r"save flat rows as array\.reshape\(-1, 28, 28\)"),
        (np.array([np.zeros((8, 8)), np.zeros((9, 9))], object), r"of different sizes belong into a folder"),
        (np.zeros((50, 8, 8), complex), r"is of complex128"),
    ],
)
def test_axes_that_may_mean_two_things_are_refused_with_the_way_out(array: np.ndarray, way_out: str) -> None:
    np.save("x.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=way_out):
        sources.find(Data(source="npy", path="x.npy"))


def test_labels_say_that_the_rows_are_images_and_fortran_order_changes_nothing() -> None:
    np.save("x.npy", np.zeros((48, 64, 3), np.uint8))
    np.save("x_labels.npy", np.arange(48))
    assert len(sources.find(Data(source="npy", path="x.npy"))) == 48
    images = pictures(COUNT, 0, 16, 16)
    np.save("c.npy", images)
    np.save("f.npy", np.asfortranarray(images))
    kept = []
    for name in ("c.npy", "f.npy"):
        validated(name, source="npy")
        kept.append(pixels())
    assert np.array_equal(*kept)


# The model, and the doctor


def model_with(preprocessing: Preprocessing) -> saved.Saved:
    small = Model(architecture="mlp", latent_dim=2, widths=[4])
    made = config((1, 16, 16), small, preprocessing=preprocessing)
    saved.save(workspace.MODEL, network(made), made)
    return saved.load(workspace.MODEL)


def read(path: str, model: saved.Saved) -> list[bytes]:
    """The images as `vae encode` prepares them, sorted."""
    return sorted(image.tobytes() for _, batch in reading.reading(Path(path), model).batches() for image in batch)


def stored() -> list[bytes]:
    return sorted(image.tobytes() for image in pixels())


def test_a_new_photo_is_prepared_as_the_model_says(here: Path) -> None:
    """Also a model that was saved before there was a range."""
    values = scenes(0, 4095).round().astype(np.uint16)
    path = write(here, files(values)) + "/photos"
    validated(path, value_range=[0, 4095])
    assert read(path, model_with(Preprocessing(16, 16, 1, value_range=(0, 4095)))) == stored()

    old = asdict(Preprocessing(16, 16, 1))
    del old["value_range"], old["alpha"]
    file = workspace.MODEL / saved.CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"preprocessing": old}))
    assert saved.load(workspace.MODEL).config.preprocessing == Preprocessing(16, 16, 1)
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 0, "value_range": [7, 7]'))
    with pytest.raises(InputError, match="value_range"):
        saved.load(workspace.MODEL)


def doctor_says() -> list[tuple[str, str]]:
    return list(doctor.validation())


def test_the_doctor_repeats_what_validation_found(here: Path) -> None:
    assert doctor_says() == [("note", "not validated yet")]
    singles: dict[str, Callable[[], bytes] | bytes] = dict(files(pictures(COUNT, 5, 16, 16)[..., 0]))
    path = write(here, singles | {"photos/stack.tiff": stack("TIFF")}) + "/photos"  # type: ignore[operator]
    validated(path)
    assert "several_pages (1): stack.tiff: the first of 12" in str(doctor_says())
    workspace.VALIDATION.write_text("{")
    assert [state for state, _ in doctor_says()] == ["problem"]
