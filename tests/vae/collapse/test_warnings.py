"""Warnings of a schedule that is long above the collapse weight, and of a controller that may go there."""

import math
from typing import Any

import numpy as np
import pytest
from helpers.parameters import Changes
from helpers.trainings import TRAIN, params, unresolved

from vae.collapse.expectations import expectations
from vae.collapse.kl_weights import of_rate as collapse_weight
from vae.collapse.linear_theory import spectrum
from vae.collapse.pilot_curve import PilotCurve
from vae.collapse.rate_distortion import predict
from vae.collapse.warnings import schedule_above, warnings
from vae.config.resolved import RAMP

SPECTRUM = spectrum(TRAIN, 3, bernoulli=False)
COLLAPSE = collapse_weight(params(), SPECTRUM)
CYCLICAL, AUTO = {"kl.schedule": "cyclical"}, {"kl.annealing_epochs": "auto", "train.epochs": 40}


def warned(changes: Changes) -> str:
    """The warnings, one per line."""
    p = unresolved(changes)
    return "\n".join(warnings(p, expectations(p, p.kl.max_weight, SPECTRUM), SPECTRUM))


def above(changes: Changes) -> list[float | None]:
    """Share of a cycle above the collapse weight, epoch and step at which a ramp crosses it."""
    p = unresolved(changes)
    return list(schedule_above(p, p.kl.max_weight, COLLAPSE).values())


@pytest.mark.parametrize(("ratio", "times", "share"), [(0.5, 2, 0.75), (1.0, 4, 0.75), (0.8, 2, 0.6)])
def test_a_cycle_that_is_long_above(ratio: float, times: float, share: float) -> None:
    changes = {**CYCLICAL, "kl.max_weight": times * COLLAPSE, "kl.ratio": ratio}
    assert above(changes) == [pytest.approx(share), None, None]
    assert f"spends {share:.0%} of each cycle" in warned(changes) and "lower kl.max_weight" in warned(changes)
    assert warned({**changes, "train.epochs": 3}) == warned({**changes, "train.epochs": 90}) == warned(changes)


def test_the_ratio_that_it_names_is_enough() -> None:
    changes = {**CYCLICAL, "kl.max_weight": 1.5 * COLLAPSE}
    assert "kl.ratio = 0.75 would make it half" in warned(changes)
    assert above({**changes, "kl.ratio": 0.75})[0] == pytest.approx(0.5)
    assert "of each cycle" not in warned({**changes, "kl.ratio": 0.76})
    # no ratio is long enough
    assert "kl.ratio" not in warned({**changes, "kl.max_weight": 4 * COLLAPSE})


@pytest.mark.parametrize(
    ("changes", "times", "crosses", "words"),
    [
        ({"kl.annealing_epochs": 10}, 4, [None, 2.5, None], "the ramp crosses it after 2.5 of 10 epochs"),
        (AUTO, 4, [None, 10 * RAMP, None], f"the ramp crosses it after {10 * RAMP:g} of {40 * RAMP:g} epochs"),
        ({"kl.annealing_steps": 1000}, 4, [None, None, 250], "the ramp crosses it at step 250 of 1000"),
        ({"kl.schedule": "constant"}, 4, [None, None, None], "POSTERIOR COLLAPSE AHEAD"),
        ({}, 0.5, [None, None, None], ""),
        (CYCLICAL, 0.9, [0, None, None], ""),
    ],
)
def test_where_a_ramp_crosses_collapse(changes: Changes, times: float, crosses: list, words: str) -> None:
    changes = {**changes, "kl.max_weight": times * COLLAPSE}
    assert above(changes) == [None if c is None else pytest.approx(c) for c in crosses]
    assert words in warned(changes) and bool(words) is bool(warned(changes))
    assert ("crosses" in warned(changes)) is ("crosses" in words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.architecture": "autoregressive"}, "the latents may die at a far lower kl.max_weight"),
        ({"model.prior": "vamp"}, "model.prior = vamp: the predicted KL is that against N(0, I)"),
        ({"objective.sigma": 0.001}, "the KL term hardly counts"),
        ({"objective.likelihood": "bernoulli"}, "a Bernoulli likelihood on grey pixels is not normalised"),
        ({"model.latent_dim": 20}, "model.latent_dim = 20 for 70 training images"),
        (
            {"kl.capacity": 0.5, "kl.max_weight": 1e3},
            "the target of the control (kl.capacity) leaves a KL of only 0.5 nats",
        ),
    ],
)
def test_other_predictions_to_distrust(changes: Changes, words: str) -> None:
    assert words in warned(changes) and words not in warned({})


def test_a_controller_whose_bounds_do_not_fit_its_set_point() -> None:
    needed = collapse_weight(params(), SPECTRUM, nats=2.5)
    assert predict(SPECTRUM, params({"kl.max_weight": needed}).elbo).kl == pytest.approx(2.5, rel=1e-3)
    assert needed < COLLAPSE
    room = (needed + COLLAPSE) / 2

    def of(highest: float, lowest: float = 0.0) -> str:
        return warned({"kl.target_kl": 2.5, "kl.max_weight": highest, "kl.min_weight": lowest})

    assert of(room) == ""
    assert of(2 * COLLAPSE) == of(1e6) == ""  # its steps are relative: it does not overshoot
    assert "raise kl.max_weight" in of(0.5 * needed)
    assert "lower kl.min_weight" in of(room, 1.1 * needed)
    assert above({"kl.target_kl": 2.5, "kl.max_weight": room}) == [None, None, None]


def predicted(changes: Changes) -> dict[str, Any]:
    p = unresolved(changes)
    return expectations(p, p.kl.max_weight, SPECTRUM)


def test_a_capacity_whose_weight_does_not_hold_the_rate_down() -> None:
    """Where the next nat is worth γ, D + γ·|R − C| pulls no further down."""
    at_weight = predicted({"kl.max_weight": 2.0})["predicted_kl"]
    out, within = ({"kl.capacity": times * at_weight, "kl.max_weight": 2.0} for times in (0.9, 1.1))
    assert "raise kl.max_weight" in warned(out) and warned(within) == ""
    assert predicted(out)["predicted_kl"] == pytest.approx(at_weight)
    assert predicted(within)["predicted_kl"] == pytest.approx(1.1 * at_weight)
    named = float(warned(out).rsplit(maxsplit=1)[1])
    assert warned({**out, "kl.max_weight": named}) == ""
    needed = predicted(out)["target_kl_weight"]
    assert predicted({"kl.max_weight": needed})["predicted_kl"] == pytest.approx(0.9 * at_weight)


def test_an_error_that_these_latents_cannot_reach() -> None:
    smallest = math.sqrt(SPECTRUM.rest / SPECTRUM.pixels)
    for times, reachable in ((0.99, False), (1.01, True)):
        changes = {"kl.reconstruction_target": times * smallest, "objective.sigma": "learned"}
        found = predicted(changes)
        assert (found["predicted_kl"] is not None) is reachable
        assert ("is out of reach of 3 latents" in warned(changes)) is not reachable
        assert reachable or f"{smallest:.3g}" in warned(changes)


ABOVE = {"kl.max_weight": 3 * COLLAPSE}


@pytest.mark.parametrize(
    ("changes", "nats", "name"),
    [
        ({"kl.free_bits": 0.5}, 1.5, "kl.free_bits = 0.5"),
        ({"kl.free_bits_total": 2.0}, 2.0, "kl.free_bits_total = 2"),
        ({"model.mean_batch_norm": 1.5}, 3 * 1.5**2 / 2, "model.mean_batch_norm = 1.5"),
        ({"model.logvar_max": -2.0}, 1.5 * (math.exp(-2) + 1), "model.logvar_max = -2"),
        (
            {"model.logvar_max": -2.0, "model.mean_batch_norm": 1.0},
            1.5 * (math.exp(-2) + 2),
            "model.mean_batch_norm = 1 and model.logvar_max = -2",
        ),
    ],
)
def test_a_rate_that_no_weight_takes_away_is_no_collapse(changes: Changes, nats: float, name: str) -> None:
    assert "POSTERIOR COLLAPSE AHEAD" in warned(ABOVE)
    assert predicted(ABOVE | changes)["predicted_kl"] == pytest.approx(nats)
    assert "COLLAPSE" not in warned(ABOVE | changes) and f"{name} keeps" in warned(ABOVE | changes)
    assert predicted(changes)["predicted_kl"] >= predicted({})["predicted_kl"]  # where the weight is low, no less


def test_a_rate_below_the_one_that_the_network_keeps() -> None:
    changes = {"kl.target_kl": 0.5, "kl.max_weight": 1e3, "model.mean_batch_norm": 1.0}
    assert "kl.target_kl = 0.5 nats is below the 1.5 nats that model.mean_batch_norm = 1 keeps" in warned(changes)
    assert predicted(changes)["predicted_kl"] == pytest.approx(1.5)


def test_sigma_does_not_matter_to_a_controller() -> None:
    assert "the KL term hardly counts" in warned({"objective.sigma": 0.001})
    assert warned({"kl.target_kl": 5.0, "kl.max_weight": 1e6, "objective.sigma": 0.001}) == ""


def test_a_weight_above_linear_theorys_collapse_and_below_the_pilots_is_in_doubt() -> None:
    """As of images that form clusters: a pilot carries on where a training of one weight does not get started."""
    s = np.geomspace(0.05, 1.3 * SPECTRUM.critical, 33)
    optimist = np.array([6 * SPECTRUM.rates(at) + 0.5 for at in s])
    curve = PilotCurve(SPECTRUM, s, optimist, SPECTRUM.error(s))

    def found(weight: float) -> str:
        p = unresolved({"kl.max_weight": weight})
        return "\n".join(warnings(p, expectations(p, weight, curve), curve))

    assert found(1.4 * COLLAPSE) == ""
    assert f"between the collapse weights of linear theory, {COLLAPSE:.3g}" in found(1.6 * COLLAPSE)
    assert "AHEAD" not in found(1.6 * COLLAPSE)


def test_no_weight_to_stay_below_is_told_where_there_is_none() -> None:
    s = np.geomspace(0.05, 1.3 * SPECTRUM.critical, 33)
    dead = PilotCurve(SPECTRUM, s, np.zeros((33, 3)), SPECTRUM.error(s))
    p = unresolved({"model.architecture": "autoregressive"})
    ahead, depends = warnings(p, expectations(p, 1.0, dead), dead)
    assert ahead == "POSTERIOR COLLAPSE AHEAD: the pilot expects a KL of less than 1 nat at any KL weight"
    assert "at a far lower kl.max_weight than the pilot says" in depends
