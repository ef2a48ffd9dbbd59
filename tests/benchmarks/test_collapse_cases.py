"""The collapse cases: what the list promises, what their images are, and the quickest of them run."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.parameters import default_file
from helpers.project import PROJECT

from benchmarks import case_images, collapse_cases
from benchmarks.collapse_cases import COLUMNS, Case, CaseRunner, read_cases
from tasks import overlay
from vae.collapse import linear_theory
from vae.config import loading
from vae.config.errors import InputError
from vae.models.likelihood import Likelihood

FOLDER = PROJECT / collapse_cases.FOLDER
VERDICTS = {
    "diverged", "collapsed", "not_learning", "partly_collapsed", "under_regularised", "over_regularised",
    "target_missed", "prior_mismatch", "overfitted", "healthy",
    "refused by parameters", "refused by validate", "refused by ingest",
}  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        return read_cases()


def test_the_list_has_thirty_cases_ten_of_them_healthy_and_a_file_for_each(cases: list[Case]) -> None:
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) >= 30
    assert set(names) == {file.stem for file in FOLDER.glob("*.yaml")}
    assert {case.expected for case in cases} <= VERDICTS
    assert all(case.mechanism.endswith(".") for case in cases)
    assert {case.half for case in cases} == {"tune", "held-out"}
    for half in ("tune", "held-out"):
        expected = [case.expected for case in cases if case.half == half]
        assert expected.count("healthy") >= 5 and expected.count("collapsed") >= 5
        assert {"partly_collapsed", "under_regularised", "diverged", "not_learning"} <= set(expected)


def test_the_best_known_setting_is_given_where_there_is_something_to_rescue(cases: list[Case]) -> None:
    for case in cases:
        trains = case.expected != "healthy" and not case.expected.startswith("refused")
        assert bool(case.best) is trains, case.name
        sections = {name.split(".")[0] for name in overlay.parse_settings(case.best)}
        assert sections <= {"model", "objective", "kl", "train"}, case.name


def test_every_case_takes_digits_or_images_that_are_made(cases: list[Case]) -> None:
    texts = {case.name: (FOLDER / f"{case.name}.yaml").read_text(encoding="utf-8") for case in cases}
    values = [overlay.flat(loading.read_mapping(text, name)) for name, text in texts.items()]
    used = {v["data.path"] for v in values if v.get("data.source", "digits") != "digits"}
    assert used == {f"{case_images.FOLDER}/{name}.npy" for name in case_images.MAKERS}


@pytest.mark.parametrize(
    ("make", "arguments", "shape", "different"),
    [
        (case_images.photos, (16, 40), (40, 16, 16, 3), 40),
        (case_images.factors, (3, 8), (8, 16, 16, 1), 8),
        (case_images.blobs, (200,), (200, 24, 24, 1), 200),
        (case_images.same, (4,), (4, 32, 32, 3), 1),
        (case_images.blank, (256,), (256, 16, 16, 1), 256),
        (case_images.unscaled, (4,), (4, 32, 32, 3), 4),
        (case_images.faces, (50,), (50, 28, 20, 1), 50),
    ],
)
def test_images_repeat_to_the_bit(make: Any, arguments: Any, shape: tuple[int, ...], different: int) -> None:
    images = make(*arguments)
    assert images.shape == shape and np.array_equal(images, make(*arguments))
    assert images.dtype == (np.float32 if make is case_images.unscaled else np.uint8)
    assert len({image.tobytes() for image in images}) == different


def test_faces_move_slowly_and_far_in_few_directions() -> None:
    """Neighbouring frames are near-copies, any two are not; nine factors move 560 pixels, none of them linearly."""
    frames = case_images.faces(1965).reshape(1965, -1) / 255
    eigenvalues = np.linalg.eigvalsh(np.cov(frames.T))[::-1]
    assert np.square(np.diff(frames, axis=0)).sum(1).mean() < 0.1 * 2 * eigenvalues.sum()
    assert eigenvalues[:9].sum() < 0.8 * eigenvalues.sum() < eigenvalues[:60].sum()


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


def test_cases_are_run(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = default_file()
    names = ("same-image", "geco-with-optimal-sigma", "beta-far-above-critical")
    texts = {name: (FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in names}
    texts[names[2]] = texts[names[2]].replace("epochs: 30", "epochs: 16")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(case_images, "MAKERS", {"same": case_images.MAKERS["same"]})
    case_images.write(case_images.FOLDER)
    assert np.array_equal(np.load(case_images.FOLDER / "same.npy"), case_images.same(300))
    (tmp_path / "reports").mkdir()
    runner = CaseRunner(base)
    named = {case.name: case for case in cases}
    rows = {name: runner.run(named[name], texts[name]) for name in names}
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


def test_the_floor_of_skill_is_of_the_likelihood_that_was_trained() -> None:
    """Of 8-bit levels a code for them, not a density; of a Gaussian with its best σ, −N/2 (1 + ln 2πσ²)."""
    images = np.random.default_rng(0).integers(100, 140, (30, 8, 8, 1), dtype=np.uint8)
    mse = ((images / 255 - (images / 255).mean(0)) ** 2).mean()
    floor = collapse_cases.mean_image_elbo(Likelihood("gaussian", 0.5), images, images)
    assert floor == pytest.approx(-32 * (1 + np.log(2 * np.pi * mse)))
    levels = [Likelihood("logistic_mixture", components=3), Likelihood("discretised_gaussian", 0.5)]
    for likelihood in levels:  # 40 of the 256 levels, all alike
        code = collapse_cases.mean_image_elbo(likelihood, images, images)
        assert -64 * np.log(256) < code < -64 * np.log(40)


def test_an_unknown_case_is_named_with_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    with pytest.raises(InputError, match=r"no case matches .*; cases: beta-far-above-critical, "):
        collapse_cases.main(case=["no-such-case"])


def test_healthy_ones_that_are_alarmed_are_counted() -> None:
    rows = [
        ("tune", "healthy", "healthy", True, ""),
        ("tune", "healthy", "collapsed", False, "yes"),
        ("held-out", "collapsed", "collapsed", True, "no"),
    ]
    table = pd.DataFrame(rows, columns=["half", "expected", "verdict", "right", "rescued"])
    assert collapse_cases.summary(table).splitlines() == [
        "tune: 1 of 2 verdicts right, 1 of 2 healthy ones alarmed, 1 of 1 rescued.",
        "held-out: 1 of 1 verdicts right, 0 of 0 healthy ones alarmed, 0 of 1 rescued.",
    ]
