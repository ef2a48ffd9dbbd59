"""Each rule has a data set that breaks it and no other."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.data_sets import manifest_of, pictures

from vae.config.sections import Data
from vae.validation.fingerprints import fingerprint
from vae.validation.inspection import Inspection, inspect
from vae.validation.rules import catalogue

SIZES = {"train": 20, "valid": 6, "test": 6}
SIDE = 24


def data(**changes: object) -> Data:
    return Data.model_validate({"source": "folder", "path": "photos", "image_size": SIDE} | changes)


@dataclass
class DataSet:
    """Sound until a case breaks it."""

    manifest: pd.DataFrame
    arrays: dict[str, np.ndarray | str]
    data: Data = field(default_factory=data)

    def inspect(self) -> Inspection:
        return inspect(self.manifest, self.arrays, self.data)

    def set(self, split: str, index: int, column: str, value: object) -> None:
        self.manifest.loc[self.row(split, index), column] = value

    def row(self, split: str, index: int) -> int:
        return self.manifest.index[(self.manifest["split"] == split) & (self.manifest["index"] == index)][0]

    def label(self, rows: str, value: str | None) -> None:
        self.manifest.loc[self.manifest.eval(rows), "label"] = value

    def paint(self, split: str, index: int, pixels: np.ndarray) -> None:
        """Other pixels, and the manifest knows."""
        self.arrays[split][index] = pixels
        print_ = fingerprint(self.arrays[split][index : index + 1])
        self.set(split, index, "mean", print_.mean[0])
        self.set(split, index, "std", print_.std[0])


Fault = Callable[[DataSet], Any]


@pytest.fixture
def sound() -> DataSet:
    arrays = {split: pictures(n, seed) for seed, (split, n) in enumerate(SIZES.items())}
    return DataSet(manifest_of(arrays), {**arrays})


def quarantine(ds: DataSet) -> None:
    """One bad file more, without a row in an array."""
    row = ds.manifest.iloc[0].to_dict() | dict.fromkeys(("split", "index", "label", "mean", "std"))
    row |= {"path": "broken.png", "status": "quarantined", "reason": "truncated", "sha256": "0" * 64}
    ds.manifest.loc[len(ds.manifest)] = row


def unusable(ds: DataSet, column: str, value: object) -> None:
    """A quarantined file, too few to be an error, with such a value."""
    quarantine(ds)
    ds.data = data(max_bad_fraction=0.5)
    ds.manifest.loc[ds.manifest.index[-1], column] = value


def same_bytes(ds: DataSet, split: str, index: int, of: int) -> None:
    """A file with the bytes of one for training."""
    ds.set(split, index, "sha256", ds.manifest.at[ds.row("train", of), "sha256"])


def blank(ds: DataSet, split: str, index: int, grey: int) -> None:
    ds.paint(split, index, np.full((SIDE, SIDE, 1), grey))


def swap_images(ds: DataSet) -> None:
    ds.arrays["test"][[0, 1]] = ds.arrays["test"][[1, 0]]


def one_grey_pixel(ds: DataSet) -> None:
    ds.data = data(binarise="static")
    for split, n in SIZES.items():
        for index in range(n):
            ds.paint(split, index, np.where(ds.arrays[split][index] > 127, 255, 0))
    image = ds.arrays["valid"][2].copy()
    image[0, 0] = 128
    ds.paint("valid", 2, image)


def narrow(ds: DataSet, split: str, index: int) -> None:
    ds.paint(split, index, ds.arrays[split][index] // 8)


def colourless(ds: DataSet) -> None:
    ds.data = data(channels=3)
    ds.arrays = {split: images.repeat(3, axis=3) for split, images in ds.arrays.items()}


def video(ds: DataSet) -> None:
    """Frames that correlate by 0.95 with the one before, every fifth in another split."""
    frames = pictures(200).astype(np.float64) - 127
    for before, now in itertools.pairwise(frames):
        now[:] = 0.95 * before + np.sqrt(1 - 0.95**2) * now
    frames = np.clip(127 + frames, 0, 255).astype(np.uint8)
    split = np.array([("test", "valid")[number % 2] if number % 5 == 0 else "train" for number in range(200)])
    ds.arrays = {name: frames[split == name] for name in SIZES}
    time = np.concatenate([np.flatnonzero(split == name) for name in SIZES])
    ds.manifest = manifest_of(ds.arrays).iloc[np.argsort(time)].reset_index(drop=True)


CASES: dict[str, Fault] = {
    "manifest_columns": lambda ds: ds.manifest.pop("mode"),
    "path_unique": lambda ds: ds.set("train", 3, "path", ds.manifest.at[0, "path"]),
    "known_split": lambda ds: unusable(ds, "split", "holdout"),
    "known_status": lambda ds: unusable(ds, "status", "lost"),
    "size_range": lambda ds: ds.set("valid", 1, "width", 0),
    "sha256_format": lambda ds: ds.set("valid", 1, "sha256", "F" * 64),
    "statistics_range": lambda ds: unusable(ds, "mean", 1.5),
    "complete_row": lambda ds: ds.set("train", 2, "mode", None),
    "index_is_a_row": lambda ds: ds.set("train", 2, "index", 3),
    "array_file": lambda ds: ds.arrays.update(test="does not exist"),
    "array_shape": lambda ds: ds.arrays.update(test=ds.arrays["test"].astype(np.float32)),
    "array_rows": lambda ds: ds.arrays.update(test=np.concatenate([ds.arrays["test"], pictures(1, 9)])),
    "array_statistics": swap_images,
    "binarised": one_grey_pixel,
    "mostly_blank": lambda ds: [blank(ds, "valid", index, 10 + index) for index in range(4)],
    "too_many_bad_files": quarantine,
    "leakage": lambda ds: same_bytes(ds, "test", 0, of=6),
    "unknown_label": lambda ds: ds.set("test", 3, "label", "c"),
    "label_conflict": lambda ds: same_bytes(ds, "train", 7, of=0),
    "bad_file": lambda ds: unusable(ds, "reason", "truncated"),
    "same_pixels_across_splits": lambda ds: ds.paint("test", 0, ds.arrays["train"][4]),
    "near_duplicate_across_splits": lambda ds: ds.paint("test", 0, (ds.arrays["train"][4] * 0.9 + 20).round()),
    "sequence_across_splits": video,
    "duplicate_in_split": lambda ds: same_bytes(ds, "train", 8, of=0),
    "blank_image": lambda ds: blank(ds, "train", 1, 255),
    "missing_label": lambda ds: ds.label("split == 'valid'", "a"),
    "similar_labels": lambda ds: ds.label("label == 'b' and (index % 4 == 1)", "A "),
    "unlabelled": lambda ds: ds.set("train", 1, "label", None),
    "few_classes": lambda ds: ds.label("status == 'ok'", None),
    "class_balance": lambda ds: ds.label("split == 'train' and index > 0", "b"),
    "narrow_range": lambda ds: [narrow(ds, split, index) for split, n in SIZES.items() for index in range(n)],
    "translucent": lambda ds: ds.set("train", 3, "note", "alpha: from 9 to 200 of 255, 90% of the pixels translucent"),
    "unused_bands": lambda ds: ds.set("train", 3, "note", "bands: 1 of 4 not used"),
    "several_pages": lambda ds: ds.set("train", 3, "note", "pages: the first of 12"),
    "colour_lost": lambda ds: ds.set("train", 3, "note", "colour: made grey"),
    "grey_in_colour": lambda ds: colourless(ds),
}
# What one fault cannot help but break besides.
FOLLOWS = {"mostly_blank": {"blank_image"}, "known_split": {"bad_file"}, "statistics_range": {"bad_file"}}


def broken(inspection: Inspection) -> set[str]:
    return {finding.rule for finding in inspection.findings}


def test_sound_data_break_no_rule(sound: DataSet) -> None:
    inspection = sound.inspect()
    assert inspection.findings == []
    assert set(inspection.skipped) == {"binarised"}


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == [rule.name for rule in catalogue(data())]


@pytest.mark.parametrize("rule", CASES)
def test_a_broken_rule_is_found_and_no_other(sound: DataSet, rule: str) -> None:
    CASES[rule](sound)
    assert broken(sound.inspect()) == {rule} | FOLLOWS.get(rule, set())


def test_all_faults_are_found_at_once(sound: DataSet) -> None:
    faults = {"size_range", "sha256_format", "leakage", "blank_image"}
    for fault in faults:
        CASES[fault](sound)
    assert broken(sound.inspect()) == faults


FINDINGS: list[tuple[Fault, list[tuple[str, str]]]] = [
    (CASES["leakage"], [("leakage", "same bytes as train: train/a/06.png")]),
    (lambda ds: ds.manifest.insert(0, "colour", "red"), [("manifest_columns", "column colour: unknown")]),
    (lambda ds: ds.set("train", 2, "index", -1), [("index_is_a_row", "index = -1")]),
    (lambda ds: ds.set("train", 2, "index", SIZES["train"]), [("index_is_a_row", "index = 20")]),
    (lambda ds: ds.set("train", 2, "index", None), [("complete_row", "no index")]),
    (
        lambda ds: unusable(ds, "index", 0),
        [("complete_row", "quarantined, but has an index"), ("bad_file", "truncated")],
    ),
    (
        lambda ds: ds.paint("train", 7, ds.arrays["train"][5]),
        [("duplicate_in_split", "same pixels as train/b/05.png")],
    ),
    (lambda ds: ds.label("status == 'ok'", "leaf"), [("few_classes", "one class: leaf")]),
]


@pytest.mark.parametrize(("fault", "found"), FINDINGS)
def test_a_finding_says_what_it_found(sound: DataSet, fault: Fault, found: list[tuple[str, str]]) -> None:
    fault(sound)
    assert [(f.rule, f.value) for f in sound.inspect().findings] == found


@pytest.mark.parametrize("columns", [{"width": "float64"}, {"label": "int"}, {"mean": "str"}])
def test_a_column_of_another_type_is_named(sound: DataSet, columns: dict[str, str]) -> None:
    (column,) = columns
    sound.manifest[column] = 1
    sound.manifest = sound.manifest.astype(columns)
    (finding,) = sound.inspect().findings
    assert finding.rule == "manifest_columns"
    assert f"column {column}" in finding.value


def test_a_broken_manifest_does_not_hide_broken_arrays(sound: DataSet) -> None:
    CASES["manifest_columns"](sound)
    sound.arrays["train"][1] = 7
    sound.arrays["test"] = sound.arrays["test"][:0]
    inspection = sound.inspect()
    assert broken(inspection) == {"manifest_columns", "array_file", "blank_image"}
    assert {"leakage", "array_statistics", "class_balance"} <= set(inspection.skipped)


def test_bad_files_up_to_the_limit_are_a_warning_and_each_is_named(sound: DataSet) -> None:
    quarantine(sound)
    share = 1 / len(sound.manifest)
    sound.data = data(max_bad_fraction=share)
    assert [(f.rule, f.file, f.value) for f in sound.inspect().findings] == [("bad_file", "broken.png", "truncated")]
    sound.data = data(max_bad_fraction=share * 0.99)
    assert [f.rule for f in sound.inspect().findings] == ["too_many_bad_files"]


def test_equal_bytes_are_not_reported_again_as_equal_pixels(sound: DataSet) -> None:
    CASES["leakage"](sound)
    sound.paint("test", 0, sound.arrays["train"][6])
    assert broken(sound.inspect()) == {"leakage"}


def test_small_images_are_not_compared_by_likeness(sound: DataSet) -> None:
    small = {split: array[:, ::2, ::2] for split, array in sound.arrays.items()}
    small["test"][0] = small["train"][4] * 0.9 + 20
    for split, array in small.items():
        print_ = fingerprint(array)
        rows = sound.manifest["split"] == split
        sound.manifest.loc[rows, "mean"], sound.manifest.loc[rows, "std"] = print_.mean, print_.std
    sound.arrays, sound.data = small, data(image_size=SIDE // 2)
    inspection = sound.inspect()
    assert inspection.findings == []
    assert "24×24" in inspection.skipped["near_duplicate_across_splits"]


def test_the_order_of_the_manifest_changes_nothing(sound: DataSet) -> None:
    for fault in ("leakage", "duplicate_in_split", "blank_image", "missing_label"):
        CASES[fault](sound)
    findings = sound.inspect().findings
    sound.manifest = sound.manifest.sample(frac=1, random_state=3)
    assert sound.inspect().findings == findings
