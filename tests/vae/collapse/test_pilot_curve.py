"""The curve of a pilot: between its points, below them, beyond them, and of changed parameters."""

from typing import Any

import numpy as np
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


def test_it_is_the_measured_one_at_the_thresholds_of_lower_rates() -> None:
    curve = pilot(1.3)
    for index in (22, 26, 30):
        assert curve.measured_rates[index].mean() < 0.6
        np.testing.assert_allclose(curve.rates(THRESHOLDS[index]), curve.measured_rates[index])
    between = np.sqrt(THRESHOLDS[22] * THRESHOLDS[23])
    assert rate(curve, THRESHOLDS[23]) < rate(curve, between) < rate(curve, THRESHOLDS[22])
    assert rate(curve, THRESHOLDS[-1]) == rate(curve, 1e3) == 0


def test_below_a_rate_each_latent_that_lives_has_no_less_than_the_slope_more_for_each_e_fold() -> None:
    short = pilot(1.3)
    start = int(np.flatnonzero(short.measured_rates.mean(1) >= 0.6)[-1])
    short.measured_rates[:start] = short.measured_rates[start]  # it learns no more than that
    assert (short.measured_rates[start] > 0).tolist() == [True, True, False]
    one, five = (short.rates(THRESHOLDS[start] / np.e**e_folds) for e_folds in (1, 5))
    np.testing.assert_allclose(five - one, 4 * 0.55 * np.array([1, 1, 0]))
    # The growth begins where they carry 0.6 nats on average, between two thresholds.
    grown = short.rates(THRESHOLDS[start]) - short.rates(THRESHOLDS[start + 1])
    assert (grown[:2] > 0).all() and short.rates(THRESHOLDS[start]).mean() >= 0.6


def test_a_pilot_that_learns_more_than_the_slope_counts() -> None:
    curve = pilot(1.3)
    long = 2 * curve.measured_rates
    learnt = PilotCurve(SPECTRUM, THRESHOLDS, long, curve.measured_error, model=MODEL)
    np.testing.assert_allclose(learnt.rates(THRESHOLDS[0]), long[0])


def test_of_a_linear_network_it_is_linear_theory_with_up_to_a_tenth_more_in_each_latent_that_lives() -> None:
    curve = pilot()
    for s in np.geomspace(0.001, 7, 40):
        linear = SPECTRUM.rates(s).sum()
        assert linear - 0.03 <= rate(curve, s) <= 1.1 * linear + 0.03
        at = np.array([s])
        assert 0.85 * SPECTRUM.error(at)[0] <= curve.error(at)[0] <= 1.03 * SPECTRUM.error(at)[0]


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


def test_the_critical_threshold_is_where_all_latents_die() -> None:
    curve = pilot(0.5)
    assert 4.0 < curve.critical < 4.0 * THRESHOLDS[1] / THRESHOLDS[0]
    alive = PilotCurve(SPECTRUM, THRESHOLDS, curve.measured_rates + 1.0, curve.measured_error, model=MODEL)
    assert alive.critical == THRESHOLDS[-1]


def test_of_a_bernoulli_likelihood_the_total_is_the_cross_entropy_of_the_mean_image() -> None:
    nats = np.linspace(20.0, 27.0, len(THRESHOLDS))
    assert PilotCurve(SPECTRUM, THRESHOLDS, pilot().measured_rates, nats, "bernoulli", MODEL).total == 27
    assert pilot().total == min(SPECTRUM.total, float(SPECTRUM.error(THRESHOLDS[-1:])[0]))
