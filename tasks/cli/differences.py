"""Two runs that should be the same: what differs in their bits, and which conditions differed."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import overlay

# The tags of what decides the last bits beside data, parameters and code.
CONDITIONS = ("compute.", "machine.", "version.", "resumed")

# The training's code is run again; the final numbers may have come from other code.
_EVALUATION = {"git.commit": "commit of the evaluation", "git.changed": "not committed at the evaluation"}


@dataclass(frozen=True)
class Difference:
    """A file or condition of the run, and the same here. `then` is None where the run did not record it."""

    what: str
    then: str | None
    here: str
    detail: str = ""

    @property
    def same(self) -> bool:
        """What was not recorded is not held against the run."""
        return self.then is None or self.then == self.here


def of_files(path: Path, then: bytes | None, here: bytes) -> Difference:
    """history.csv or metrics.json, by their SHA-256; the detail names the first numbers that differ."""
    hashes = [None if content is None else hashlib.sha256(content).hexdigest() for content in (then, here)]
    detail = ""
    if then is not None and then != here:
        detail = (of_histories if path.suffix == ".csv" else of_metrics)(then, here)
    return Difference(str(path), hashes[0], str(hashes[1]), detail)


def of_histories(then: bytes, here: bytes) -> str:
    """The first epoch in which two histories differ, and by what."""
    old, new = (list(csv.DictReader(io.StringIO(table.decode(errors="replace")))) for table in (then, here))
    for before, now in zip(old, new, strict=False):
        for name, value in before.items():
            if value != now.get(name):
                return f"from epoch {before.get('epoch')}: {name} {value}, here {now.get(name)}"
    return f"{len(old)} epochs, here {len(new)}" if len(old) != len(new) else "other columns"


def of_metrics(then: bytes, here: bytes) -> str:
    """How many numbers differ, and the one that differs most."""
    try:
        old, new = (overlay.flat(json.loads(text)) for text in (then, here))
    except (ValueError, AttributeError) as error:
        return f"not JSON: {error}"

    def distance(name: str) -> float:
        """Relative; infinite where one of the two is not a number."""
        one, other = old.get(name), new.get(name)
        if not isinstance(one, int | float) or not isinstance(other, int | float):
            return float("inf")
        return abs(one - other) / max(abs(one), abs(other))

    differ = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not differ:
        return "the same numbers, formatted differently"
    most = max(differ, key=distance)
    return f"{len(differ)} of {len(old)} numbers; {most} {old.get(most)}, here {new.get(most)}"


def of_conditions(then: Mapping[str, str], here: Mapping[str, str]) -> list[Difference]:
    """The conditions that differed, from the tags of both."""
    names = sorted(name for name in then.keys() | here.keys() if name.startswith(CONDITIONS))
    found = [Difference(n, then.get(n, "not recorded"), here.get(n, "not recorded")) for n in names]
    for tag, what in _EVALUATION.items():
        evaluated, trained = then.get(f"evaluated.{tag}"), then.get(tag)
        if evaluated is not None and trained is not None:
            values = (value.replace("\n", ", ") or "nothing" for value in (evaluated, trained))
            found.append(Difference(what, *values))
    return [one for one in found if not one.same]


def report(files: Sequence[Difference], conditions: Sequence[Difference]) -> Iterator[str]:
    """Lines: `identical`, or a table of what differs and of the possible reasons."""
    if missing := [one.what for one in files if one.then is None]:
        yield f"not compared: the run did not record {', '.join(missing)}"
    same = ", ".join(one.what for one in files if one.then is not None and one.same)
    different = [one for one in files if not one.same]
    if not different:
        yield f"identical  to the bit: {same}"
        return
    yield from _table("differs", [(d.what, str(d.then)[:12], d.here[:12], d.detail) for d in different])
    if same:
        yield f"identical  {same}"
    if conditions:
        yield from _table("possible reason", [(d.what, str(d.then), d.here, "") for d in conditions])
    else:
        yield "no recorded difference in code, machine or libraries: the cause is unknown"


def _table(title: str, rows: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    head = (title, "the run", "here", "")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  ".join(map(str.ljust, row, widths)).rstrip()
