import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vae.config.resolved import ResolvedKL
from vae.schedules.kl import first_final_epoch, ramp, ramp_time, time_above

SHAPES = ("linear", "cosine", "sigmoid")
ROUNDING = 1e-9


kls = st.builds(
    ResolvedKL,
    schedule=st.sampled_from(("constant", *SHAPES, "cyclical")),
    annealing_epochs=st.one_of(st.just(0), st.integers(1, 60), st.floats(0.01, 60)),
    cycles=st.integers(1, 8),
    ratio=st.floats(0.05, 1),
    cycle_shape=st.sampled_from(SHAPES),
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
    kl = ResolvedKL(schedule=schedule, annealing_epochs=8)
    shares = [ramp(kl, epoch, 20) for epoch in (0, 2, 4, 6, 8, 8.01, 20)]
    assert shares == pytest.approx([0, quarter, half, 1 - quarter, 1, 1, 1], abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", *SHAPES])
def test_without_annealing_the_weight_is_full_from_the_first_step(schedule: str) -> None:
    kl = ResolvedKL(schedule=schedule, annealing_epochs=5 if schedule == "constant" else 0)
    assert ramp(kl, 0.0, 10) == 1 and first_final_epoch(kl, 10) == 0
    # a controller has no ramp, a capacity has
    steered = [
        ResolvedKL(annealing_epochs=5, **{name: 0.5}) for name in ("target_kl", "reconstruction_target", "capacity")
    ]
    assert [first_final_epoch(kl, 10) for kl in steered] == [0, 0, 5]


@settings(deadline=None)
@given(st.integers(1, 6), st.floats(0.1, 0.9), st.integers(5, 40), st.floats(0.1, 0.9))
def test_each_cycle_ramps_over_its_ratio(cycles: int, ratio: float, epochs: int, part: float) -> None:
    kl, length = ResolvedKL(schedule="cyclical", cycles=cycles, ratio=ratio), epochs / cycles
    assert first_final_epoch(kl, epochs) == pytest.approx(epochs - (1 - ratio) * length)
    for start in (cycle * length for cycle in range(cycles)):
        assert ramp(kl, start + part * ratio * length, epochs) == pytest.approx(part)
        assert ramp(kl, start + (ratio + part * (1 - ratio)) * length, epochs) == pytest.approx(1)


@settings(deadline=None)
@given(kls, lengths, st.floats(0, 120), st.floats(0, 120))
def test_a_ramp_rises_from_zero_to_one(kl: ResolvedKL, epochs: int, one: float, other: float) -> None:
    earlier, later = (ramp(kl, epoch, epochs) for epoch in sorted((one, other)))
    assert min(earlier, later) >= 0 and max(earlier, later) <= 1
    assert kl.schedule == "cyclical" or earlier <= later + ROUNDING
    starts_full = kl.schedule == "constant" or (kl.schedule != "cyclical" and kl.annealing_epochs == 0)
    assert ramp(kl, 0.0, epochs) == (1 if starts_full else 0)


@settings(deadline=None)
@given(kls, lengths, st.floats(0, 1))
def test_the_weight_is_full_from_the_first_final_epoch_on(kl: ResolvedKL, epochs: int, share: float) -> None:
    final = first_final_epoch(kl, epochs)
    assert ramp(kl, final + share * max(epochs - final, 0), epochs) == pytest.approx(1, rel=ROUNDING)
    if final > 0:
        assert ramp(kl, final * (1 - 1e-3), epochs) < 1


@settings(deadline=None)
@given(kls, st.floats(0.001, 0.999))
def test_a_share_is_reached_at_the_time_of_its_ramp(kl: ResolvedKL, share: float) -> None:
    assume(kl.schedule != "constant")
    t = ramp_time(kl, share)
    assert t is not None
    length = kl.ratio * 24 / kl.cycles if kl.schedule == "cyclical" else kl.annealing_epochs
    assume(length > 0.1)
    assert ramp(kl, t * length, 24) == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("schedule", ["constant", *SHAPES, "cyclical"])
def test_the_ends_of_a_ramp(schedule: str) -> None:
    kl = ResolvedKL(schedule=schedule)
    assert ramp_time(kl, 1.0) == (0 if schedule == "constant" else pytest.approx(1))
    assert ramp_time(kl, 0.0) == 0
    assert ramp_time(kl, 1.0001) is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ratio", "share"), [(0.5, 0.2), (1.0, 0.75), (0.25, 0.95), (0.5, 1.25)])
def test_the_time_above_a_share_by_counting_steps(shape: str, ratio: float, share: float) -> None:
    kl = ResolvedKL(schedule="cyclical", cycle_shape=shape, ratio=ratio, cycles=4)
    counted = sum(ramp(kl, step / 1000, 8) >= share for step in range(8000)) / 8000
    assert time_above(kl, share) == pytest.approx(counted, abs=2e-3)
