"""Numbers for files that people compare: JSON-clean, and no finer than they mean."""

import math
from typing import Any

DIGITS = 6  # significant ones; the last bits of a sum depend on nothing that a reader could act on


def rounded(value: Any) -> Any:
    """Rounds every float in nested lists and dicts to 6 significant digits; NaN and infinities become None."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
