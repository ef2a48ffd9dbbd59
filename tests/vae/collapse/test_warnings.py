"""What preflight says of a schedule that is long above the collapse weight, and of a controller that may go there."""

from typing import Any

import numpy as np
import pytest
from helpers.trainings import TRAIN, params
from vae.losses.objective import Objective

from tasks.preflight import predicted
from vae.collapse import linear_theory

SPECTRUM = linear_theory.spectrum(TRAIN, 3, bernoulli=False)
COLLAPSE = linear_theory.collapse_weight(SPECTRUM, Objective.of(params()))


def result(**changes: Any) -> dict[str, Any]:
    p = params({f"kl.{name}": value for name, value in changes.items()})
    return predicted(p, SPECTRUM)


def told(found: dict[str, Any], words: str) -> bool:
    return any(words in warning for warning in found["warnings"])


@pytest.mark.parametrize(("ratio", "times", "share"), [(0.5, 2, 0.75), (1.0, 4, 0.75), (0.8, 2, 0.6)])
def test_a_cycle_that_is_long_above_is_told(ratio: float, times: float, share: float) -> None:
    found = result(schedule="cyclical", max_weight=times * COLLAPSE, ratio=ratio)
    assert found["share_above_collapse"] == pytest.approx(share)
    assert told(found, f"spends {share:.0%} of each cycle") and told(found, "lower kl.max_weight")


def test_the_ratio_that_it_names_is_enough() -> None:
    assert told(
        result(schedule="cyclical", max_weight=1.5 * COLLAPSE), "kl.ratio = 0.75 would make it a half"
    )
    after = result(schedule="cyclical", max_weight=1.5 * COLLAPSE, ratio=0.75)
    assert after["share_above_collapse"] == pytest.approx(0.5)
    assert not told(result(schedule="cyclical", max_weight=1.5 * COLLAPSE, ratio=0.76), "of each cycle")
    assert not told(
        result(schedule="cyclical", max_weight=4 * COLLAPSE), "kl.ratio"
    )  # no ratio is long enough


def test_a_cycle_below_is_not_told() -> None:
    found = result(schedule="cyclical", max_weight=0.9 * COLLAPSE)
    assert found["share_above_collapse"] == 0 and found["warnings"] == []


def test_where_a_ramp_crosses_the_collapse_weight() -> None:
    epochs = result(max_weight=4 * COLLAPSE, annealing_epochs=10)
    assert epochs["epoch_of_collapse_weight"] == pytest.approx(2.5)
    assert epochs["step_of_collapse_weight"] is None and epochs["share_above_collapse"] is None
    assert told(epochs, "the ramp crosses it after 2.5 of 10 epochs")
    steps = result(max_weight=4 * COLLAPSE, annealing_epochs=10, annealing_steps=1000)
    assert (
        steps["step_of_collapse_weight"] == pytest.approx(250) and steps["epoch_of_collapse_weight"] is None
    )
    assert told(steps, "the ramp crosses it at step 250 of 1000")
    below = result(max_weight=0.5 * COLLAPSE)
    assert below["epoch_of_collapse_weight"] is below["step_of_collapse_weight"] is None
    constant = result(max_weight=4 * COLLAPSE, schedule="constant")
    assert told(constant, "POSTERIOR COLLAPSE AHEAD") and not told(constant, "crosses")


def test_the_length_of_the_training_changes_nothing() -> None:
    changes = {"kl.schedule": "cyclical", "kl.max_weight": 2 * COLLAPSE}
    one, other = (predicted(p, SPECTRUM) for p in (params({**changes, "train.epochs": n}) for n in (3, 90)))
    np.testing.assert_equal(one, other)


def test_a_decoder_that_sees_pixels_is_told() -> None:
    words = "the latents may die at a far lower kl.max_weight"
    assert not told(result(), words)
    p = params({"model.architecture": "autoregressive"})
    assert told(predicted(p, SPECTRUM), words)


def test_a_controller_is_told_of_bounds_that_its_set_point_does_not_fit() -> None:
    needed = linear_theory.collapse_weight(SPECTRUM, Objective.of(params()), nats=2.5)
    assert linear_theory.predict(SPECTRUM, Objective.of(params()), needed).kl == pytest.approx(2.5, rel=1e-3)
    assert needed < COLLAPSE
    room = (needed + COLLAPSE) / 2
    assert result(target_kl=2.5, max_weight=room)["warnings"] == []
    assert told(result(target_kl=2.5, max_weight=2 * COLLAPSE), "lets the controller overshoot beyond")
    assert told(result(target_kl=2.5, max_weight=0.5 * needed), "raise kl.max_weight")
    assert told(result(target_kl=2.5, max_weight=room, min_weight=1.1 * needed), "lower kl.min_weight")
    assert result(target_kl=2.5, max_weight=room)["share_above_collapse"] is None
