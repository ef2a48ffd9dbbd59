import gzip
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae.config.constants import LITTER
from vae.config.errors import InputError
from vae.config.sections import Data
from vae.data.images import UnusableImage
from vae.data.item import Item
from vae.data.sources import find


def data(source: str, path: Path) -> Data:
    return Data.model_validate({"source": source, "path": str(path)})


def tree(root: Path, *names: str) -> Path:
    """Files that claim to be images, without being any."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(name))
    return root


def content(name: str) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + name.encode("utf-8", "surrogateescape")


def places(items: list[Item]) -> dict[str, tuple[str | None, str | None]]:
    return {item.path: (item.split, item.label) for item in items}


def refusal(item: Item) -> str:
    with pytest.raises(UnusableImage) as refused:
        item.load()
    return str(refused.value)


def test_digits_are_the_bundled_scans() -> None:
    items = find(Data())
    first = items[0].load()
    assert len(items) == 1797 and first.dtype == np.uint8 and first.shape == (8, 8)
    assert first[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # scikit-learn has 0 0 5 13 9 1 0 0, of 16
    assert [item.label for item in items[:4]] == ["0", "1", "2", "3"]
    assert [item.path for item in items] == sorted(item.path for item in items)


# File → its split and label, for each layout of a folder.
LAYOUTS: dict[str, dict[str, tuple[str | None, str | None]]] = {
    "class folders": {"a/1.jpg": (None, "a"), "a/deep/er/3": (None, "a"), "b/2.png": (None, "b")},
    "no labels in a split": {"test/2": ("test", None), "train/a/1": ("train", "a")},
    "flat": {".git/config": (None, None), "1.png": (None, None), "2.png": (None, None)},
    "a class called train": {"plane/2": (None, "plane"), "train/1": (None, "train")},
} | {
    f"split folders, {valid}": {
        "TEST/b/4": ("test", "b"), "Train/a/1": ("train", "a"), f"{valid}/a/3": ("valid", "a")
    }
    for valid in ("valid", "val", "validation", "Val")
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path: Path, layout: dict[str, tuple[str | None, str | None]]) -> None:
    (tmp_path / "empty").mkdir()
    items = find(data("folder", tree(tmp_path, *reversed(layout))))
    assert places(items) == layout and [item.path for item in items] == sorted(layout)
    assert all(item.load() == content(item.path) for item in items if not item.path.startswith("."))


def test_files_that_do_not_fit_the_layout_are_kept_with_a_reason(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a/1", "train/2", "test/a/3", "notes/4", "readme")
    reasons = {item.path: refusal(item).split(":")[0] for item in find(data("folder", root)) if not item.label}
    splits = "outside the split folders (test, train)"
    assert reasons == {"train/2": "outside the class folders", "notes/4": "companion", "readme": splits}
    classes = find(data("folder", tree(tmp_path / "other", "a/1", "2")))
    assert "outside the class folders" in refusal(classes[0]) and classes[1].load() == content("a/1")


def test_litter_is_named_as_such(tmp_path: Path) -> None:
    names = ("Thumbs.db", "a/.DS_Store", "a/desktop.ini", "__MACOSX/a/1.png", "a/._1.png", ".git/config")
    items = find(data("folder", tree(tmp_path, "a/1.png", *names)))
    litter = [item for item in items if item.path != "a/1.png"]
    assert len(litter) == len(names)
    assert all(refusal(item).startswith(LITTER) and item.label is None for item in litter)


def test_links(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", "a/1")
    tree(tmp_path, "outside/secret.png", "documents/secret.doc")
    targets = {
        "../../outside/secret.png": "a link that leads out of the folder",
        "../../documents": "companion: folder link",
        ".": "companion: folder link",
        "6": "a broken link",  # itself
        "nothing": "a broken link",
    }
    for name, target in enumerate(["1", *targets], start=2):
        (root / "a" / str(name)).symlink_to(target)
    first, inside, *others = find(data("folder", root))
    assert first.load() == inside.load() == content("a/1")
    assert [
        refusal(item).removesuffix(": not followed").removesuffix(": copy the file instead") for item in others
    ] == [*targets.values()]


def test_the_source_itself_may_be_a_link(tmp_path: Path) -> None:
    tree(tmp_path / "real", "a/1")
    (tmp_path / "link").symlink_to("real")
    assert [item.load() for item in find(data("folder", tmp_path / "link"))] == [content("a/1")]


def test_odd_names_survive(tmp_path: Path) -> None:
    names = ["two\nlines", "quo\"te's", "<script>", "Äpfel", "sp ace", "[bold]"]
    names += ["n" * 255, "a..b.png", "=cmd|' !A0.png", "$(touch it_ran).png", "{{7*7}}.png"]
    root = tree(tmp_path, *(f"{name}/{name}" for name in names), os.fsdecode(b"caf\xe9/\xff.png"))
    items = find(data("folder", root))
    assert {item.label for item in items} == {*names, r"caf\xe9"}
    assert {item.path for item in items} == {*(f"{name}/{name}" for name in names), r"caf\xe9/\xff.png"}
    for item in items:
        item.path.encode()  # can be stored
        assert item.load()


@pytest.mark.parametrize(
    ("source", "path", "complaint"),
    [
        *[(source, "gone", r"gone' does not exist") for source in ("folder", "idx", "npy")],
        *[(source, "readme", r"is a file.*needs a folder") for source in ("folder", "idx")],
        *[(source, "empty", "holds no") for source in ("folder", "idx", "npy")],
        ("folder", "no train", "no folder named train"),
        ("folder", "two valid", "two folders for the same split"),
    ],
)
def test_a_path_that_the_source_cannot_read_is_named(tmp_path: Path, source: str, path: str, complaint: str) -> None:
    tree(tmp_path, "readme", "no train/test/a/1", "no train/val/a/2")
    tree(tmp_path, "two valid/train/a/1", "two valid/val/a/2", "two valid/valid/a/3")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=complaint):
        find(data(source, tmp_path / path))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree(tmp_path, "photos/a/1").resolve()))
    assert [item.path for item in find(data("folder", Path("~/photos")))] == ["a/1"]


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
LABELS = np.array([7, 0, 1, 1, 9], np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_idx(tmp_path: Path, packed: bool, separator: str) -> None:
    for prefix, part in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        for kind, array in (("images{}idx3", IMAGES[part]), ("labels{}idx1", LABELS[part])):
            name = f"{prefix}-{kind.format(separator)}-ubyte" + ".gz" * packed
            content = idx_bytes(array)
            (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    items = find(data("idx", tmp_path))
    assert [(item.split, item.label) for item in items] == [
        *[("test", "1"), ("test", "9")],
        *[("train", "7"), ("train", "0"), ("train", "1")],
    ]
    assert np.array_equal([item.load() for item in items], IMAGES[[3, 4, 0, 1, 2]])
    assert [item.path for item in items] == sorted(item.path for item in items)


def test_idx_without_labels_and_both_plain_and_packed(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"never opened")
    assert [item.label for item in find(data("idx", tmp_path))] == [None] * 5


@pytest.mark.parametrize(
    ("ending", "content", "complaint"),
    [
        (".gz", gzip.compress(idx_bytes(IMAGES))[:-12], "broken gzip"),
        (".gz", b"no gzip at all", "broken gzip"),
        (".gz", gzip.compress(idx_bytes(IMAGES))[:-8] + b"\0" * 8, "broken gzip"),
        ("", idx_bytes(IMAGES)[:-1], "holds 75 bytes .* promises 76"),
        ("", idx_bytes(IMAGES) + b"!", "holds 77 bytes .* promises 76"),
        ("", idx_bytes(LABELS), "begins with 00 00 08 01"),
        ("", b"", "begins with nothing"),
        ("", idx_bytes(IMAGES)[:9], "holds 9 bytes"),
        ("", idx_bytes(IMAGES[:0]), "holds no images"),
        ("", idx_bytes(IMAGES), "5 images and 4 labels"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path: Path, ending: str, content: bytes, complaint: str) -> None:
    name = f"train-images-idx3-ubyte{ending}"
    (tmp_path / name).write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[:4]))
    with pytest.raises(InputError, match=complaint) as error:
        find(data("idx", tmp_path))
    assert name in str(error.value)


def test_npy_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", IMAGES[:3])
    np.save(tmp_path / "val.npy", IMAGES[3:])
    np.save(tmp_path / "train_labels.npy", np.array(["x", "y", "x"]))
    np.save(tmp_path / "val_labels.npy", np.array([2, 3]))
    np.save(tmp_path / "unrelated.npy", IMAGES)
    items = find(data("npy", tmp_path))
    assert [(item.split, item.label) for item in items] == [
        *[("train", "x"), ("train", "y"), ("train", "x")],
        *[("valid", "2"), ("valid", "3")],
    ]
    assert np.array_equal([item.load() for item in items], IMAGES)


def test_npy_single_file_of_floats(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", (IMAGES / 255).astype(np.float32))
    items = find(data("npy", tmp_path / "x.npy"))
    assert np.array_equal([item.load() for item in items], IMAGES) and items[0].split is None
    np.save(tmp_path / "x.npy", np.array([[[0.0, 1.5]], [[-0.1, 1.0]], [[np.nan, 0.0]], [[0.0, 1.0]]]))
    *bad, good = find(data("npy", tmp_path / "x.npy"))
    assert all("floats must be in [0, 1]" in refusal(item) for item in bad)
    assert good.load().tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((5, 3, 8, 8), np.uint8), "move the channels last"),
        (np.zeros((5, 8), np.uint8), r"shape \(5, 8\)"),
        (np.zeros((5, 8, 8), np.uint16), "uint16"),
        (np.zeros((0, 8, 8), np.uint8), r"shape \(0, 8, 8\)"),
        (np.array([{"an": "object"}]), "not a usable .npy"),
    ],
)
def test_npy_of_another_kind_is_refused(tmp_path: Path, array: np.ndarray, complaint: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=complaint):
        find(data("npy", tmp_path / "x.npy"))


def test_a_truncated_npy_and_wrong_labels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "x_labels.npy", LABELS[:4])
    with pytest.raises(InputError, match=r"x_labels\.npy.*5 integers or strings"):
        find(data("npy", tmp_path / "x.npy"))
    content = (tmp_path / "x.npy").read_bytes()
    for size in (0, 5, 60, len(content) - 1):
        (tmp_path / "x.npy").write_bytes(content[:size])
        with pytest.raises(InputError, match=r"x\.npy"):
            find(data("npy", tmp_path / "x.npy"))


def test_huggingface_local_dataset(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    photos = [Image.fromarray(image) for image in IMAGES]
    part = {"picture": photos, "kind": [0, 1, 1, 0, -1]}
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_dict(part, features)
    datasets.DatasetDict(train=dataset, validation=dataset).save_to_disk(tmp_path)
    items = find(data("huggingface", tmp_path))
    assert [(item.split, item.label) for item in items[3:7]] == [
        *[("train", "cat"), ("train", None)],
        *[("valid", "cat"), ("valid", "dog")],
    ]
    assert all(item.load().startswith(b"\x89PNG") for item in items)
    assert capfd.readouterr() == ("", "")


def test_huggingface_folder_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot load it"):
        find(data("huggingface", tree(tmp_path, "a/1")))


def test_huggingface_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python does with a package that is not there
    with pytest.raises(InputError, match=r"pip install -e '\.\[huggingface\]'"):
        find(data("huggingface", tmp_path))
