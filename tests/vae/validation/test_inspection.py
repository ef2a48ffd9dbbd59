"""Each rule has a data set that breaks it and no other."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from helpers.data_sets import manifest_of, pictures

from vae.config.parameters import Data
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

    def paint(self, split: str, index: int, pixels: np.ndarray) -> None:
        """Other pixels, and the manifest knows."""
        self.arrays[split][index] = pixels
        print_ = fingerprint(self.arrays[split][index : index + 1])
        self.set(split, index, "mean", print_.mean[0])
        self.set(split, index, "std", print_.std[0])


@pytest.fixture
def sound() -> DataSet:
    arrays = {split: pictures(n, seed) for seed, (split, n) in enumerate(SIZES.items())}
    return DataSet(manifest_of(arrays), {**arrays})


def quarantine(ds: DataSet) -> None:
    """One bad file more, without a row in an array."""
    row = ds.manifest.iloc[0].to_dict() | dict.fromkeys(("split", "index", "label", "mean", "std"))
    row |= {"path": "broken.png", "status": "quarantined", "reason": "truncated", "sha256": "0" * 64}
    ds.manifest.loc[len(ds.manifest)] = row


def case_manifest_columns(ds: DataSet) -> None:
    ds.manifest = ds.manifest.drop(columns="mode")


def case_path_unique(ds: DataSet) -> None:
    ds.set("train", 3, "path", ds.manifest.at[0, "path"])


def case_known_split(ds: DataSet) -> None:
    quarantine(ds)
    ds.data = data(max_bad_fraction=0.5)
    ds.manifest.loc[ds.manifest.index[-1], "split"] = "holdout"


def case_known_status(ds: DataSet) -> None:
    quarantine(ds)
    ds.manifest.loc[ds.manifest.index[-1], "status"] = "lost"


def case_size_range(ds: DataSet) -> None:
    ds.set("valid", 1, "width", 0)


def case_sha256_format(ds: DataSet) -> None:
    ds.set("valid", 1, "sha256", "F" * 64)


def case_statistics_range(ds: DataSet) -> None:
    quarantine(ds)
    ds.data = data(max_bad_fraction=0.5)
    ds.manifest.loc[ds.manifest.index[-1], "mean"] = 1.5


def case_complete_row(ds: DataSet) -> None:
    ds.set("train", 2, "mode", None)


def case_index_is_a_row(ds: DataSet) -> None:
    ds.set("train", 2, "index", 3)


def case_array_file(ds: DataSet) -> None:
    ds.arrays["test"] = "does not exist"


def case_array_shape(ds: DataSet) -> None:
    ds.arrays["test"] = ds.arrays["test"].astype(np.float32)


def case_array_rows(ds: DataSet) -> None:
    ds.arrays["test"] = np.concatenate([ds.arrays["test"], pictures(1, 9)])


def case_array_statistics(ds: DataSet) -> None:
    ds.arrays["test"][[0, 1]] = ds.arrays["test"][[1, 0]]


def case_binarised(ds: DataSet) -> None:
    ds.data = data(binarise="static", image_size=SIDE)
    for split, n in SIZES.items():
        for index in range(n):
            ds.paint(split, index, np.where(ds.arrays[split][index] > 127, 255, 0))
    image = ds.arrays["valid"][2].copy()
    image[0, 0] = 128
    ds.paint("valid", 2, image)


def case_mostly_blank(ds: DataSet) -> None:
    for index in range(4):
        ds.paint("valid", index, np.full((SIDE, SIDE, 1), 10 + index))


def case_too_many_bad_files(ds: DataSet) -> None:
    quarantine(ds)


def case_unknown_label(ds: DataSet) -> None:
    ds.set("test", 3, "label", "c")


def case_leakage(ds: DataSet) -> None:
    ds.set("test", 0, "sha256", ds.manifest.at[ds.row("train", 5), "sha256"])


def case_bad_file(ds: DataSet) -> None:
    ds.data = data(max_bad_fraction=0.5)
    quarantine(ds)


def case_same_pixels_across_splits(ds: DataSet) -> None:
    ds.paint("test", 0, ds.arrays["train"][4])


def case_near_duplicate_across_splits(ds: DataSet) -> None:
    lighter = ds.arrays["train"][4] * 0.9 + 20
    ds.paint("test", 0, lighter.round())


def case_duplicate_in_split(ds: DataSet) -> None:
    ds.set("train", 7, "sha256", ds.manifest.at[0, "sha256"])


def case_blank_image(ds: DataSet) -> None:
    ds.paint("train", 1, np.full((SIDE, SIDE, 1), 255))


def case_missing_label(ds: DataSet) -> None:
    ds.manifest.loc[ds.manifest["split"] == "valid", "label"] = "a"


def case_unlabelled(ds: DataSet) -> None:
    ds.set("train", 1, "label", None)


def case_few_classes(ds: DataSet) -> None:
    ds.manifest["label"] = None


def case_class_balance(ds: DataSet) -> None:
    ds.manifest.loc[(ds.manifest["split"] == "train") & (ds.manifest["index"] > 0), "label"] = "b"


CASES = {name.removeprefix("case_"): case for name, case in globals().items() if name.startswith("case_")}
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
    faults: list[Callable[[DataSet], None]] = [
        case_size_range,
        case_sha256_format,
        case_leakage,
        case_blank_image,
    ]
    for fault in faults:
        fault(sound)
    assert broken(sound.inspect()) == {"size_range", "sha256_format", "leakage", "blank_image"}


def test_a_finding_names_file_split_and_value(sound: DataSet) -> None:
    case_leakage(sound)
    (finding,) = sound.inspect().findings
    assert (finding.file, finding.split) == ("test/a/00.png", "test")
    assert finding.value == "same bytes as train: train/b/05.png"


@pytest.mark.parametrize("columns", [{"width": "float64"}, {"label": "int"}, {"mean": "str"}])
def test_a_column_of_another_type_is_named(sound: DataSet, columns: dict[str, str]) -> None:
    (column,) = columns
    sound.manifest[column] = 1
    sound.manifest = sound.manifest.astype(columns)
    (finding,) = sound.inspect().findings
    assert finding.rule == "manifest_columns"
    assert f"column {column}" in finding.value


def test_an_unknown_column_is_named(sound: DataSet) -> None:
    sound.manifest["colour"] = "red"
    (finding,) = sound.inspect().findings
    assert (finding.rule, finding.value) == ("manifest_columns", "column colour: unknown")


def test_a_broken_manifest_does_not_hide_broken_arrays(sound: DataSet) -> None:
    case_manifest_columns(sound)
    sound.arrays["train"][1] = 7
    sound.arrays["test"] = sound.arrays["test"][:0]
    inspection = sound.inspect()
    assert broken(inspection) == {"manifest_columns", "array_file", "blank_image"}
    assert {"leakage", "array_statistics", "class_balance"} <= set(inspection.skipped)


@pytest.mark.parametrize("index", [-1, SIZES["train"], None])
def test_an_index_out_of_the_array_is_an_error(sound: DataSet, index: int | None) -> None:
    sound.set("train", 2, "index", index)
    assert broken(sound.inspect()) == {"complete_row" if index is None else "index_is_a_row"}


def test_a_quarantined_file_must_not_have_an_index(sound: DataSet) -> None:
    case_bad_file(sound)
    sound.manifest.loc[sound.manifest.index[-1], "index"] = 0
    findings = sound.inspect().findings
    assert [f.value for f in findings if f.rule == "complete_row"] == ["quarantined, but has an index"]


def test_bad_files_up_to_the_limit_are_a_warning_and_each_is_named(sound: DataSet) -> None:
    quarantine(sound)
    share = 1 / len(sound.manifest)
    sound.data = data(max_bad_fraction=share)
    assert [(f.rule, f.file, f.value) for f in sound.inspect().findings] == [("bad_file", "broken.png", "truncated")]
    sound.data = data(max_bad_fraction=share * 0.99)
    assert [f.rule for f in sound.inspect().findings] == ["too_many_bad_files"]


def test_equal_bytes_are_not_reported_again_as_equal_pixels(sound: DataSet) -> None:
    case_leakage(sound)
    sound.paint("test", 0, sound.arrays["train"][5])
    assert broken(sound.inspect()) == {"leakage"}


def test_equal_pixels_inside_a_split_are_a_warning(sound: DataSet) -> None:
    sound.paint("train", 6, sound.arrays["train"][5])
    assert [(f.rule, f.value) for f in sound.inspect().findings] == [
        ("duplicate_in_split", "same pixels as train/b/05.png")
    ]


def test_one_class_is_a_warning(sound: DataSet) -> None:
    sound.manifest["label"] = "leaf"
    assert [(f.rule, f.value) for f in sound.inspect().findings] == [("few_classes", "one class: leaf")]


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
    for fault in (case_leakage, case_duplicate_in_split, case_blank_image, case_missing_label):
        fault(sound)
    findings = sound.inspect().findings
    sound.manifest = sound.manifest.sample(frac=1, random_state=3)
    assert sound.inspect().findings == findings
