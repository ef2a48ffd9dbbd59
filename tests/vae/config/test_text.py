import math
from typing import Any

import pytest

from vae.config.text import number, printable, rounded


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (12345, "12,345"), (-39338.4, "−39,338"), (0.0033319, "0.003332"), (0.0, "0")],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_numbers_for_files() -> None:
    values: dict[str, Any] = {"a": [1 / 3, (1234567.0, 7)], "b": math.nan, "c": {"d": -math.inf, "e": "1/3", "f": True}}
    assert rounded(values) == {
        "a": [0.333333, [1234570.0, 7]], "b": None, "c": {"d": None, "e": "1/3", "f": True},
    }  # fmt: skip


def test_a_line_that_can_be_printed() -> None:
    assert printable("ünï\n\x1b[31m\u202e") == r"ünï\n\x1b[31m\u202e"
