"""Files that are no images beside images: captions, labels, tables, masks, containers, photos in other formats.

Tried, and right already: Thumbs.db, .DS_Store, desktop.ini; images without a suffix or with a wrong one; a text file
named .jpg; AVIF. Failed before, since each of these files counted as a bad image ("not an image in a supported
format") and validation refused them from 2% on:

- captions in .txt beside each image (kohya, DreamBooth); YOLO's labels/*.txt; list_attr.csv (CelebA); labels.csv;
  COCO's .json; VOC's .xml; README and LICENSE;
- MVTec's ground_truth/, CamVid's train_labels/, images/ + masks/, x.jpg + x_mask.png: masks were trained on as images;
- classes such as mask and no_mask, photos such as shoe_label.jpg: taken for annotations, without a warning;
- PCX, DDS, FITS: skipped without a word;
- HEIC, .npz and .npy files, archives, DICOM, raw files (read as their thumbnail): not named as what they are.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.commands import vae, write_model
from helpers.data_sets import manifest_of, pictures
from helpers.ingests import ENVIRONMENT, encoded, photo
from helpers.workspaces import stand_in
from PIL import Image

from tasks import workspace
from tasks.processes.entry import INPUT_ERROR
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.config.sections import Data
from vae.data import images
from vae.data.folders import folder
from vae.data.item import File, Refused
from vae.validation.inspection import inspect

TIFF = b"II*\x00" + bytes(20)  # as raw files begin
HEIC = b"\x00\x00\x00\x24ftypheic\x00\x00\x00\x00mif1heic" + bytes(64)


def write(root: Path, *names: str, content: bytes | None = None) -> Path:
    """Images, or files with this content."""
    for seed, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photo(seed, (8, 8)) if content is None else content)
    return root


def used(root: Path) -> dict[str, str | None]:
    return {item.path: item.label for item in folder.read(root).items if isinstance(item.load, File)}


def refused(root: Path) -> dict[str, str]:
    return {item.path: item.load.reason for item in folder.read(root).items if isinstance(item.load, Refused)}


TEXT = {
    "kohya": (["10_dog/1.jpg", "10_dog/2.jpg"], ["10_dog/1.txt", "10_dog/2.txt", "10_dog/3.caption"]),
    "YOLO": (["train/images/1.jpg", "valid/images/2.jpg"], ["train/labels/1.txt", "valid/labels/2.txt", "data.yaml"]),
    "CelebA": (["img_align_celeba/1.jpg", "img_align_celeba/2.jpg"], ["list_attr.csv", "list_bbox.txt"]),
    "COCO": (["train2017/1.jpg", "val2017/2.jpg"], ["annotations/instances.json"]),
    "VOC": (["VOC/JPEGImages/1.jpg"], ["VOC/Annotations/1.xml", "VOC/ImageSets/Main/train.txt"]),
    "no suffix": (["a/1.jpg", "b/2.jpg"], ["LICENSE", "a/README", "Makefile"]),
    "a caption that begins as a bitmap does": (["a/1.jpg"], ["a/1.txt"]),
}


@pytest.mark.parametrize(("photos", "others"), TEXT.values(), ids=TEXT)
def test_text_beside_images_is_skipped(tmp_path: Path, photos: list[str], others: list[str]) -> None:
    root = write(write(tmp_path, *photos), *others, content=b"BMW on a street, P6, GIF89a\n")
    assert set(used(root)) == set(photos)
    assert all(reason.startswith("companion: ") for reason in refused(root).values())
    found = folder.read(root)
    assert found.warnings == [] and found.lines[-1].startswith("skipped: ")


MASKS = {
    "MVTec": (
        {"train/good/1.png": "good", "test/good/2.png": "good", "test/broken/3.png": "broken"},
        ["ground_truth/broken/3_mask.png"],
    ),
    "CamVid": ({"train/1.png": None, "val/2.png": None}, ["train_labels/1.png", "val_labels/2.png"]),
    "images and masks": ({"images/1.png": None, "images/2.png": None}, ["masks/1.png", "masks/2.png"]),
    "ADE20K": (
        {"images/training/1.png": None, "images/validation/2.png": None},
        ["annotations/training/1.png", "annotations/validation/2.png"],
    ),
    "radiographs": (
        {"COVID/images/1.png": "COVID", "Normal/images/2.png": "Normal"},
        ["COVID/masks/1.png", "Normal/masks/2.png"],
    ),
    "ultrasound": (
        {"benign/b (1).png": "benign", "normal/n (1).png": "normal"},
        ["benign/b (1)_mask.png", "benign/b (1)_mask_1.png"],
    ),
}


@pytest.mark.parametrize(("photos", "masks"), MASKS.values(), ids=MASKS)
def test_masks_are_no_images_of_the_set(tmp_path: Path, photos: dict[str, str | None], masks: list[str]) -> None:
    root = write(tmp_path, *photos, *masks)
    assert used(root) == photos and set(refused(root)) == set(masks)
    (warning,) = folder.read(root).warnings
    assert warning.startswith("skipped as annotations: ") and "skipped: " in folder.read(root).lines[-1]


def test_a_name_that_only_looks_like_a_masks_stays_an_image(tmp_path: Path) -> None:
    names = {"a/face_mask.png", "b/face.png", "a/death_mask_2.png", "b/shoe.png", "b/shoe_label.png"}
    names |= {"b/ford.png", "b/ford gt.png"}
    assert set(used(write(tmp_path, *names))) == names and folder.read(tmp_path).warnings == []


def test_a_folder_beside_images_is_one_of_masks_if_its_files_are_named_like_them(tmp_path: Path) -> None:
    root = write(tmp_path, "images/p1.png", "images/p2.png", "mask/p1.png", "binary_masks/p2_mask.png")
    assert used(root) == {"images/p1.png": None, "images/p2.png": None}
    (warning,) = folder.read(root).warnings
    assert warning == (
        "skipped as annotations: 1 image in binary_masks, 1 image in mask; if they are images to train on, rename them"
    )
    write(root, "mask/p3.png")
    assert set(used(root).values()) == {"images", "mask"}, "it holds more than masks"
    (_, warning) = sorted(folder.read(root).warnings)
    assert warning.startswith("the folder 'images' is taken for a class")


def test_a_skipped_folder_is_named_in_full(tmp_path: Path) -> None:
    root = write(tmp_path, "images/1.png", "trip: rome labels/1.png")
    assert folder.read(root).lines[-1] == "skipped: 1 image in trip: rome labels"


def test_what_claims_to_be_an_image_is_one_or_a_bad_one(tmp_path: Path) -> None:
    root = write(tmp_path, "a/no suffix", "a/wrong.txt", "a/IMG.0001", "b/1.jpg")
    write(root, "b/photo.img", "b/photo.dib")
    write(root, "b/text.jpg", "b/cut.JPEG", content=b"no photo")
    write(root, "b/unknown", content=bytes(100))
    write(root, "b/empty", content=b"")
    assert set(used(root)) == {item.path for item in folder.read(root).items} and refused(root) == {}


CONTAINERS = {
    "x.zip": "1 archive, such as 'a/x.zip': unpack it",
    "x.npy": "1 NumPy array, such as 'a/x.npy': data.source = npy",
    "x.npz": "1 NumPy array",
    "x.h5": "1 data file",
    "x.tfrecord": "1 data file",
    "x.parquet": "1 Parquet or Arrow file, such as 'a/x.parquet': data.source = huggingface",
    "x.mp4": "1 video, such as 'a/x.mp4': save its frames",
    "x.pdf": "1 PDF",
    "x.nii.gz": "1 medical volume",
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    root = write(write(tmp_path, "a/1.jpg", "b/2.jpg"), f"a/{name}", content=bytes(20))
    (told,) = folder.read(root).warnings
    assert told.startswith(f"skipped {CONTAINERS[name]}") and set(used(root)) == {"a/1.jpg", "b/2.jpg"}


PICTURES = {
    "x.nef": "raw camera file: export it",
    "x.svg": "SVG drawing: export it as PNG",
    "x.dcm": "DICOM file: convert it",
    "x.jxl": "JPEG XL image: convert it",
    "x.pcx": "image format that is not read: convert it to PNG",
    "x.dds": "image format that is not read",
    "x.fits": "image format that is not read",
    "x.raw": "raw camera file: export it",
    "x.ima": "DICOM file: convert it",
    "x.WDP": "image format that is not read",
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_in_another_format_is_a_bad_image_with_its_name(tmp_path: Path, name: str) -> None:
    root = write(write(tmp_path, "a/1.jpg"), f"a/{name}", content=TIFF if "raw" in PICTURES[name] else bytes(20))
    assert refused(root)[f"a/{name}"].startswith(PICTURES[name])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>404 Not Found", "content is a web page; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "content is a Git LFS pointer; `git lfs pull`"),
        (b"PK\x03\x04" + bytes(30), "content is an archive; unpack it"),
        (b"no photo", "not an image in a supported format"),
    ],
)
def test_a_file_with_an_images_suffix_is_named_by_its_content(content: bytes, reason: str) -> None:
    with pytest.raises(images.UnusableImage, match=reason):
        images.load(content, Preprocessing(8, 8, 3))


@pytest.mark.skipif("HEIF" in images.FORMATS, reason="the extra heif is installed")
def test_a_heic_photo_is_named_whatever_its_suffix(tmp_path: Path) -> None:
    root = write(write(tmp_path, "a/1.jpg", "a/a jpeg.HEIC"), "a/x.HEIC", "a/y.jpg", content=HEIC)
    assert "a/a jpeg.HEIC" in used(root)
    assert refused(root)["a/x.HEIC"].startswith("HEIC photo: export it as JPEG, or `pip install -e '.[heif]'")
    with pytest.raises(images.UnusableImage, match="content is a HEIC photo; export it as JPEG, or"):
        images.load(HEIC, Preprocessing(8, 8, 3))


@pytest.mark.skipif("HEIF" not in images.FORMATS, reason="the extra heif is not installed")
def test_heic_photos_are_read_with_the_extra_and_bounded(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 48), (200, 40, 40))
    write(tmp_path, "a/x.heic", "a/no suffix", content=encoded(picture, "HEIF"))
    assert set(used(tmp_path)) == {"a/x.heic", "a/no suffix"}
    pixels = images.load(tmp_path / "a/x.heic", Preprocessing(8, 8, 3))
    assert np.abs(pixels.astype(int) - (200, 40, 40)).max() < 8
    with pytest.raises(images.UnusableImage, match=r"broken image|header is damaged"):
        images.load(encoded(picture, "HEIF")[:-200], Preprocessing(8, 8, 3))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(images.UnusableImage, match="too large: 64×48"):
        patch.setattr(images, "MAX_PIXELS", 1000)
        images.load(tmp_path / "a/x.heic", Preprocessing(8, 8, 3))


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    root = write(tmp_path, "a/1.npy", "a/2.npy", "b.zip", "notes.txt", content=b"text")
    with pytest.raises(InputError, match=r"holds no images, only 2 NumPy arrays, 1 archive, 1 \.txt file; .*unpack it"):
        folder.read(root)


def test_only_images_count_as_bad_ones() -> None:
    manifest = manifest_of({split: pictures(6, seed) for seed, split in enumerate(("train", "valid", "test"))})
    row = manifest.iloc[0].to_dict() | dict.fromkeys(("split", "index", "label", "mean", "std", "sha256"))
    for number in range(60):
        reason = "truncated" if number == 0 else "companion: .txt file"
        manifest.loc[len(manifest)] = row | {"path": f"{number}", "status": "quarantined", "reason": reason}
    arrays = {split: pictures(6, seed) for seed, split in enumerate(("train", "valid", "test"))}

    def bad(limit: float) -> list[tuple[str, str]]:
        settings = Data.model_validate(
            {"source": "folder", "path": "x", "image_size": 24, "channels": 1, "max_bad_fraction": limit}
        )
        found = inspect(manifest, dict(arrays), settings).findings
        return [(finding.rule, finding.file) for finding in found if "bad_file" in finding.rule]

    assert bad(1 / 19) == [("bad_file", "0")] and bad(0.05) == [("too_many_bad_files", "0")]


def test_ingest_and_validate_with_a_caption_beside_each_photo(tmp_path: Path) -> None:
    """30 photos in Training and Testing, a caption for each, labels.csv, an archive: the two stages as they run."""
    (tmp_path / "params.yaml").write_text("data: {source: folder, path: photos, image_size: 16}\n")
    root = tmp_path / "photos"
    for seed in range(30):
        name = f"{'Training' if seed < 24 else 'Testing'}/{'ab'[seed % 2]}/{seed}"
        write(root, f"{name}.txt", content=b"a photo\n")
        (root / f"{name}.png").write_bytes(photo(seed, (24, 24)))
    write(root, "labels.csv", "all.zip", content=b"0")
    for stage in ("ingest", "validate"):
        done = subprocess.run(
            [sys.executable, "-m", f"tasks.{stage}"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if stage == "ingest":
            assert "folders: Training → train (24 images, 2 classes), Testing → test (6 images, 2 cl" in done.stdout
            assert "skipped: 30 .txt files, 1 archive, 1 .csv file\n" in done.stdout
            assert "warning: skipped 1 archive, such as 'all.zip': unpack it\n" in done.stdout
            assert "0 of 30 quarantined" in done.stdout
        else:
            assert "bad_file" not in done.stdout
    manifest = pd.read_parquet(tmp_path / workspace.MANIFEST)
    assert manifest.reason.value_counts()["companion: .txt file"] == 30
    assert np.isnan(manifest[manifest.reason.notna()]["mean"]).all()


def test_encode_skips_companions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    Path("params.yaml").write_text("seed: 0\n")
    write_model()
    root = write(write(tmp_path / "photos", "a/1.png", "b/2.png"), "a/1.txt", "b/list.csv", content=b"text")
    done = vae("encode", root, "out.parquet")
    assert done.exit_code == 0 and "skipped" not in done.stderr
    assert list(pd.read_parquet("out.parquet")["path"]) == ["a/1.png", "b/2.png"]
    for file in root.rglob("*.png"):
        file.unlink()
    none = vae("encode", root, "out.parquet")
    assert none.exit_code == INPUT_ERROR and "holds no images, only 1 .txt file, 1 .csv file" in none.stderr
