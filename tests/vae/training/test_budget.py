"""Seconds become epochs."""

import itertools
from typing import Any

import pytest
import torch
from helpers.trainings import CPU, STEPS, TRAIN, VALID, params

from vae.training import budget
from vae.training.budget import epochs_within


@pytest.fixture
def a_second_for_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which the start, each step, validation and checkpoint take a second."""
    ticks = itertools.count()
    monkeypatch.setattr(budget.time, "perf_counter", lambda: float(next(ticks)))


@pytest.mark.parametrize("epochs", [1, 7, 100])
@pytest.mark.usefixtures("a_second_for_each_look")
def test_as_many_epochs_as_fit_with_the_measurement_at_the_end(epochs: int) -> None:
    needed = epochs * (STEPS + 2) + 1 + len(TRAIN) / len(VALID)  # 1: the start
    assert epochs_within(needed + 0.01, params(), TRAIN, VALID, CPU) == epochs
    assert epochs_within(needed - 0.01, params(), TRAIN, VALID, CPU) == epochs - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"train.optimizer": "adamw", "train.ema": 0.9},
        {"objective.likelihood": "bernoulli", "data.binarise": "dynamic", "objective.importance_samples_train": 3},
        {"train.batch_size": len(TRAIN)},
    ],
)
def test_the_clock_of_this_machine(changes: dict[str, Any]) -> None:
    """And the timed training leaves no trace in the real one."""
    state = torch.random.get_rng_state()
    few, many = (epochs_within(seconds, params(changes), TRAIN, VALID, CPU) for seconds in (1e-6, 1000.0))
    assert few == 0 and many > 10
    assert torch.equal(torch.random.get_rng_state(), state)
