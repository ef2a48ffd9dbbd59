"""A VAE needs no classes, so what is odd about them stops nothing; and one image of two classes is called that.

Tried, with what happened before:

- MVTec's layout, `train/good` with `test/broken` and `test/good`: the error unknown_label, "add images there or remove
  the class" (the very use of anomaly scoring).
- 30 classes of one image each, which ingest itself had cut so that training lacked some: the same error.
- LFW's kind, most classes with one image: thousands of warnings.
- a valid/ or test/ folder with a class more, in a data set with several: the same error; the probe counted images of
  the class, which it could not predict, as wrong.
- the same file in `a/` and `b/`: "duplicate_in_split: it counts twice". Saved again, with the same pixels: the same.
- `Cats` beside `cats` or `cats `: two classes, without a word.
- right before: files without a class among others that have one, one class, no classes, unbalanced classes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import pictures
from helpers.ingests import encoded
from helpers.validations import validated, write
from PIL import Image

from tasks import workspace
from tasks.cli import doctor
from tasks.evaluate import left_out
from vae.config.sections import Data, Promote
from vae.evaluation.probe import ClassRead, Probe, classes_read
from vae.validation.rules import catalogue, probe_decides


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photos(folders: dict[str, int], kind: str = "PNG") -> dict[str, bytes]:
    """So many different photos in each folder."""
    drawn = iter(pictures(sum(folders.values()), 7, 16, 16)[..., 0])
    return {
        f"{folder}/{i:02}.png": encoded(Image.fromarray(next(drawn)), kind)
        for folder, count in folders.items()
        for i in range(count)
    }


MVTEC = {"train/good": 12, "valid/good": 4, "test/good": 4, "test/broken": 3}
NEW_CLASS = {"train/a": 8, "train/b": 8, "valid/a": 4, "valid/b": 4, "test/a": 4, "test/b": 4, "test/scratched": 3}


def values(rule: dict[str, Any]) -> list[str]:
    return [example["value"] for example in rule["examples"]]


def passed() -> bool:
    return json.loads(workspace.VALIDATION.read_text())["passed"]


@pytest.mark.parametrize(("folders", "label"), [(MVTEC, "broken"), (NEW_CLASS, "scratched")])
def test_a_class_that_training_lacks_is_a_warning(here: Path, folders: dict[str, int], label: str) -> None:
    broken = validated(write(here / "photos", photos(folders)))
    assert passed() and broken["unknown_label"]["severity"] == "warning"
    assert values(broken["unknown_label"]) == [f"{label}: 3 images here, 0 in training"]
    assert f"unknown_label (1): test: {label}" in str(list(doctor.validation()))


def test_it_is_an_error_where_the_probe_decides_about_the_champion(here: Path) -> None:
    path = write(here / "photos", photos(NEW_CLASS))
    broken = validated(path, promote="enabled")
    assert not passed() and broken["unknown_label"]["severity"] == "error"
    assert "promote.mode" in broken["unknown_label"]["what_to_do"]
    # Where all training images are of one class, there is no probe.
    assert "unknown_label" in validated(write(here / "mvtec", photos(MVTEC)), promote="enabled") and passed()


@pytest.mark.parametrize("mode", ["disabled", "dry_run", "enabled"])
def test_one_place_decides(mode: Any) -> None:
    assert probe_decides(Promote(mode=mode), training_classes=2) == (mode == "enabled")
    assert not probe_decides(Promote(mode=mode), training_classes=1)
    severities = {rule.name: rule.severity for rule in catalogue(Data(), mode == "enabled")}
    assert len({severities["unknown_label"], severities["label_conflict"]}) == 1


def test_classes_of_one_image_that_ingest_cut_itself(here: Path) -> None:
    broken = validated(write(here / "photos", photos({f"person{i:02}": 1 for i in range(30)})))
    assert passed()
    assert "(1 in all, too few for every split to have one)" in values(broken["unknown_label"])[0]
    assert broken["missing_label"]["count"] == 2  # one a split
    assert values(broken["missing_label"])[0].startswith("24 classes, such as person")


# One image, two classes


@pytest.mark.parametrize("again", [{}, {"compress_level": 1}])
def test_one_image_of_two_classes_is_a_conflict(here: Path, again: dict[str, int]) -> None:
    """The same bytes, or the same pixels in another file."""
    made = photos({"a": 15, "b": 15})
    image = Image.fromarray(pictures(1, 99, 16, 16)[0, ..., 0])
    made |= {"a/x.png": encoded(image), "b/y.png": encoded(image, **again)}
    broken = validated(write(here / "photos", made))
    assert passed() and "duplicate_in_split" not in broken
    assert broken["label_conflict"]["severity"] == "warning"
    (found,) = broken["label_conflict"]["examples"]
    what = "pixels" if again else "bytes"
    assert (found["file"], found["value"]) in (
        ("b/y.png", f"class b, but same {what} as a/x.png of class a"),
        ("a/x.png", f"class a, but same {what} as b/y.png of class b"),
    )


def test_a_conflict_across_splits_is_a_leak_too(here: Path) -> None:
    made = photos({"train/a": 9, "train/b": 9, "valid/a": 3, "valid/b": 3, "test/a": 3, "test/b": 3})
    made["test/b/copy.png"] = made["train/a/00.png"]
    broken = validated(write(here / "photos", made))
    assert not passed() and values(broken["leakage"]) == ["same bytes as train: train/a/00.png"]
    assert values(broken["label_conflict"]) == ["class b, but same bytes as train/a/00.png of class a"]


def test_a_third_copy_of_one_class_is_a_copy_still(here: Path) -> None:
    made = photos({"train/a": 9, "train/b": 9, "valid/a": 3, "valid/b": 3, "test/a": 3, "test/b": 3})
    made |= dict.fromkeys(("train/a/copy.png", "train/b/copy.png"), made["train/a/00.png"])
    broken = validated(write(here / "photos", made))
    assert [example["file"] for example in broken["duplicate_in_split"]["examples"]] == ["train/a/copy.png"]
    assert [example["file"] for example in broken["label_conflict"]["examples"]] == ["train/b/copy.png"]
    assert validated(str(here / "photos"), promote="enabled")["label_conflict"]["severity"] == "error"


@pytest.mark.parametrize("other", ["Cats", "cats ", "ｃａｔｓ"])
def test_classes_that_differ_by_case_or_blanks_are_noticed(here: Path, other: str) -> None:
    broken = validated(write(here / "photos", photos({"cats": 6, other: 5, "dogs": 6})))
    (value,) = values(broken["similar_labels"])
    assert "'cats': 6 images" in value and f"{other!r}: 5 images" in value and "dogs" not in value


# The probe


def test_the_probe_leaves_out_what_it_cannot_predict() -> None:
    random = np.random.default_rng(0)
    trained = np.array(["a", "b"] * 30, dtype=object)
    mu = random.normal(size=(60, 2)).astype(np.float32)
    mu[::2, 0] += 20
    probe = Probe.fit(mu, trained, 0)
    labels = trained.copy()
    labels[40:] = "new"
    assert probe and probe.score(mu, labels) == (1.0, 0.5)
    assert probe.score(mu, np.full(60, "new", dtype=object)) is None
    rows = {row.name: row for row in classes_read(labels, probe.guess(mu), trained)}
    assert rows["new"].unseen and rows["new"].right == 0 and not rows["a"].unseen


def test_the_log_says_which_classes_the_probe_left_out() -> None:
    read = [ClassRead("a", 4, 4, None, 0), *(ClassRead(f"new{i}", 2, 0, "a", 2, unseen=True) for i in range(7))]
    assert left_out(read) == (
        "linear probe: leaves out 14 test images, since the training split has none of their classes "
        "(new0, new1, new2, new3, new4, and 2 more)"
    )
    assert left_out(read[:1]) is None
