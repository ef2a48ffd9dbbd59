import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vae.config.parameters import KL
from vae.schedules.kl import first_final_epoch, kl_weight, ramp_share, share_above

SCHEDULES = ("constant", "linear", "cosine", "sigmoid", "cyclical")
ROUNDING = 1e-9


def kl(schedule: str = "linear", annealing_epochs: float = 5, max_weight: float = 2.0, **more: object) -> KL:
    return KL.model_validate(
        {"schedule": schedule, "max_weight": max_weight, "annealing_epochs": annealing_epochs, **more}
    )


schedules = st.builds(
    kl,
    schedule=st.sampled_from(SCHEDULES),
    annealing_epochs=st.one_of(st.just(0), st.integers(1, 60), st.floats(0.01, 60)),
    max_weight=st.floats(0, 1000),
    cycles=st.integers(1, 8),
    ratio=st.floats(0.05, 1),
)
lengths = st.integers(1, 50)


@pytest.mark.parametrize(
    ("schedule", "quarter", "half"),
    [
        ("linear", 0.25, 0.5),
        ("cosine", (1 - math.sqrt(0.5)) / 2, 0.5),
        ("sigmoid", (1 / (1 + math.e**3) - 1 / (1 + math.e**6)) / (1 - 2 / (1 + math.e**6)), 0.5),
    ],
)
def test_ramps(schedule: str, quarter: float, half: float) -> None:
    ramp = kl(schedule, annealing_epochs=8)
    shares = [kl_weight(ramp, epoch, 20) / 2.0 for epoch in (0, 2, 4, 6, 8, 8.01, 20)]
    assert shares == pytest.approx([0, quarter, half, 1 - quarter, 1, 1, 1], abs=1e-12)


def test_a_step_is_a_fraction_of_an_epoch() -> None:
    weights = [kl_weight(kl(annealing_epochs=0.5, max_weight=1.0), step / 8, 3) for step in range(6)]
    assert weights == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "sigmoid"])
def test_without_annealing_the_weight_is_full_from_the_first_step(schedule: str) -> None:
    assert kl_weight(kl(schedule, annealing_epochs=0), 0.0, 10) == 2.0
    assert first_final_epoch(kl(schedule, annealing_epochs=0), 10) == 0


def test_constant_ignores_the_ramp() -> None:
    assert {kl_weight(kl("constant"), epoch / 4, 10) for epoch in range(41)} == {2.0}
    assert first_final_epoch(kl("constant"), 10) == 0


def test_cyclical_starts_again_in_every_cycle() -> None:
    cyclical = kl("cyclical", max_weight=1.0, cycles=4, ratio=0.5)
    shares = [kl_weight(cyclical, epoch, 16) for epoch in range(17)]
    assert shares == pytest.approx([0, 0.5, 1, 1] * 4 + [1])
    assert first_final_epoch(cyclical, 16) == 14


@settings(deadline=None)
@given(st.integers(1, 6), st.floats(0.1, 0.9), st.integers(5, 40))
def test_cyclical_ramps_over_its_ratio_of_each_cycle(cycles: int, ratio: float, epochs: int) -> None:
    cyclical = kl("cyclical", cycles=cycles, ratio=ratio)
    for cycle in range(cycles):
        for part in (0.1, 0.5, 0.9):
            start, length = cycle * epochs / cycles, epochs / cycles
            assert kl_weight(cyclical, start + part * ratio * length, epochs) == pytest.approx(2.0 * part)
            after = start + (ratio + part * (1 - ratio)) * length
            assert kl_weight(cyclical, after, epochs) == pytest.approx(2.0)


@settings(deadline=None)
@given(schedules, lengths, st.floats(0, 120))
def test_the_weight_is_between_nothing_and_its_maximum(ramp: KL, epochs: int, epoch: float) -> None:
    assert 0 <= kl_weight(ramp, epoch, epochs) <= ramp.max_weight


@settings(deadline=None)
@given(schedules, lengths, st.floats(0, 120), st.floats(0, 120))
def test_a_ramp_never_falls(ramp: KL, epochs: int, one: float, other: float) -> None:
    assume(ramp.schedule != "cyclical")
    earlier, later = (kl_weight(ramp, epoch, epochs) for epoch in sorted((one, other)))
    assert earlier <= later + ROUNDING * ramp.max_weight


@settings(deadline=None)
@given(schedules, lengths, st.floats(0, 1))
def test_from_the_first_final_epoch_on_the_weight_is_full_and_never_before(
    ramp: KL, epochs: int, share: float
) -> None:
    final = first_final_epoch(ramp, epochs)
    after = final + share * max(epochs - final, 0)
    assert kl_weight(ramp, after, epochs) == pytest.approx(ramp.max_weight, rel=ROUNDING)
    if final > 0 and ramp.max_weight > 0.01:
        assert kl_weight(ramp, final * (1 - 1e-3), epochs) < ramp.max_weight


ramps = st.builds(
    kl,
    schedule=st.sampled_from(("linear", "cosine", "sigmoid", "cyclical")),
    cycle_shape=st.sampled_from(("linear", "cosine", "sigmoid")),
    annealing_epochs=st.floats(0.5, 60),
    cycles=st.integers(1, 8),
    ratio=st.floats(0.05, 1),
)


@settings(deadline=None)
@given(ramps, st.floats(0.001, 0.999))
def test_the_share_of_a_ramp_is_where_the_weight_is_reached(ramp: KL, part: float) -> None:
    t = ramp_share(ramp, part * ramp.weight)
    assert t is not None
    length = ramp.ratio * 24 / ramp.cycles if ramp.schedule == "cyclical" else ramp.annealing_epochs
    assert kl_weight(ramp, t * length, 24) == pytest.approx(part * ramp.weight, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_ends_of_a_ramp(schedule: str) -> None:
    assert ramp_share(kl(schedule), 2.0) == (0 if schedule == "constant" else pytest.approx(1))
    assert ramp_share(kl(schedule), 0.0) == 0
    assert ramp_share(kl(schedule), 2.0001) is None


@pytest.mark.parametrize("shape", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize(("ratio", "weight"), [(0.5, 0.4), (1.0, 1.5), (0.25, 1.9), (0.5, 2.5)])
def test_the_share_above_a_weight_by_counting_steps(shape: str, ratio: float, weight: float) -> None:
    cyclical = kl("cyclical", cycle_shape=shape, ratio=ratio, cycles=4)
    steps = [kl_weight(cyclical, step / 1000, 8) for step in range(8000)]
    counted = sum(w >= weight for w in steps) / len(steps)
    assert share_above(cyclical, weight) == pytest.approx(counted, abs=2e-3)


@settings(deadline=None)
@given(schedules, lengths)
def test_it_begins_at_zero_where_there_is_a_ramp(ramp: KL, epochs: int) -> None:
    starts_full = ramp.schedule == "constant" or (ramp.schedule != "cyclical" and ramp.annealing_epochs == 0)
    assert kl_weight(ramp, 0.0, epochs) == (ramp.max_weight if starts_full else 0)
