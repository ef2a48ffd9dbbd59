"""Two runs that should be the same: what differs, to the bit, and which conditions were not the same."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The tags of what decides the last bits besides data, parameters and code.
CONDITIONS = ("compute.", "machine.", "version.", "resumed")

# The code that is run again is that of the training; the final numbers may have come from other code.
_EVALUATION = {"git.commit": "commit of the evaluation", "git.changed": "not committed at the evaluation"}


@dataclass(frozen=True)
class Difference:
    """One file or condition of the run, and the same here. `then` is None where the run did not record it."""

    what: str
    then: str | None
    here: str
    detail: str = ""

    @property
    def same(self) -> bool:
        """What was not recorded can not be held against the run."""
        return self.then is None or self.then == self.here


def of_files(path: Path, then: bytes | None, here: bytes) -> Difference:
    """history.csv or metrics.json, by their SHA-256; the detail names the first numbers that part."""
    if then is None:
        return Difference(str(path), None, _sha256(here))
    detail = ""
    if then != here:
        detail = (of_histories if path.suffix == ".csv" else of_metrics)(then, here)
    return Difference(str(path), _sha256(then), _sha256(here), detail)


def of_histories(then: bytes, here: bytes) -> str:
    """The first epoch in which two histories part, and by what."""
    old, new = (list(csv.DictReader(io.StringIO(table.decode(errors="replace")))) for table in (then, here))
    for before, now in zip(old, new, strict=False):
        for name in before:
            if before[name] != now.get(name):
                return f"from epoch {before.get('epoch')}: {name} {before[name]}, here {now.get(name)}"
    return f"{len(old)} epochs, here {len(new)}" if len(old) != len(new) else "other columns"


def of_metrics(then: bytes, here: bytes) -> str:
    """How many numbers differ, and the one that differs most."""
    try:
        old, new = (_flat(json.loads(text)) for text in (then, here))
    except ValueError as error:
        return f"not JSON: {error}"
    parted = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
    if not parted:
        return "the same numbers, written otherwise"
    most = max(sorted(parted), key=lambda name: _apart(old.get(name), new.get(name)))
    return f"{len(parted)} of {len(old)} numbers; {most} {old.get(most)}, here {new.get(most)}"


def conditions(then: Mapping[str, str], here: Mapping[str, str]) -> list[Difference]:
    """The conditions that were other for the run than here, from the tags of both."""
    names = sorted(name for name in then.keys() | here.keys() if name.startswith(CONDITIONS))
    found = [
        Difference(name, then.get(name, "not recorded"), here.get(name, "not recorded")) for name in names
    ]
    for tag, what in _EVALUATION.items():
        trained, evaluated = then.get(tag), then.get(f"evaluated.{tag}")
        if None not in (trained, evaluated):
            found.append(Difference(what, _one_line(evaluated), _one_line(trained)))
    return [one for one in found if not one.same]


def told(files: list[Difference], conditions: list[Difference]) -> list[str]:
    """The result in lines: `identical`, or a table of what differs and why it may."""
    missing = [one.what for one in files if one.then is None]
    compared = [one.what for one in files if one.then is not None]
    different = [one for one in files if not one.same]
    lines = [f"not compared: the run did not record {', '.join(missing)}"] if missing else []
    if not different:
        return [*lines, f"identical  to the bit: {', '.join(compared)}"]
    same = [one.what for one in files if one.then is not None and one.same]
    rows = [(one.what, str(one.then)[:12], one.here[:12], one.detail) for one in different]
    lines += _table(("differs", "the run", "here", ""), rows)
    lines += [f"identical  {', '.join(same)}"] if same else []
    if conditions:
        reasons = [(one.what, str(one.then), one.here, "") for one in conditions]
        return [*lines, *_table(("it may, because of", "the run", "here", ""), reasons)]
    return [
        *lines,
        "nothing that is recorded of code, machine and libraries differs: what made this is not known",
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str, str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}/{key}" if prefix else key).items()
    }


def _apart(old: Any, new: Any) -> float:
    """The relative difference of two numbers; what is no pair of numbers is as far apart as can be."""
    if isinstance(old, int | float) and isinstance(new, int | float):
        return abs(old - new) / (max(abs(old), abs(new)) or 1.0)
    return float("inf")


def _one_line(value: str | None) -> str:
    return (value or "").replace("\n", ", ") or "nothing"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
