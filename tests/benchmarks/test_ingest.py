"""Ingest beside decoding alone: its report, and a run on a few photos."""

from pathlib import Path

import pytest
from helpers.ingests import photos

from benchmarks import ingest


def test_the_ratio_is_that_of_neighbours() -> None:
    rows = [(2.2, 3.0, 2.0, 2.5), (4.8, 5.0, 4.0, 4.5), (1.3, 2.0, 1.0, 1.5)]
    said = ingest.report(rows)
    assert said.startswith("ingest 2.20 CPU s (3.00 s), decoding alone 2.00 CPU s (2.50 s)")
    assert said.endswith("ratio of CPU 1.20 (1.10 to 1.30)")


def test_a_folder_is_ingested_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos")
    (root / "a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = sorted(tmp_path.rglob("*"))
    ingest.main(root, image_size=8, workers=2, repeats=2)
    assert sorted(tmp_path.rglob("*")) == before
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first == "41 files, 8×8×3, 2 worker(s), medians of 2" and "ratio of CPU" in second
