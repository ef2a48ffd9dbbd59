"""Two runs that should be the same: what differs in their bits, and which conditions differed."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import overlay
from tasks.cli.console import table

# The tags of what determines the last bits besides data, parameters and code.
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
    """history.csv or metrics.json, by their SHA-256; the detail names the first number that differs."""
    hashes = [None if content is None else hashlib.sha256(content).hexdigest() for content in (then, here)]
    return Difference(str(path), hashes[0], str(hashes[1]), "" if then in (None, here) else _first(path, then, here))


def _first(path: Path, *contents: bytes) -> str:
    """How many numbers differ, and the first of them in the order of the file."""
    try:
        old, new = (_numbers(path, content.decode()) for content in contents)
    except (ValueError, AttributeError) as error:
        return f"damaged: {error}"
    differ = [name for name in old | new if old.get(name) != new.get(name)]
    if not differ:
        return "the same numbers, formatted differently"
    first = differ[0]
    return f"{len(differ)} of {len(old)} numbers differ, first {first}: {old.get(first)}, here {new.get(first)}"


def _numbers(path: Path, text: str) -> dict[str, object]:
    """Every number by its name: `epoch 2, valid/kl` or `test.kl`."""
    if path.suffix == ".json":
        return overlay.flat(json.loads(text))
    rows = csv.DictReader(io.StringIO(text))
    return {f"epoch {row.get('epoch')}, {name}": row[name] for row in rows for name in row if name != "epoch"}


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
        yield f"identical  bit for bit: {same}"
        return
    rows = [(one.what, str(one.then)[:12], one.here[:12], one.detail) for one in different]
    yield from table(("differs", "the run", "here", ""), *rows)
    if same:
        yield f"identical  {same}"
    if conditions:
        yield from table(("possible reason", "the run", "here"), *((d.what, str(d.then), d.here) for d in conditions))
    else:
        yield "no recorded difference in code, machine or libraries: the cause is unknown"
