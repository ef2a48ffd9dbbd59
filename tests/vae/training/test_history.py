"""Which epoch is kept, and when training stops, on histories written by hand."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.config.parameters import Parameters
from vae.config.sections import KL, Objective, Train
from vae.schedules.kl import first_final_epoch
from vae.training.history import (
    ALARM_NATS,
    COLUMNS,
    Row,
    at_final_weight,
    chosen_epoch,
    ends_collapsed,
    is_collapse,
    is_off_target,
    why_stop,
)


def params(kl: dict[str, Any] | None = None, **train: Any) -> Parameters:
    kl = {"annealing_epochs": 3, **(kl or {})}
    return Parameters(kl=KL(**kl), train=Train(**{"epochs": 20, **train}))


def rows(losses: list[float], steps: int = 50, **columns: list[float]) -> list[Row]:
    return [
        dict.fromkeys(COLUMNS, 1.0)
        | {"epoch": epoch, "step": epoch * steps, "valid/loss": loss, "valid/kl": 10.0, "valid/active_units": 3}
        | {name: values[epoch - 1] for name, values in columns.items()}
        for epoch, loss in enumerate(losses, 1)
    ]


def test_an_epoch_counts_only_if_all_of_it_was_at_the_final_weight() -> None:
    whole, half = params(), params({"annealing_epochs": 2.5})
    assert [at_final_weight(row, whole) for row in rows([0] * 5)] == [False, False, False, True, True]
    assert [at_final_weight(row, half) for row in rows([0] * 5)] == [False, False, False, True, True]
    assert at_final_weight(rows([0])[0], params({"schedule": "constant"}))
    cyclical = params({"schedule": "cyclical", "cycles": 2, "ratio": 0.5}, epochs=8)
    assert [at_final_weight(row, cyclical) for row in rows([0] * 8)] == [False] * 6 + [True] * 2


def test_the_last_epoch_is_kept_where_that_is_asked_for_if_all_of_it_is_finite() -> None:
    assert chosen_epoch(rows([1, 0.5, 0.1, 9, 7, 8]), params(select="last")) == 6
    assert chosen_epoch(rows([5, 5, 5, 4, 3, math.nan]), params(select="last")) == 5
    hidden = rows([5, 5, 5, 4, 3], **{"train/loss": [1, 1, 1, 1, math.nan]})
    assert chosen_epoch(hidden, params()) == chosen_epoch(hidden, params(select="last")) == 4


@settings(deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=20),
    st.floats(0, 25),
    st.sampled_from(["linear", "cosine", "constant", "cyclical"]),
)
def test_what_is_kept_is_the_best_of_those_allowed(losses: list[float], ramp: float, schedule: str) -> None:
    p = params({"annealing_epochs": ramp, "schedule": schedule})
    kept = chosen_epoch(rows(losses), p)
    finite = [epoch for epoch, loss in enumerate(losses, 1) if math.isfinite(loss)]
    final = [epoch for epoch in finite if epoch - 1 >= first_final_epoch(p.kl, 20)]
    if final:
        assert kept in final and losses[kept - 1] == min(losses[epoch - 1] for epoch in final)
    else:
        assert kept == (finite[-1] if finite else 0)


def test_a_number_that_is_not_finite_stops_at_once() -> None:
    assert "diverged" in (why_stop(rows([1, math.nan]), params()) or "")
    assert "epoch 2" in (why_stop(rows([1, math.inf]), params(on_collapse="continue")) or "")
    assert why_stop([], params()) is None


def with_rates(rates: list[float], losses: list[float]) -> list[Row]:
    return rows(losses, **{"valid/kl": rates})


@pytest.mark.parametrize("control", ["capacity", "target_kl"])
def test_the_best_epoch_of_a_control_is_one_that_meets_its_target(control: str) -> None:
    """On the way down to its target, a rate gives a better loss than at it."""
    p = params({control: 5.0, "max_weight": 20.0, "annealing_epochs": 0}, patience=3)
    history = with_rates([19.0, 8.0, 5.9, 4.2, 4.1, 5.1], [1, 2, 3, 2.5, 2.6, 2.8])
    assert chosen_epoch(history, p) == 4
    assert chosen_epoch(history[:2], p) == 2  # none meets it: the last
    assert [why_stop(history[:n], p) is None for n in range(1, 7)] == [True] * 6
    assert "since epoch 4" in (why_stop(with_rates([5.0] * 7, [3, 3, 3, 1, 2, 2, 2]), p) or "")


def test_a_rate_that_only_passes_through_its_target_meets_it_no_more() -> None:
    """Digits with a target of 20 nats and too low a bound of the weight: 20.2 in epoch 1, 48.2 in the end."""
    p = params({"target_kl": 20.0, "annealing_epochs": 0}, patience=3)
    history = with_rates([20.2, 31.0, 42.0, 48.0, 48.2], [1, 2, 3, 4, 5])
    assert [chosen_epoch(history[:n], p) for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert why_stop(history, p) is None, "there is no best epoch to be patient after"
    back = [*history, *rows([9.0] * 6, **{"valid/kl": [20.0] * 6})[5:]]
    assert chosen_epoch(back, p) == 6


def test_an_error_is_off_target_only_above_it() -> None:
    p = Parameters(kl=KL(reconstruction_target=0.1), objective=Objective(sigma=0.1))
    for error, off in ((0.02, False), (0.109, False), (0.112, True)):
        assert is_off_target(rows([1.0], **{"valid/mse_sampled": [error**2]}), p) is off
    assert not is_off_target(rows([1.0]), params())


def test_patience_waits_for_the_ramp_and_counts_from_the_best_after_it() -> None:
    p = params(patience=2)
    losses = [0.1, 0.2, 0.3, 9, 8, 8.5, 8.1, 7]
    stops = [why_stop(rows(losses[:length]), p) is not None for length in range(1, 9)]
    assert stops == [False] * 6 + [True, False]
    assert "since epoch 5" in (why_stop(rows(losses[:7]), p) or "")
    assert why_stop(rows(losses[:7]), params()) is None


def collapsing(epochs: int, healthy: int = 0, steps: int = 50) -> list[Row]:
    kl = [10.0] * healthy + [0.01] * (epochs - healthy)
    return rows([1.0] * epochs, steps, **{"valid/kl": kl})


def test_the_alarm_wants_two_epochs_in_a_row_at_the_final_weight() -> None:
    stops = [why_stop(collapsing(length), params()) for length in range(1, 6)]
    assert [stop is not None for stop in stops] == [False] * 4 + [True]
    assert "collapsed" in (stops[-1] or "") and "after 2 epochs at the final weight" in (stops[-1] or "")
    assert why_stop(collapsing(5, healthy=4), params()) is None
    assert why_stop(collapsing(6, healthy=4), params()) is not None
    assert why_stop(collapsing(5), params(on_collapse="continue")) is None
    recovered = collapsing(5)
    recovered[-1]["valid/kl"] = 50.0
    assert why_stop(recovered, params()) is None


def test_the_alarm_wants_a_hundred_steps_there() -> None:
    # a ramp of 3 epochs; 30 steps an epoch: the fourth epoch at the final weight is the first past 100
    stops = [why_stop(collapsing(length, steps=30), params()) is not None for length in range(1, 9)]
    assert stops == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    ("kl", "active", "stops"),
    [
        # less than a tenth of a nat, or no active unit
        ([0.099, 0.099], [5, 5], True),
        ([0.1, 0.1], [5, 5], False),
        ([50.0, 50.0], [0, 0], True),
        ([50.0, 50.0], [1, 1], False),
        ([0.02, 0.022], [1, 1], False),  # grows by a tenth: a slow starter
        ([0.02, 0.0209], [1, 1], True),  # by less than a twentieth
        ([0.02, 0.01], [1, 1], True),
        ([0.02, 0.022], [1, 0], True),  # growing, and of no use to any latent
        ([0.09, 0.11], [0, 1], False),
        ([5.0, 0.09], [1, 1], False),  # one epoch is none
    ],
)
def test_what_rings_the_alarm_over_two_epochs(kl: list[float], active: list[float], stops: bool) -> None:
    history = rows([1.0] * 5, **{"valid/kl": [0.0] * 3 + kl, "valid/active_units": [0, 0, 0, *active]})
    assert is_collapse(history[-2:], ALARM_NATS) is stops
    assert (why_stop(history, params()) is not None) is stops


def test_a_training_just_below_the_collapse_weight_may_come_back() -> None:
    # digits at a weight of 26, epochs 8, 9, 11, 12 and 20
    kl = [0.457, 0.372, 0.657, 0.59, 1.04]
    histories = [rows([1.0] * (3 + n), **{"valid/kl": [5.0] * 3 + kl[:n]}) for n in range(1, len(kl) + 1)]
    assert [why_stop(history, params()) for history in histories] == [None] * len(kl)
    assert [ends_collapsed(history, params()) for history in histories] == [False, True, False, True, False]
