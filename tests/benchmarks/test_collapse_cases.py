"""The collapse cases: what the list promises, what their images are, and the quickest of them run."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.project import PROJECT

from benchmarks import case_images, collapse_cases
from benchmarks.collapse_cases import COLUMNS, Zoo, read_cases
from tasks import overlay
from vae.collapse import linear_theory
from vae.config import loading
from vae.config.errors import InputError

FOLDER = PROJECT / collapse_cases.FOLDER
VERDICTS = {
    "diverged", "collapsed", "not_learning", "partly_collapsed", "under_regularised", "overfitted", "healthy",
    "refused by parameters", "refused by validate", "refused by ingest",
}  # fmt: skip


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


@pytest.mark.usefixtures("project")
def test_the_list_has_thirty_cases_ten_of_them_healthy_and_a_file_for_each() -> None:
    cases = read_cases()
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) >= 30
    assert set(names) == {file.stem for file in FOLDER.glob("*.yaml")}
    assert sum(case.expected == "healthy" for case in cases) >= 10
    assert {case.expected for case in cases} <= VERDICTS
    assert all(case.mechanism.endswith(".") for case in cases)


@pytest.mark.usefixtures("project")
def test_both_halves_have_collapsing_and_healthy_cases() -> None:
    cases = read_cases()
    assert {case.half for case in cases} == {"tune", "held-out"}
    for half in ("tune", "held-out"):
        expected = [case.expected for case in cases if case.half == half]
        assert expected.count("healthy") >= 5 and expected.count("collapsed") >= 5
        assert {"partly_collapsed", "under_regularised", "diverged", "not_learning"} <= set(expected)


@pytest.mark.usefixtures("project")
def test_the_best_known_setting_stands_where_there_is_something_to_rescue() -> None:
    for case in read_cases():
        trains = case.expected != "healthy" and not case.expected.startswith("refused")
        assert bool(case.best) is trains, case.name
        for name in overlay.parse_settings(case.best):
            assert name.split(".")[0] in ("model", "objective", "kl", "train"), case.name


@pytest.mark.usefixtures("project")
def test_every_case_takes_digits_or_images_that_are_made() -> None:
    made = {f"{case_images.FOLDER}/{name}.npy" for name in case_images.MAKERS}
    used = set()
    for case in read_cases():
        text = (FOLDER / f"{case.name}.yaml").read_text(encoding="utf-8")
        values = overlay.flat(loading.read_mapping(text, case.name))
        if values.get("data.source", "digits") != "digits":
            used.add(values["data.path"])
    assert used == made


# Images


def test_the_makers_repeat_to_the_bit() -> None:
    for make, sizes in (
        (case_images.photos, (16, 8)),
        (case_images.factors, (3, 8)),
        (case_images.blobs, (8,)),
        (case_images.same, (3,)),
        (case_images.blank, (8,)),
        (case_images.unscaled, (3,)),
    ):
        one, other = make(*sizes), make(*sizes)
        assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("latents", [5, 19])
def test_images_of_factors_have_as_many_large_eigenvalues(latents: int) -> None:
    """Each factor's is 256 · 0.02² = 0.1; those of the noise, 0.02², and of rounding are 0.0004, the largest of 256
    of them, from 2,000 images, up to 0.0004 · (1 + √(256/2000))² = 0.00074 (Marchenko & Pastur 1967)."""
    images = case_images.factors(latents, 2000)
    assert images.shape == (2000, 16, 16, 1) and images.dtype == np.uint8
    values = linear_theory.spectrum(images, 256, False).eigenvalues
    np.testing.assert_allclose(values[:latents], 0.1, rtol=0.35)
    assert values[latents] < 0.0008
    assert values[latents:].mean() == pytest.approx(0.0004, rel=0.05)


def test_blobs_are_one_bright_spot_each() -> None:
    images = case_images.blobs(200)
    assert images.shape == (200, 24, 24, 1) and images.dtype == np.uint8
    assert (images.max((1, 2, 3)) >= 90).all() and (np.median(images, axis=(1, 2, 3)) < 40).all()
    tops = images.reshape(200, -1).argmax(1)
    assert len(set(tops)) > 100
    rows, columns = tops // 24, tops % 24
    assert rows.min() >= 4 and columns.min() >= 4 and rows.max() <= 19 and columns.max() <= 19


def test_photos_differ_and_have_colour() -> None:
    images = case_images.photos(16, 40)
    assert images.shape == (40, 16, 16, 3) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 40
    assert (images[..., 0] != images[..., 2]).mean() > 0.5


def test_same_blank_and_unscaled_are_what_they_say() -> None:
    same = case_images.same(4)
    assert all(np.array_equal(one, other) for one, other in itertools.pairwise(same))
    blank = case_images.blank(256)
    assert blank.shape == (256, 16, 16, 1) and blank.max() == 1
    assert (blank.sum((1, 2, 3)) == 1).all() and len({image.tobytes() for image in blank}) == 256
    unscaled = case_images.unscaled(4)
    assert unscaled.dtype == np.float32 and unscaled.max() > 100
    assert np.array_equal(unscaled, case_images.photos(32, 4))


def test_all_sets_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"blobs": lambda: case_images.blobs(3), "blank": lambda: case_images.blank(2)}
    monkeypatch.setattr(case_images, "MAKERS", few)
    case_images.write(tmp_path / "zoo")
    assert {file.name for file in (tmp_path / "zoo").iterdir()} == {"blobs.npy", "blank.npy"}
    assert np.array_equal(np.load(tmp_path / "zoo" / "blobs.npy"), case_images.blobs(3))


# Runs


def test_a_refused_a_refused_and_a_collapsed_case_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = overlay.lay_over((PROJECT / "params.yaml").read_text(encoding="utf-8"), overlay.defaults())
    names = ("same-image", "geco-with-optimal-sigma", "beta-far-above-critical")
    monkeypatch.chdir(PROJECT)
    cases = {case.name: case for case in read_cases()}
    texts = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in names}
    texts[names[2]] = texts[names[2]].replace("epochs: 30", "epochs: 16")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(case_images, "MAKERS", {"same": case_images.MAKERS["same"]})
    case_images.write(case_images.FOLDER)
    (tmp_path / "reports").mkdir()
    runner = Zoo(base)
    rows = {name: runner.run(cases[name], texts[name]) for name in names}
    assert all(set(row) == set(COLUMNS) and row["right"] for row in rows.values()), rows
    assert rows["same-image"]["verdict"] == "refused by ingest"
    assert rows["geco-with-optimal-sigma"]["verdict"] == "refused by parameters"
    for name in names[:2]:
        assert rows[name]["rescued"] == "" and rows[name]["predicted_verdict"] == rows[name]["verdict"]
    collapsed = rows["beta-far-above-critical"]
    assert collapsed["verdict"] == collapsed["predicted_verdict"] == "collapsed"
    assert collapsed["kl"] < 1 and collapsed["predicted_kl"] < 1
    assert collapsed["remedies"] == "collapsed → kl.max_weight = 1"
    assert (collapsed["final_verdict"], collapsed["rescued"]) == ("healthy", "yes")
    assert collapse_cases.RESCUED_SKILL <= collapsed["skill"] <= 1

    table = pd.DataFrame(rows.values(), columns=list(COLUMNS))
    assert collapse_cases.summary(table) == (
        "tune: 3 of 3 verdicts right, 0 of 0 healthy ones alarmed, 1 of 1 rescued."
    )
    lines = collapse_cases.markdown(table).splitlines()
    assert len(lines) == 5 and all(line.count("|") == lines[0].count("|") for line in lines)
    assert "collapsed → kl.max_weight = 1" in lines[4] and "(wrong)" not in "".join(lines)
    wrong = collapse_cases.markdown(table.assign(right=False, rescued="no"))
    assert wrong.count("(wrong)") == 3 and "not rescued: collapsed" in wrong
    shown, marked = (collapse_cases._line(collapsed | {"right": right}) for right in (True, False))
    assert "WRONG" not in shown and marked.count("WRONG") == 1


def test_an_unknown_case_is_named_with_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    with pytest.raises(InputError, match=r"no such case; known: beta-far-above-critical, "):
        collapse_cases.main(case=["no-such-case"])


def test_healthy_ones_that_are_alarmed_are_counted() -> None:
    table = pd.DataFrame(
        [
            {"half": "tune", "expected": "healthy", "verdict": "healthy", "right": True, "rescued": ""},
            {"half": "tune", "expected": "healthy", "verdict": "collapsed", "right": False, "rescued": "yes"},
            {"half": "held-out", "expected": "collapsed", "verdict": "collapsed", "right": True, "rescued": "no"},
        ]
    )  # fmt: skip
    assert collapse_cases.summary(table).splitlines() == [
        "tune: 1 of 2 verdicts right, 1 of 2 healthy ones alarmed, 1 of 1 rescued.",
        "held-out: 1 of 1 verdicts right, 0 of 0 healthy ones alarmed, 0 of 1 rescued.",
    ]
