"""The curve of a pilot: between its points, below them, beyond them, and of changed parameters."""

from typing import Any

import numpy as np
import pytest
from helpers.trainings import params, unresolved

from vae.collapse.linear_theory import Spectrum
from vae.collapse.pilot_curve import PilotCurve, curve_of

SPECTRUM = Spectrum(np.array([8.0, 4.0, 0.4]), 14.0, 64, 1000)
THRESHOLDS = np.geomspace(0.05, 10.4, 33)
MODEL: dict[str, Any] = unresolved().model.model_dump(include={"architecture", "latent_dim", "widths", "batch_norm"})


def pilot(factor: float = 1.0, **more: Any) -> PilotCurve:
    """Of a network whose every latent has this many times the variance that linear theory says."""
    spectrum = Spectrum(factor * SPECTRUM.eigenvalues, 14.0, 64, 1000)
    rates = np.array([spectrum.rates(s) for s in THRESHOLDS])
    return PilotCurve(SPECTRUM, THRESHOLDS, rates, SPECTRUM.error(THRESHOLDS), model=MODEL, **more)


def rate(curve: PilotCurve, s: float) -> float:
    return float(curve.rates(s).sum())


def test_it_is_the_measured_one_at_the_measured_thresholds() -> None:
    curve = pilot(1.3)
    for index in (10, 20, 30):
        np.testing.assert_allclose(curve.rates(THRESHOLDS[index]), curve.measured_rates[index])
    between = np.sqrt(THRESHOLDS[20] * THRESHOLDS[21])
    assert rate(curve, THRESHOLDS[21]) < rate(curve, between) < rate(curve, THRESHOLDS[20])
    assert rate(curve, THRESHOLDS[-1]) == rate(curve, 1e3) == 0


def test_below_its_range_each_latent_has_half_a_nat_more_for_each_e_fold() -> None:
    curve = pilot(1.3)
    lowest = rate(curve, 0.05)
    assert rate(curve, 0.05 / np.e**2) == pytest.approx(lowest + 3, abs=1e-6)


def test_where_all_latents_live_a_linear_vae_counts_if_it_has_more() -> None:
    weak = pilot(0.5)
    assert rate(weak, 0.01) == pytest.approx(SPECTRUM.rates(0.01).sum())
    assert rate(weak, 1.0) < SPECTRUM.rates(1.0).sum()
    autoregressive = PilotCurve(
        SPECTRUM, THRESHOLDS, weak.measured_rates, weak.measured_error,
        model=MODEL | {"architecture": "autoregressive"},
    )  # fmt: skip
    assert rate(autoregressive, 0.01) < SPECTRUM.rates(0.01).sum()


def test_of_a_linear_network_it_is_linear_theory() -> None:
    curve = pilot()
    s = np.geomspace(0.001, 7, 40)
    np.testing.assert_allclose(curve.error(s), SPECTRUM.error(s), rtol=0.03)
    for at in s:
        assert rate(curve, at) == pytest.approx(SPECTRUM.rates(at).sum(), rel=0.03, abs=0.03)


def test_the_error_falls_as_the_rate_rises_and_never_below_a_share_of_the_measured_one() -> None:
    curve = pilot(3.0)  # many more nats than its error explains
    s = np.geomspace(1e-4, 20, 200)
    error = curve.error(s)
    assert (np.diff(error) >= 0).all() and error.min() >= 0.4 * curve.measured_error.min()
    assert error[-1] <= curve.total == 14.0


def test_a_report_gives_it_back() -> None:
    curve = pilot(1.3)
    back = curve_of(curve.facts(), 64)
    assert isinstance(back, PilotCurve) and back.source == "the pilot"
    for s in (0.003, 0.4, 3.0):
        np.testing.assert_allclose(back.rates(s), curve.rates(s))
    assert curve_of(SPECTRUM.facts(), 64).source == "linear theory"


def test_of_a_changed_network_linear_theory_speaks() -> None:
    curve = pilot()
    assert curve.of(params({"kl.max_weight": 9.0, "objective.sigma": 0.1, "train.epochs": 3})) is curve
    for change in ({"model.latent_dim": 2}, {"model.widths": [4]}, {"model.batch_norm": False}):
        assert curve.of(params(change)).source == "linear theory"
