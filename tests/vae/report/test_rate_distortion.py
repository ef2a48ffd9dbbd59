"""The curve of a report: what is marked on it, how the error of the prediction reads, what replaces a pilot."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.parameters import parse
from helpers.reports import facts_of, make_workspace
from PIL import Image

from tasks import workspace
from vae.config.resolved import ResolvedParameters, resolve
from vae.report import charts, rate_distortion
from vae.report import page as report
from vae.report.facts import Facts, RateDistortion

TEST = {"kl": 3.0, "mse_sampled": 0.01, "reconstruction": 40.0, "mean_image_elbo": -60.0}
LINEAR = {
    "predicted_kl": 3.5, "predicted_by": "linear theory", "eigenvalues": [4.0, 1.0], "eigenvalue_sum": 6.0,
    "images": 40,
}  # fmt: skip


def of(changes: dict[str, Any]) -> ResolvedParameters:
    return resolve(parse({"data.image_size": 8, "model.latent_dim": 2, **changes}), 5)


def drawn(changes: dict[str, Any], test: dict[str, Any], preflight: dict[str, Any]) -> RateDistortion:
    found = rate_distortion.draw(of(changes), {**LINEAR, **preflight}, [], b"", {**TEST, **test})
    assert found is not None
    return found


def test_each_row_has_its_own_picture_and_the_stops_lead_to_the_nearest(facts: Facts) -> None:
    curve = facts.rate_distortion
    assert curve is not None and curve.originals is not None
    colours = [
        np.asarray(Image.open(io.BytesIO(png)))[0, 0, 0] for png in (curve.originals, *(r.png for r in curve.rows))
    ]
    assert colours == [0, 100, 200]
    weights = [float(stop.kl_weight.replace(",", "")) for stop in curve.stops]
    assert weights == sorted(weights) and weights[curve.start] == facts.parameters.kl.max_weight
    assert [stop.row for stop in curve.stops] == sorted(stop.row for stop in curve.stops)
    assert {stop.row for stop in curve.stops} == {0, 1}
    assert json.loads(curve.data)[0][0] == curve.stops[0].kl_weight
    assert all(0 < stop.x < 100 and 0 < stop.y < 100 for stop in curve.stops)
    assert curve.picture in facts.pictures and curve.picture.png.startswith(b"\x89PNG")


def test_a_place_in_the_chart_is_that_of_the_drawn_point() -> None:
    line = ("the pilot", np.array([9.0, 0.0]), np.array([0.1, 0.2]))
    figure = charts.rate_distortion([line], [], (4.0, 0.15, "predicted"), (5.0, 0.1), 0.4, "error")
    charts.svg(figure, "name")
    ax = figure.axes[0]
    [[left, top], [outside, _]] = charts.places(figure, np.array([4.0, 1e9]), np.array([0.15, 0.1]))
    box = ax.get_position()
    low, high = ax.get_ylim()
    assert left == pytest.approx(box.x0 + box.width * math.sqrt(4.0 / ax.get_xlim()[1]))
    assert top == pytest.approx(1 - box.y0 - box.height * (0.15 - low) / (high - low))
    assert outside == pytest.approx(box.x1)
    bar = ax.containers[0].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar[:, 0], [3.0, 7.0])


@pytest.mark.parametrize(
    ("changes", "predicted", "kl", "expected"),
    [
        ({}, 3.0, 4.0, "too low by 25% of the measured KL, within the tolerance of 40%."),
        ({"objective.sigma": 0.2}, 3.0, 4.1, "too low by 27% of the measured KL, beyond the tolerance of 25%."),
        ({}, 6.0, 4.0, "too high by 50% of the measured KL, beyond the tolerance of 40%."),
        ({}, 0.5, 0.0, "Both are less than 1 nat: collapse, as predicted."),
    ],
)
def test_the_error_of_the_prediction_reads_as_a_sentence(
    changes: dict[str, Any], predicted: float, kl: float, expected: str
) -> None:
    assert drawn(changes, {"kl": kl}, {"predicted_kl": predicted}).sentences[0].endswith(expected)


@pytest.mark.parametrize(
    ("pilot", "reason"), [("auto", "more than a tenth"), (False, "pilot is false"), (True, "next to nothing")]
)
def test_without_a_pilot_linear_theory_stands_alone_and_the_report_says_why(pilot: Any, reason: str) -> None:
    curve = drawn({"preflight.pilot": pilot}, {}, {})
    assert (curve.originals, curve.rows) == (None, []) and {stop.row for stop in curve.stops} == {-1}
    assert "the pilot" not in str(curve.picture.svg) and reason in curve.sentences[-1]


def test_a_pilot_of_another_network_is_no_curve_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path, pilot=True)
    path = tmp_path / workspace.PREFLIGHT
    found = workspace.read_json(path)
    found["pilot"]["model"]["widths"] = [99]
    path.write_text(json.dumps(found))
    facts = facts_of(tmp_path, monkeypatch)
    assert facts.rate_distortion is not None and not facts.rate_distortion.rows
    assert "another network" in facts.rate_distortion.sentences[-1] and "another network" in report.html(facts)


def test_a_bernoulli_curve_ends_at_the_mean_image() -> None:
    curve = drawn({"objective.likelihood": "bernoulli", "kl.max_weight": 0.5}, {}, {})
    assert curve.distortion == "distortion, nats per image"
    assert [curve.stops[-1].rate, curve.stops[-1].distortion] == ["0", "60"]
    assert float(curve.stops[0].distortion) == pytest.approx(60 - 6 / 2 + (2 * 1 / 3 + 1) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "preflight", "test"),
    [
        ({"kl.max_weight": 0.0}, {"predicted_kl": None}, {}),
        ({"kl.capacity": 2.0}, {}, {}),
        ({"kl.reconstruction_target": 0.35, "objective.sigma": "learned"}, {}, {}),
        ({}, {}, {"kl": None, "mse_sampled": None}),
        ({"objective.reduction": "mean"}, {}, {}),
        ({"kl.max_weight": 1e5}, {"predicted_kl": 0.0}, {"kl": 0.0}),
    ],
)
def test_every_objective_has_a_curve(changes: dict[str, Any], preflight: dict[str, Any], test: dict[str, Any]) -> None:
    curve = drawn(changes, test, preflight)
    assert len(curve.stops) >= rate_distortion.STOPS and 0 <= curve.start < len(curve.stops)
    assert ("measured, ±" in str(curve.picture.svg)) is (test.get("kl", 1) is not None)


def test_images_that_do_not_vary_have_no_curve_and_the_page_no_slider(facts: Facts) -> None:
    assert rate_distortion.draw(of({}), {**LINEAR, "eigenvalue_sum": 0.0}, [], b"", TEST) is None
    assert 'type="range"' not in report.html(replace(facts, rate_distortion=None))
