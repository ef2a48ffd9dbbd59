"""The stage, run as DVC runs it: in a child process, in a folder of its own."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_sets import manifest_of
from helpers.project import PROJECT as ROOT

from tasks import validate as stage
from tasks.processes import entry
from vae.config.constants import SPLITS


def write(folder: Path, rows: int = 12) -> pd.DataFrame:
    """A workspace with sound data of 16×16 grey images; returns the manifest."""
    (folder / "params.yaml").touch()  # the defaults
    (folder / "data/images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {split: rng.integers(0, 256, (rows, 16, 16, 1), np.uint8) for split in SPLITS}
    for split, images in arrays.items():
        np.save(folder / f"data/images/{split}.npy", images)
    manifest = manifest_of(arrays)
    save(folder, manifest)
    return manifest


def save(folder: Path, manifest: pd.DataFrame) -> None:
    """As ingest does: without pandas' own metadata, which would restore its types."""
    table = pa.Table.from_pandas(manifest, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), folder / "data/manifest.parquet")


def validate(folder: Path, manifest: pd.DataFrame | None = None) -> subprocess.CompletedProcess[str]:
    """The stage, after `manifest` has taken the place of the folder's own."""
    if manifest is not None:
        save(folder, manifest)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "tasks.validate"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def reports(folder: Path) -> tuple[dict, list[dict[str, str]]]:
    report = json.loads((folder / "reports/validation.json").read_text(encoding="utf-8"))
    with (folder / "reports/validation_failures.csv").open(encoding="utf-8", newline="") as file:
        return report, list(csv.DictReader(file))


def test_sound_data_pass(tmp_path: Path) -> None:
    write(tmp_path)
    result = validate(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "validation: train 12, valid 12, test 12 images; 0 errors, 0 warnings\n"
    header = "severity,rule,file,split,value,allowed,what_to_do\n"
    assert (tmp_path / "reports/validation_failures.csv").read_text() == header
    report, _ = reports(tmp_path)
    assert (report["passed"], report["errors"], report["warnings"]) == (True, 0, 0)
    assert report["summary"]["splits"]["train"]["classes"] == {"a": 6, "b": 6}
    pixels = np.load(tmp_path / "data/images/valid.npy") / 255
    summary = report["summary"]["splits"]["valid"]
    assert (summary["mean"], summary["std"]) == pytest.approx((pixels.mean(), pixels.std()), abs=1e-6)
    skipped = {rule["name"] for rule in report["rules"] if rule["skipped"]}
    assert skipped == {"binarised", "near_duplicate_across_splits"}


def test_errors_fail_the_stage_after_both_reports_are_written_and_repeat_to_the_bit(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    manifest.loc[30, "sha256"] = manifest.loc[0, "sha256"]  # an error
    manifest.loc[5, "sha256"] = manifest.loc[1, "sha256"]  # a warning
    manifest.loc[3, "width"] = -4  # another error
    result = validate(tmp_path, manifest)
    assert result.returncode == entry.INPUT_ERROR
    assert result.stderr == (
        "error: validation failed: 2 errors (size_range, leakage); "
        "reports/validation_failures.csv says what to do about each\n"
    )
    assert result.stdout.index("error: leakage (1)") < result.stdout.index("warning: duplicate_in_split (1)")
    report, rows = reports(tmp_path)
    assert (report["passed"], report["errors"], report["warnings"]) == (False, 2, 1)
    assert [(row["severity"], row["rule"], row["file"], row["split"], row["value"]) for row in rows] == [
        ("error", "size_range", "train/b/03.png", "train", "width = -4"),
        ("error", "leakage", "test/a/06.png", "test", "same bytes as train: train/a/00.png"),
        ("warning", "duplicate_in_split", "train/b/05.png", "train", "same bytes as train/b/01.png"),
    ]
    assert all(row["allowed"] and row["what_to_do"] for row in rows)
    counts = {rule["name"]: rule["count"] for rule in report["rules"] if rule["count"]}
    assert counts == {"size_range": 1, "leakage": 1, "duplicate_in_split": 1}

    written = {path: path.read_bytes() for path in (tmp_path / "reports").iterdir()}
    validate(tmp_path, manifest.sample(frac=1, random_state=1))
    assert {path: path.read_bytes() for path in written} == written and len(written) == 2


def test_warnings_alone_pass(tmp_path: Path) -> None:
    result = validate(tmp_path, write(tmp_path).assign(label=None))
    assert (result.returncode, result.stderr) == (0, "")
    report, rows = reports(tmp_path)
    assert report["passed"] and [(row["severity"], row["rule"]) for row in rows] == [("warning", "few_classes")]


def test_a_name_runs_nowhere(tmp_path: Path) -> None:
    """Neither in a spreadsheet nor on the terminal."""
    manifest = write(tmp_path)
    names = ["=cmd|' /C calc'!A0", "ünï,\"'.png", "line\nbreak\x1b[31m<script>.png"]
    manifest.loc[[0, 1, 2], "path"] = names
    manifest.loc[[0, 1, 2], "height"] = 0
    result = validate(tmp_path, manifest)
    assert result.returncode == entry.INPUT_ERROR
    _, rows = reports(tmp_path)
    assert sorted(row["file"] for row in rows) == sorted(["'" + names[0], *names[1:]])
    assert "\x1b" not in result.stdout
    assert "line\\nbreak\\x1b[31m<script>.png" in result.stdout


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("＝1", "'＝1"),
        ("photo;=1", "photo;'=1"),  # where the semicolon ends a cell
        ('photo;"=1"', 'photo;\'"=1"'),
        ("two\n=1", "two\n'=1"),
        ("a-b, c=d.png", "a-b, c=d.png"),
    ],
)
def test_no_cell_is_a_formula(cell: str, written: str) -> None:
    assert stage._harmless(cell) == written


def test_many_findings_are_shown_in_part_and_written_in_full(tmp_path: Path) -> None:
    result = validate(tmp_path, write(tmp_path).assign(mode=None))
    assert len(reports(tmp_path)[1]) == 36
    assert "… 31 more in reports/validation_failures.csv" in result.stdout
    assert result.stdout.count("no mode") == 5


@pytest.mark.parametrize("content", [None, b"", b"not a Parquet file"])
def test_no_manifest_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    write(tmp_path)
    (tmp_path / "data/manifest.parquet").unlink()
    if content is not None:
        (tmp_path / "data/manifest.parquet").write_bytes(content)
    result = validate(tmp_path)
    assert result.returncode == entry.INPUT_ERROR
    assert result.stderr.startswith("error: data/manifest.parquet ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"not an array"])
def test_a_broken_array_is_a_finding(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / "data/images/valid.npy").write_bytes(content)
    assert validate(tmp_path).returncode == entry.INPUT_ERROR
    assert [(row["rule"], row["file"]) for row in reports(tmp_path)[1]] == [("array_file", "valid.npy")]
