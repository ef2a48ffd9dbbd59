"""Two runs side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run

from tasks.tracking import registry, store
from vae.config.text import number

_ABOUT = {"verdict": store.VERDICT, "data": "data.sha256", "commit": "git.commit", "weights": store.WEIGHTS}

Pairs = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Comparison:
    """The names of two runs, what they were made from, their metrics of the test split, and parameters that differ."""

    names: tuple[str, str]
    about: Pairs
    metrics: Pairs
    parameters: Pairs

    def __str__(self) -> str:
        rows = [("", *self.names)]
        rows += [(name, one or "-", other or "-") for name, (one, other) in self.about.items()]
        rows += [(f"test {name}", number(one), number(other)) for name, (one, other) in self.metrics.items()]
        rows += [(name, one or "-", other or "-") for name, (one, other) in self.parameters.items()]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{name:<{first}}  {one:<{second}}  {other}".rstrip() for name, one, other in rows]
        if self.about["data"][0] != self.about["data"][1]:
            lines.append("(different data: these metrics do not say which model is better)")
        return "\n".join(lines)


def compare(one: Run, other: Run) -> Comparison:
    about = _pairs(_about(one), _about(other))
    parameters = _pairs(one.data.params, other.data.params)
    return Comparison(
        names=(str(one.info.run_name), str(other.info.run_name)),
        about={name: about[name] for name in _ABOUT},
        metrics=_pairs(registry.test_metrics(one), registry.test_metrics(other)),
        parameters={name: pair for name, pair in parameters.items() if pair[0] != pair[1]},
    )


def _about(run: Run) -> dict[str, str | None]:
    values = {name: run.data.tags.get(tag) for name, tag in _ABOUT.items()}
    return {name: value if name == "verdict" else value and value[:12] for name, value in values.items()}


def _pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pairs:
    """Both values of each name, None where there is none."""
    return {name: (one.get(name), other.get(name)) for name in sorted(one.keys() | other.keys())}
