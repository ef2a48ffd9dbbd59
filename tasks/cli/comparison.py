"""Two runs side by side."""

from collections.abc import Mapping
from typing import Any

from mlflow.entities import Run

from tasks.cli import console
from tasks.tracking import registry, store
from vae.config.text import number

_ABOUT = {"verdict": store.VERDICT, "data": "data.sha256", "commit": "git.commit", "weights": store.WEIGHTS}


def compare(one: Run, other: Run) -> dict[str, Any]:
    """Names, what the two came from, metrics of the test split, parameters that differ; None for what one lacks."""
    parameters = _pairs(one.data.params, other.data.params)
    return {
        "names": (one.info.run_name, other.info.run_name),
        "about": {name: (_about(one, tag), _about(other, tag)) for name, tag in _ABOUT.items()},
        "metrics": _pairs(registry.test_metrics(one), registry.test_metrics(other)),
        "parameters": {name: pair for name, pair in parameters.items() if pair[0] != pair[1]},
    }


def lines(compared: Mapping[str, Any]) -> list[str]:
    """As a table."""
    rows = [("", *compared["names"])]
    rows += [(name, *map(_or_dash, pair)) for name, pair in compared["about"].items()]
    rows += [(f"test {name}", *map(number, pair)) for name, pair in compared["metrics"].items()]
    rows += [(name, *map(_or_dash, pair)) for name, pair in compared["parameters"].items()]
    found, (data, other_data) = console.table(*rows), compared["about"]["data"]
    if data != other_data:
        found.append("(different data: these metrics do not say which model is better)")
    return found


def _about(run: Run, tag: str) -> str | None:
    value = run.data.tags.get(tag)
    return value if tag == store.VERDICT else value and value[:12]


def _or_dash(value: str | None) -> str:
    return value or "-"


def _pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (one.get(name), other.get(name)) for name in sorted(one.keys() | other.keys())}
