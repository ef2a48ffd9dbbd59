import pytest
from helpers.parameters import Changes, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, changed, resolve
from vae.schedules.kl import first_final_epoch, ramp


def test_numbers_stay_as_they_are() -> None:
    p = parse({"kl.max_weight": 0.5, "train.epochs": 7})
    resolved = resolve(p, 3, calibrated_weight=9.0)
    assert resolved.model_dump() == p.model_dump()
    assert resolve(resolved, 4) == resolved


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kl.bta": 1.0}, "kl.bta is not a parameter that can be changed"),
        ({"seed": 1}, "seed is not a parameter that can be changed"),
        ({"kl.max_weight": -1.0}, "the changed parameters: kl.max_weight = -1.0: "),
        ({"kl.max_weight": "calibrated"}, "kl.max_weight = 'calibrated': "),
        ({"kl.capacity": 1.0, "kl.free_bits": 0.1}, "cannot be combined"),
    ],
)
def test_changes_that_do_not_fit_are_refused(changes: Changes, words: str) -> None:
    with pytest.raises(InputError) as error:
        changed(resolve(parse({}), 1), changes)
    assert words in str(error.value) and "\n" not in str(error.value)
