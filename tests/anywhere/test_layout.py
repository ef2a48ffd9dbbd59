"""What a folder of images is taken for: splits, classes, levels to pass through, links.

Tried, and right already: train, valid, val, validation and test in any case; class folders; flat folders; folders
within class folders; a class called train; `.git`, `__MACOSX`, `.ipynb_checkpoints`; data.path itself a link.
Failed before:

- Training + Testing (brain tumours), seg_train + seg_test + seg_pred (Intel scenes), training_set + test_set,
  train2017 + val2017, asl_alphabet_train + …_test: "2 classes", so test images were trained on and classes were lost;
- an archive's extra level x/chest_xray/train/…, x/data/cats: "1 class … nothing if intended";
- the tree twice (chest_xray/chest_xray/train beside chest_xray/train): half of the files "bad";
- test beside cat and dog, trainA + trainB + testA + testB: classes, without a word;
- test1 + test2, train1 + train2 + test1: refused as splits; cat/jan + cat/feb: the class cat lost, without a word;
- 10,000 classes took minutes; links into a DVC cache: all bad images;
- cats a link to a folder beside a folder dogs: the class dropped as one bad file.
"""

import os
import shutil
from pathlib import Path

import pytest
from helpers.ingests import photo
from helpers.workspaces import stand_in

from tasks.cli import doctor
from vae.config.errors import InputError
from vae.data.folders import folder, layout


def tree(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photo(seed, (8, 8)))
    return root


def places(root: Path) -> set[tuple[str | None, str | None]]:
    """Split and class of the images that are used."""
    return {(item.split, item.label) for item in folder.read(root).items if isinstance(item.load, folder.File)}


SPLITS = {
    "brain tumours": ("Training/glioma/1", "Training/none/2", "Testing/glioma/3"),
    "Intel scenes": ("seg_train/seg_train/glioma/1", "seg_train/seg_train/none/2", "seg_test/seg_test/glioma/3"),
    "a course": ("training_set/glioma/1", "training_set/none/2", "test_set/glioma/3"),
    "COCO": ("train2017/glioma/1", "train2017/none/2", "test2017/glioma/3"),
    "sign language": ("asl_alphabet_train/glioma/1", "asl_alphabet_train/none/2", "asl_alphabet_test/glioma/3"),
    "words at capitals": ("TrainImages/glioma/1", "TrainImages/none/2", "TestImages/glioma/3"),
    "food": ("training/glioma/1", "training/none/2", "evaluation/glioma/3"),
    "an archive's levels": ("x/chest/train/glioma/1", "x/chest/train/none/2", "x/chest/test/glioma/3", "__MACOSX/._x"),
    "splits below images": ("images/train/glioma/1", "images/train/none/2", "images/test/glioma/3"),
}


@pytest.mark.parametrize("names", SPLITS.values(), ids=SPLITS)
def test_splits_are_known_by_their_words(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = tree(tmp_path, *names)
    assert places(root) == {("train", "glioma"), ("train", "none"), ("test", "glioma")}
    found = folder.read(root)
    assert "→ train (2 images, 2 classes)" in found.lines[0] and "→ test (1 image, 1 class)" in found.lines[0]
    assert found.lines[1] == "classes: glioma (2), none (1)" and found.warnings == []


CLASSES = {
    "no splits": ("cat/1", "dog/2"),
    "tubes and stations": ("test_tube/1", "train_station/2"),
    "face masks": ("with_mask/1", "without_mask/1"),
    "a cell's state": ("infected/1", "uninfected/2"),
}


@pytest.mark.parametrize("names", CLASSES.values(), ids=CLASSES)
def test_classes_are_taken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = tree(tmp_path, *names)
    assert places(root) == {(None, name.split("/")[0]) for name in names} and folder.read(root).warnings == []


AMBIGUOUS = {
    "a class test": (("cat/1", "dog/2", "test/3"), "'test' is taken for a class, since none named train"),
    "a class train": (("plane/1", "train/2"), "'train' is taken for a class, since none named valid or test"),
    "two domains": (("trainA/1", "trainB/2", "testA/3", "testB/4"), "testA, testB, trainA, … and 1 more are taken"),
    "a split in each name": (("cat_train/1", "cat_test/2", "dog_train/3", "dog_test/4"), "are taken for classes"),
    "one pair among others": (("bird_train/1", "bird_test/2", "cat/3"), "bird_train are taken for classes"),
    "numbered tests": (("test1/1", "test2/2", "test3/3"), "test1, test2, test3 are taken for classes"),
    "numbered vals": (("val1/1", "val2/2"), "val1, val2 are taken for classes"),
    "numbered splits": (("train1/1", "train2/2", "test1/3"), "test1, train1, train2 are taken for classes"),
    "years": (("train/1", "train2/2", "test/3"), "test, train, train2 are taken for classes"),
    "a sample, with and without a mask": (("sample/1", "mask/2", "no_mask/3"), "'sample' is taken for a class"),
    "faces with and without masks": (("with_mask/1", "without_mask/1", "images/1"), "'images' is taken for a class"),
    "parts of a page": (("picture/1", "caption/1", "table/1"), "'picture' is taken for a class"),
    "things to sort": (("photo/1", "label/1", "stamp/1"), "'photo' is taken for a class"),
    "a generic name and a label": (("file/1", "label/2"), "'file' is taken for a class"),
    "masks": (("cat/1", "dog/2", "masks/3"), "'masks' is taken for a class; if it annotates the images"),
    "something beside the data": (("data/cat/1", "docs/2"), "'data' is taken for a class; if it holds the classes"),
    "a level above the classes": (
        ("color/apple/1", "color/pear/2", "grey/apple/3", "grey/pear/4"),
        "color, grey are taken for classes, and all hold folders named apple, pear",
    ),
}


@pytest.mark.parametrize(("names", "warning"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_is_ambiguous_is_warned_of_once(tmp_path: Path, names: tuple[str, ...], warning: str) -> None:
    root = tree(tmp_path, *names)
    (told,) = folder.read(root).warnings
    assert warning in told and places(root) == {(None, name.split("/")[0]) for name in names}


def test_a_folder_beside_the_splits_is_skipped_with_a_warning(tmp_path: Path) -> None:
    root = tree(tmp_path, "seg_train/sea/1", "seg_test/sea/2", "seg_pred/3", "seg_pred/4")
    found = folder.read(root)
    assert places(root) == {("train", "sea"), ("test", "sea")}
    assert "skipped: 2 images in seg_pred" in found.lines
    assert found.warnings == [
        "the folder 'seg_pred' (images: 2) is skipped, since it lies beside the split folders seg_test, "
        "seg_train; if it belongs to a split, move it there"
    ]


def test_a_split_folder_without_images_is_warned_of(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/a/1", "test/a/2")
    (root / "valid").mkdir()
    (root / "valid" / "list.txt").write_text("1.png\n")
    assert folder.read(root).warnings == ["the folder 'valid' holds no images, so it is not taken for the valid split"]


@pytest.mark.parametrize("names", [("test/a/1",), ("Testing/a/1", "dev/a/2"), ("holdout/1",)])
def test_splits_without_training_images_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"no folder named train; add one, or give one of them as the path"):
        folder.read(tree(tmp_path, *names))


def test_a_single_folder_is_entered_where_it_holds_folders_or_says_only_images(tmp_path: Path) -> None:
    nested = tree(tmp_path / "nested", "download/data/cat/1", "download/data/dog/2")
    (nested / "README.md").write_text("about")
    assert places(nested) == {(None, "cat"), (None, "dog")}
    assert folder.read(nested).lines[0] == "folders: entered download/data, no split folders, 2 classes"
    plain = tree(tmp_path / "plain", "my_images/JPEGImages/1", "my_images/JPEGImages/2")
    assert places(plain) == {(None, None)}
    one = tree(tmp_path / "one", "cat/1", "cat/2")
    assert places(one) == {(None, "cat")}
    assert folder.read(one).lines[1] == "classes: cat (2) only; another class would be a folder beside it"
    beside = tree(tmp_path / "beside", "cover", "data/cat/1")
    assert places(beside) == {(None, "data")}, "with an image beside it, it is a class"


def test_a_tree_that_an_archive_holds_twice_is_read_once(tmp_path: Path) -> None:
    root = tree(tmp_path / "chest", "train/a/1", "train/b/2", "test/a/3")
    shutil.copytree(root, tmp_path / "again")
    (tmp_path / "again").rename(root / "chest")
    assert len([item for item in folder.read(tmp_path).items if isinstance(item.load, folder.File)]) == 3
    assert "skipped: 3 images in chest/chest" in folder.read(tmp_path).lines
    tree(root / "chest/train/a", "more")  # now it holds something of its own
    assert folder.read(tmp_path).warnings != []


def test_a_single_class_with_folders_in_it_is_warned_of(tmp_path: Path) -> None:
    root = tree(tmp_path, "photos/cat/jan/1", "photos/cat/feb/2")
    assert places(root) == {(None, "jan"), (None, "feb")}
    assert folder.read(root).warnings == [
        "the folders in 'photos/cat' are taken for classes: feb, jan; if 'cat' is the class, put another class beside "
        "it, or its images directly into it"
    ]
    tree(root, "photos/dog/1")
    assert places(root) == {(None, "cat"), (None, "dog")} and folder.read(root).warnings == []
    shutil.rmtree(root / "photos/dog")
    tree(root, "photos/cat/1")
    assert places(root) == {(None, "cat")}


def test_the_work_is_in_proportion_to_the_number_of_classes(tmp_path: Path) -> None:
    class Counted(str):
        compared = 0
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return str.__eq__(self, other)

    claims = [(Counted(f"class {i}"), name) for i in range(1000) for name in ("1.jpg", "2.jpg")]
    found = layout.interpret(layout.Tree(tmp_path, claims), "photos")
    assert len(found.classes(())) == 1000 and Counted.compared < 50_000  # of a million pairs


def test_links_into_a_content_addressed_store_are_followed(tmp_path: Path) -> None:
    """As DVC makes them with cache.type = symlink."""
    root = tree(tmp_path / "photos", "cat/1", "dog/2")
    store = tmp_path / "cache/files/md5"
    for file, name in ((root / "cat/1", "ab/" + 30 * "c"), (root / "dog/2", "0f/" + 30 * "9")):
        (store / name).parent.mkdir(parents=True)
        file.rename(store / name)
        file.symlink_to(store / name)
    assert places(root) == {(None, "cat"), (None, "dog")}
    os.mkfifo(store / "ab" / (30 * "d"))
    for target in (store / "ab" / (30 * "d"), tree(store, "ab/" + 29 * "c") / ("ab/" + 29 * "c")):
        (root / "cat/1").unlink()
        (root / "cat/1").symlink_to(target)
        assert places(root) == {(None, "dog")}


def test_links_of_one_length_are_no_tree_that_is_held_twice(tmp_path: Path) -> None:
    store = tree(tmp_path / "store", "files/md5/ab/" + 30 * "0")
    (store / "files/md5/ab" / (30 * "1")).write_bytes(b"another photo")
    for name, digit in (("x/a/1.png", "0"), ("a/1.png", "1"), ("b/1.png", "1")):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True)
        file.symlink_to(store / "files/md5/ab" / (30 * digit))
    assert places(tmp_path / "photos") == {(None, "x"), (None, "a"), (None, "b")}


def test_many_classes_are_counted_and_odd_names_are_shown_safely(tmp_path: Path) -> None:
    root = tree(tmp_path, *(f"class {i:02}/1" for i in range(30)), "\x1b[31mred\n/1")
    lines = folder.read(root).lines
    assert lines[1].endswith(r"class 03 (1), … and 26 more") and lines[1].startswith(r"classes: \x1b[31mred\n (1)")


def test_a_linked_class_is_an_error_and_not_a_bad_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", "dogs/1")
    tree(tmp_path / "disk/cats", "1.jpg", "2.jpg", "3.jpg")
    (root / "cats").symlink_to(tmp_path / "disk/cats")
    with pytest.raises(InputError, match=r"'cats' in .*photos' is a link to the folder .*disk/cats'.* 3 images"):
        folder.read(root)
    (root / "cats").unlink()
    (root / "cats").symlink_to(tmp_path / "disk/none")
    (tmp_path / "disk/none").mkdir()
    assert places(root) == {(None, "dogs")}, "nothing is lost by a link to a folder without images"


def test_a_link_within_the_folder_says_where_its_images_are_read(tmp_path: Path) -> None:
    root = tree(tmp_path, "2024/1", "2025/2")
    (root / "latest").symlink_to("2025")
    (root / "2024" / "loop").symlink_to("..")
    assert places(root) == {(None, "2024"), (None, "2025")}
    assert folder.read(root).warnings == [
        "the link '2024/loop' is not followed; the images in '.' are read there",
        "the link 'latest' is not followed; the images in '2025' are read there",
    ]
    tree(root, ".store/cats/1.jpg")
    (root / "cats").symlink_to(".store/cats")
    with pytest.raises(InputError, match=r"'cats' in .* is a link to the folder"):
        folder.read(root)


def test_the_doctor_says_what_the_folders_are_taken_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    root = tree(tmp_path / "photos", "Training/a/1", "Testing/a/2", "extra/3")
    Path("params.yaml").write_text("data: {source: folder, path: photos}\n")

    def said() -> list[tuple[str, str]]:
        return list(doctor.folders())

    states = said()
    assert [state for state, _ in states] == ["ok", "ok", "ok", "note"] and "Training → train" in states[0][1]
    (root / "b").symlink_to(tree(tmp_path / "elsewhere", "1"))
    assert said()[0][0] == "problem" and "'b' in " in said()[0][1]
    monkeypatch.setattr(doctor, "MOST_FILES", 2)
    assert said()[0][0] == "note" and "more than 2 files" in said()[0][1]
    Path("params.yaml").write_text("data: {source: digits}\n")
    assert said() == []
