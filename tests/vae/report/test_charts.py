"""Figures: what they show, and that they repeat to the bit."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from vae.report import charts


def test_a_drawing_takes_the_colours_of_the_page_and_repeats_to_the_bit() -> None:
    epochs = pd.DataFrame({"epoch": [1, 2], "z0": [0.5, 0.1], "z1": [0, 1]})
    drawing, again = (charts.svg(charts.kl_over_time(epochs, kept_epoch=2), "name") for _ in range(2))
    assert drawing == again
    assert drawing.startswith("<svg") and drawing.endswith("</svg>")
    assert set(re.findall(r"#[0-9a-f]{6}", drawing)) <= {"#ffffff"}  # the line on the map itself
    assert "var(--ink)" in drawing and "font-family" not in drawing and "<style" not in drawing
    assert "KL, nats per image</text>" in drawing  # letters stay letters
    other = charts.svg(charts.kl_over_time(epochs, kept_epoch=2), "other")
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (drawing, other)]
    assert ids[0] and not ids[0] & ids[1]


def test_what_was_measured_stands_at_its_weight_on_the_expected_curve() -> None:
    weights = np.geomspace(0.01, 100, 5)
    figure = charts.expected_kl(weights, np.array([40, 30, 20, 5, 0]), collapse=30.0, weight=1.0, measured=25.0)
    curve, marker = figure.axes[0].lines[0], figure.axes[0].lines[-1]
    np.testing.assert_array_equal(curve.get_xdata(), weights)
    assert (list(marker.get_xdata()), list(marker.get_ydata())) == ([1.0], [25.0])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "collapse predicted" in labels and "measured: 25 nats" in labels
    bare = charts.expected_kl(weights, np.zeros(5), collapse=None, weight=0.0, measured=None)
    assert len(bare.axes[0].lines) == 1


def test_principal_components_find_the_direction_that_varies_most() -> None:
    random = np.random.default_rng(0)
    mu = random.normal(size=(500, 3)) * [1.0, 10.0, 0.1]
    points, shares = charts.principal_components(mu)
    assert shares == pytest.approx(np.array([100, 1]) / 101, rel=0.2)
    assert abs(np.corrcoef(points[:, 0], mu[:, 1])[0, 1]) > 0.999
    one, share_of_one = charts.principal_components(mu[:, 1:2])
    assert one.shape == (500, 2) and share_of_one.tolist() == [1.0, 0.0]


def test_the_heat_map_of_latents_is_sorted_by_the_last_epoch() -> None:
    epochs = pd.DataFrame({"epoch": [1, 2, 3], "z0": [5, 1, 0.1], "z1": [0, 1, 2], "z2": [0.2, math.nan, 1]})
    figure = charts.kl_over_time(epochs, kept_epoch=3)
    drawn = figure.axes[0].images[0]
    np.testing.assert_array_equal(drawn.get_array(), [[0, 1, 2], [0.2, 0, 1], [5, 1, 0.1]])
    assert list(drawn.get_extent()) == [0.5, 3.5, 3.5, 0.5] and drawn.get_clim() == (0, 5)
    assert charts.png(figure) == charts.png(charts.kl_over_time(epochs, kept_epoch=3))


def test_a_map_of_many_classes_names_the_most_frequent() -> None:
    labels = np.array([f"class {i % 38:02}" for i in range(380)] + ["_$\\alpha^ frequent"] * 30 + [None], dtype=object)
    figure = charts.latent_map(np.random.default_rng(0).normal(size=(len(labels), 4)), labels)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(names) == 11 and "30 other classes" in names and "no class" in names
    assert " _$\\alpha^ frequent" in names
    assert charts.png(figure) == charts.png(figure)
