import math

import pytest

from vae.config.parameters import Train
from vae.schedules.learning_rate import learning_rate


@pytest.mark.parametrize(
    ("schedule", "at"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0]), ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])],
)
def test_schedules(schedule: str, at: list[float]) -> None:
    train = Train(epochs=8, learning_rate=0.1, learning_rate_schedule=schedule)
    found = [learning_rate(train, epoch) / 0.1 for epoch in (0, 2, 4, 8, 9)]
    assert found == pytest.approx([*at, at[-1]], abs=1e-12)
