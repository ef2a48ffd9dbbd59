from typing import Any

import pytest
from helpers.parameters import Changes, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.config.errors import InputError
from vae.config.resolved import (
    CONSTANT,
    FULL_BATCH,
    LEARNING_RATE,
    RAMP,
    ResolvedParameters,
    changed,
    resolve,
    usual_learning_rate,
)
from vae.schedules.kl import first_final_epoch, ramp


def test_numbers_stay_as_they_are() -> None:
    p = parse({"kl.max_weight": 0.5, "kl.annealing_epochs": 3, "train.epochs": 7, "train.learning_rate": 0.3})
    resolved = resolve(p, 3, weight=9.0)
    assert resolved.model_dump() == p.model_dump() and parse(resolved.model_dump()) == p
    assert resolve(resolved, 4) == resolved


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_learning_rate_by_rule_is_the_optimisers_and_grows_as_the_root_of_a_small_batch(optimizer: str) -> None:
    def rate(**more: Any) -> float:
        p = resolve(parse({"train.optimizer": optimizer} | {f"train.{name}": value for name, value in more.items()}), 1)
        assert resolve(p, 1) == p and usual_learning_rate(p.train) == p.train.learning_rate
        return p.train.learning_rate

    full = rate(batch_size=FULL_BATCH)
    assert full == rate(learning_rate_schedule="linear") == rate(batch_size=1024) == LEARNING_RATE[optimizer]
    assert rate(batch_size=FULL_BATCH // 4) == pytest.approx(full / 2)
    assert rate(batch_size=1) == pytest.approx(full / FULL_BATCH**0.5)
    assert rate(learning_rate_schedule="constant") == CONSTANT * rate() < rate()


@settings(deadline=None)
@given(st.integers(1, 2000), st.sampled_from(["linear", "cosine", "sigmoid", "cyclical"]))
def test_a_ramp_by_rule_is_a_share_of_the_training(epochs: int, schedule: str) -> None:
    p = resolve(parse({"train.epochs": epochs, "kl.schedule": schedule}), 9)
    assert p.kl.annealing_epochs == pytest.approx(RAMP * epochs) and 0 < RAMP < 0.5
    assert resolve(p, 9) == p
    in_steps = resolve(parse({"train.epochs": epochs, "kl.annealing_steps": 36}), 9)
    assert in_steps.kl.annealing_epochs == 4


def test_a_budget_is_the_epochs_that_preflight_found_and_the_ramp_follows_them() -> None:
    p = parse({"train.budget": 60.0, "train.epochs": 3})
    resolved = resolve(p, 5, epochs=8)
    assert (resolved.train.epochs, resolved.train.budget) == (8, None)
    assert resolved.kl.annealing_epochs == pytest.approx(8 * RAMP)
    assert resolve(parse({"train.budget": 60.0, "kl.annealing_epochs": 1}), 5, epochs=8).kl.annealing_epochs == 1
    assert resolve(resolved, 5) == resolved
    with pytest.raises(AssertionError, match="only preflight"):
        resolve(p, 5)


def test_a_calibrated_weight_is_the_one_that_preflight_found() -> None:
    p = parse({"kl.max_weight": "calibrated"})
    assert resolve(p, 1, 0.25).kl.max_weight == resolve(p, 1, 0.25).elbo.beta == 0.25
    with pytest.raises(AssertionError, match="only preflight"):
        resolve(p, 1)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 700), st.sampled_from(["linear", "cosine", "sigmoid"]))
def test_a_ramp_in_steps_ends_at_its_step(steps: int, per_epoch: int, schedule: str) -> None:
    p = parse({"kl.annealing_steps": steps, "kl.schedule": schedule, "train.epochs": 2})
    kl = resolve(p, per_epoch).kl

    def share(step: int) -> float:
        return ramp(kl, step / per_epoch, 2)

    assert share(0) == 0 and share(steps - 1) < share(steps) == share(steps + 1) == 1
    if schedule == "linear":
        assert share(steps // 2) == pytest.approx(steps // 2 / steps)
    assert first_final_epoch(kl, 2) * per_epoch == pytest.approx(steps)


def test_under_a_control_the_schedule_ends_at_the_elbo() -> None:
    scheduled, steered = (resolve(parse({"kl.max_weight": 20.0, **more}), 1) for more in ({}, {"kl.capacity": 3.0}))
    assert scheduled.elbo.beta == 20 and steered.elbo.beta == 1


def test_parameters_are_changed_by_name() -> None:
    p = resolve(parse({}), 1)
    other = changed(p, {"kl.max_weight": 2.0, "model.widths": [4], "train.patience": None})
    assert isinstance(other, ResolvedParameters) and changed(p, {}) == p
    assert other.kl.max_weight == 2 and other.model.widths == [4]
    assert changed(other, {"kl.max_weight": 1.0, "model.widths": p.model.widths}) == p


def test_what_was_left_to_a_rule_follows_a_change() -> None:
    """So that a restart with a remedy is the training that `params.yaml` with this remedy would be."""
    for change in ({"train.batch_size": 16}, {"train.epochs": 80}, {"train.learning_rate": 0.5}):
        p = parse({})
        asked, restarted = resolve(parse(change), 1), changed(resolve(p, 1), change)
        assert restarted == asked
        assert changed(restarted, {"train.epochs": 10}) == changed(asked, {"train.epochs": 10})
    own = resolve(parse({"kl.annealing_epochs": 5.0, "train.learning_rate": 0.1}), 1)
    kept = changed(own, {"train.batch_size": 16, "train.epochs": 80})
    assert (kept.kl.annealing_epochs, kept.train.learning_rate) == (5, 0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kl.bta": 1.0}, "kl.bta is not a parameter that can be changed"),
        ({"seed": 1}, "seed is not a parameter that can be changed"),
        ({"kl.max_weight": -1.0}, "the changed parameters: kl.max_weight = -1.0: "),
        ({"kl.max_weight": "calibrated"}, "kl.max_weight = 'calibrated': "),
        ({"train.learning_rate": "auto"}, "train.learning_rate = 'auto': "),
        ({"kl.annealing_epochs": "auto"}, "kl.annealing_epochs = 'auto': "),
        ({"train.budget": 9.0}, "train.budget = 9.0: "),
        ({"train.optimizer": "sgd"}, "train.optimizer = 'sgd': "),
        ({"train.batch_size": -1}, "train.batch_size = -1: "),
        ({"train.epochs": "many"}, "train.epochs = 'many': "),
        ({"kl.capacity": 1.0, "kl.free_bits": 0.1}, "cannot be combined"),
    ],
)
def test_changes_that_do_not_fit_are_refused(changes: Changes, words: str) -> None:
    with pytest.raises(InputError) as error:
        changed(resolve(parse({}), 1), changes)
    assert words in str(error.value) and "\n" not in str(error.value)
