import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.ingests import ENVIRONMENT, outputs, photo, photos

from tasks import ingest, workspace
from tasks.processes import entry
from vae.config.constants import SPLITS
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.data.decode_cache import CHUNK_ITEMS
from vae.data.images import load

INGEST = [sys.executable, "-m", "tasks.ingest"]


def run(place: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(INGEST, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, **options)


def test_the_default_source_over_what_a_killed_run_left(place: Callable[..., Path]) -> None:
    here = place()
    ingest.PARTIAL.mkdir(parents=True)
    (ingest.PARTIAL / "leftover").touch()
    done = run(here)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[-1] == (
        "ingest: 1,439 train, 179 valid, 179 test images of 16×16×1; 10 classes; 0 of 1,797 quarantined"
    )
    train = np.load(workspace.images("train"), mmap_mode="r")
    assert train.dtype == np.uint8 and train.shape == (1439, 16, 16, 1)
    assert sorted(path.name for path in workspace.IMAGES.iterdir()) == ["test.npy", "train.npy", "valid.npy"]


def test_a_terminal_gets_a_bar_and_the_summary(place: Callable[..., Path]) -> None:
    terminal, end = os.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(INGEST, cwd=place(), env=environment, stdout=subprocess.PIPE, stderr=end)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side has closed
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    printed, _ = process.communicate()
    assert process.returncode == 0 and printed.endswith(b"0 of 1,797 quarantined\n")
    assert b"decoding" in shown


def test_many_files_in_a_row_that_are_no_images_are_no_obstacle(place: Callable[..., Path]) -> None:
    """A whole chunk of them, and more."""
    root = photos(place(source="folder", path="photos", image_size=8) / "photos")
    for number in range(3 * CHUNK_ITEMS):
        (root / "a" / f"caption {number}.txt").write_text("a cat")
    ingest.main()
    manifest = pd.read_parquet(workspace.MANIFEST)
    assert (manifest.status == "ok").sum() == 40 and len(manifest) == 40 + 3 * CHUNK_ITEMS


def test_manifest_and_arrays_agree(place: Callable[..., Path]) -> None:
    root = photos(place(source="folder", path="photos", channels=3, image_size=[8, 12]) / "photos")
    (root / "a/broken.png").write_bytes(photo(1)[:500])
    (root / "a/empty.png").touch()
    (root / "readme.txt").write_text("about these photos")
    ingest.main()
    manifest = pd.read_parquet(workspace.MANIFEST)
    columns = "path split label index width height mode bytes sha256 mean std status reason note"
    assert " ".join(manifest.columns) == columns and len(manifest) == 43
    assert manifest.path.is_monotonic_increasing

    bad = manifest[manifest.status == "quarantined"].set_index("path")
    assert sorted(bad.index) == ["a/broken.png", "a/empty.png", "readme.txt"]
    assert bad[["split", "index", "mean", "std"]].isna().all(axis=None) and bad.reason.notna().all()

    arrays = {split: np.load(workspace.images(split)) for split in SPLITS}
    good = manifest[manifest.status == "ok"]
    assert good.reason.isna().all() and len(good) == 40
    for split, array in arrays.items():
        assert sorted(good[good.split == split]["index"]) == list(range(len(array)))
    rule = Preprocessing(8, 12, 3)
    for row in good.itertuples():
        stored = arrays[row.split][int(row.index)]
        assert np.array_equal(stored, load(root / row.path, rule))
        assert row.mean == pytest.approx(stored.mean() / 255) and row.std == pytest.approx(stored.std() / 255)
        number = int(row.path[-3:])
        assert (row.width, row.height, row.mode) == (24 + number % 5, 20 + number % 7, "RGB")
        assert row.bytes == (root / row.path).stat().st_size and row.label == row.path[0]


def test_the_number_of_workers_changes_no_bit(place: Callable[..., Path]) -> None:
    root = photos(place(source="folder", path="photos", image_size=8, binarise="static") / "photos", 90)
    (root / "a/broken.png").write_bytes(photo(1)[:500])
    ingest.main(workers=1)
    alone = outputs()
    for workers in (2, 7):
        ingest.main(workers=workers)
        assert outputs() == alone


def test_identical_files_are_in_one_split(place: Callable[..., Path]) -> None:
    for file in sorted(photos(place(source="folder", path="photos", image_size=8) / "photos").glob("*/*")):
        file.with_name(f"copy of {file.name}").write_bytes(file.read_bytes())
    ingest.main()
    manifest = pd.read_parquet(workspace.MANIFEST)
    assert (manifest.groupby("sha256").split.nunique() == 1).all() and manifest.sha256.nunique() == 40


def test_splits_of_the_source_are_kept(place: Callable[..., Path]) -> None:
    root = place(source="folder", path="photos", image_size=8) / "photos"
    photos(root / "train", 30)
    photos(root / "test", 6)
    ingest.main()
    manifest = pd.read_parquet(workspace.MANIFEST)
    named = manifest.path.str.split("/").str[0]
    assert (manifest.split[named == "test"] == "test").all()
    assert manifest.split[named == "train"].value_counts().to_dict() == {"train": 26, "valid": 4}


@pytest.mark.parametrize("binarise", ["threshold", "static", "dynamic"])
def test_binarised_splits(place: Callable[..., Path], binarise: str) -> None:
    place(binarise=binarise)
    ingest.main()
    values = {split: set(np.unique(np.load(workspace.images(split)))) for split in SPLITS}
    assert values["valid"] == values["test"] == {0, 255}
    assert (values["train"] == {0, 255}) == (binarise != "dynamic")


def test_odd_names_reach_the_manifest_and_not_the_terminal(place: Callable[..., Path]) -> None:
    here = place(source="folder", path="photos", channels=3, image_size=8)
    names = ["two\nlines", "quo\"te's", "<script>", "Äpfel", "sp ace", "[bold]", "\x1b[31mred"]
    for i, name in enumerate(names):
        (here / "photos" / name).mkdir(parents=True)
        for j in range(4):
            (here / "photos" / name / f"{j}").write_bytes(photo(10 * i + j))
    (here / "photos" / names[-1] / "bad\nname").write_text("no photo")
    done = run(here)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5 and "\x1b" not in done.stdout
    assert set(pd.read_parquet(workspace.MANIFEST).label.dropna()) == set(names)


def test_nothing_usable(place: Callable[..., Path]) -> None:
    here = place(source="folder", path="photos")
    (here / "photos").mkdir()
    (here / "photos/notes.jpg").write_text("no photo")
    done = run(here)
    assert done.returncode == entry.INPUT_ERROR
    assert done.stderr.startswith("error: data.path = 'photos': none of 1 files can be used as an image")
    assert "'notes.jpg': not an image" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not Path("data/manifest.parquet").exists() and list(Path("data/images").iterdir()) == []


def test_a_failure_is_named_and_leaves_what_was_there(place: Callable[..., Path]) -> None:
    place()
    ingest.main()
    before = outputs()
    place(source="folder", path="gone")
    with pytest.raises(InputError, match="does not exist"):
        ingest.main()
    root = photos(place(source="folder", path="photos", image_size=8) / "photos", 2)
    with pytest.raises(InputError, match=r"for valid and test \(usable: train 2, valid 0, test 0\)"):
        ingest.main()
    photos(root / "train", 10)
    (root / "valid/a").mkdir(parents=True)
    (root / "valid/a/1.png").write_text("no photo")
    with pytest.raises(InputError, match=r"for valid .* 'valid/a/1.png': not an image"):
        ingest.main()
    assert outputs() == before and not ingest.PARTIAL.exists()


def test_a_full_disk_is_one_line(place: Callable[..., Path]) -> None:
    limit = (resource.RLIMIT_FSIZE, (100_000, 100_000))
    done = run(place(), preexec_fn=lambda: resource.setrlimit(*limit))
    assert done.returncode == entry.INPUT_ERROR and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: data/images: ") and "free some space" in done.stderr
    assert list(Path("data/images").iterdir()) == []


def test_an_interrupt_ends_it_at_once_and_tidily(place: Callable[..., Path]) -> None:
    here = place(source="npy", path="x.npy", image_size=256, channels=3)
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (20_000, 16, 16, 3), np.uint8))
    process = subprocess.Popen(
        INGEST, cwd=here, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(ingest.PARTIAL.glob("*.zip")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "interrupted\n") and time.monotonic() - began < 5
    assert list(Path("data/images").iterdir()) == []
