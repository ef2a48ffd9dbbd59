"""Numbers and names as text: rounded for files, short for people, printable on one line."""

import math
from typing import Any

from pydantic import BaseModel

DIGITS = 6  # significant digits; further ones vary with the machine and say nothing


def rounded(value: Any) -> Any:
    """Rounds every float in nested lists and dicts to 6 significant digits; NaN and infinities become None."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def number(value: Any) -> str:
    """About four significant digits, a real minus sign, and a dash for a missing value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, int):
        text = f"{value:,}"
    elif 1000 <= abs(value) < 1e6:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−") if text.startswith("-") else text


def three_digits(value: float) -> str:
    """`number` of a value that is known no better."""
    return number(float(f"{value:.3g}"))


def two_digits(value: float) -> str:
    """As `three_digits`, of a value that is known less well."""
    return number(float(f"{value:.2g}"))


def printable(text: Any) -> str:
    """On one line, without characters that would reorder or hide the text around it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def written(value: Any) -> str:
    """A value of a parameter, as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | BaseModel):
        items = dict(value).items()
        return "{" + ", ".join(f"{name}: {written(item)}" for name, item in items if item is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def one_line(error: Any) -> str:
    """An error's text with its line breaks as spaces."""
    return printable(" ".join(str(error).split()))


def first_line(error: BaseException) -> str:
    """Of an error's text, where the rest is long; the kind of error where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
