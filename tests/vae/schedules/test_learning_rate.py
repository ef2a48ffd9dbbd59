import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae.config.resolved import ResolvedTrain
from vae.schedules.learning_rate import learning_rate

ROUNDING = 1e-12
SCHEDULES = ("constant", "linear", "cosine")


def train(schedule: str, warmup: float, epochs: int = 8) -> ResolvedTrain:
    return ResolvedTrain(epochs=epochs, learning_rate=0.1, learning_rate_schedule=schedule, warmup=warmup)


@pytest.mark.parametrize(
    ("schedule", "warmup", "at"),
    [
        ("constant", 0, [1, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.875, 0.75, 0.5, 0]),
        ("cosine", 0, [1, (1 + math.cos(math.pi / 8)) / 2, (1 + math.sqrt(0.5)) / 2, 0.5, 0]),
        ("constant", 0.25, [0, 0.5, 1, 1, 1]),
        ("linear", 0.25, [0, 0.5, 1, 2 / 3, 0]),
        ("cosine", 0.25, [0, 0.5, 1, 0.75, 0]),
    ],
)
def test_schedules(schedule: str, warmup: float, at: list[float]) -> None:
    """After 0, 1, 2, 4, 8 and 9 of 8 epochs."""
    found = [learning_rate(train(schedule, warmup), epoch) / 0.1 for epoch in (0, 1, 2, 4, 8, 9)]
    assert found == pytest.approx([*at, at[-1]], abs=ROUNDING)


@given(st.sampled_from(SCHEDULES), st.one_of(st.just(0.0), st.floats(0.01, 0.99)), st.integers(1, 100), st.floats(0, 1))
def test_it_rises_over_the_warm_up_then_never_again_and_does_not_jump(
    schedule: str, warmup: float, epochs: int, share: float
) -> None:
    made, step = train(schedule, warmup, epochs), 1e-6
    before, after = (learning_rate(made, epochs * at) for at in (share, share + step))
    assert 0 <= before <= 0.1 and 0 <= after <= 0.1
    assert before < after if share + step < warmup else share < warmup or after <= before + ROUNDING
    assert abs(after - before) <= 0.1 * step * 1.01 * (1 / (warmup or 1) + math.pi / (1 - warmup))
    assert learning_rate(made, epochs * warmup) == pytest.approx(0.1)
