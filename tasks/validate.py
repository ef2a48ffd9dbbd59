"""Stage validate: are the manifest and the arrays fit to train on?

All rules are judged before the stage fails, and both reports are written first, so that one look at
`reports/validation_failures.csv` tells everything there is to repair.
"""

import csv
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks import workspace
from tasks.processes import entry
from vae.config import loading
from vae.config.constants import SPLITS
from vae.config.errors import InputError
from vae.validation.fingerprints import Fingerprints
from vae.validation.inspection import Inspection, inspect
from vae.validation.rules import Rule, catalogue
from vae.validation.schema import COLUMNS

EXAMPLES = 5
FAILURE_COLUMNS = ("severity", "rule", "file", "split", "value", "allowed", "what_to_do")


def main() -> None:
    shutil.rmtree(workspace.DECODED, ignore_errors=True)  # DVC has taken the results in by now
    data = loading.load(workspace.PARAMS).data
    manifest = read_manifest()
    inspection = inspect(manifest, {split: _read_images(split) for split in SPLITS}, data)
    rules = catalogue(data)
    report = _report(rules, inspection, manifest)
    workspace.write_json(workspace.VALIDATION, report)
    _write_failures(rules, inspection)
    _show(rules, inspection)
    counts = ", ".join(f"{split} {values['images']}" for split, values in report["summary"]["splits"].items())
    errors, warnings = (_count(report[f"{severity}s"], severity) for severity in ("error", "warning"))
    print(f"validation: {counts} images; {errors}, {warnings}", flush=True)
    if not report["passed"]:
        broken = [rule["name"] for rule in report["rules"] if rule["severity"] == "error" and rule["count"]]
        raise InputError(
            f"validation failed: {errors} against {', '.join(broken)}; "
            f"{workspace.VALIDATION_FAILURES} says for each what to do"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def read_manifest() -> pd.DataFrame:
    """Raises InputError where there is no table to judge."""
    try:
        whole_numbers = {pa.int64(): pd.Int64Dtype()}  # or a null would turn a column into real numbers
        return pq.read_table(workspace.MANIFEST).to_pandas(types_mapper=whole_numbers.get)
    except FileNotFoundError:
        raise InputError(f"{workspace.MANIFEST} does not exist; `dvc repro` makes it") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{workspace.MANIFEST} is not a Parquet file ({reason}); run ingest again") from None


def _read_images(split: str) -> NDArray[np.generic] | str:
    """The array, memory-mapped, or why there is none."""
    try:
        return np.load(workspace.images(split), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError, EOFError) as error:
        return f"cannot be read: {' '.join(str(error).split())}"


def _report(rules: tuple[Rule, ...], inspection: Inspection, manifest: pd.DataFrame) -> dict[str, Any]:
    severity = {rule.name: rule.severity for rule in rules}
    total = Counter(severity[finding.rule] for finding in inspection.findings)
    return {
        "passed": total["error"] == 0,
        "errors": total["error"],
        "warnings": total["warning"],
        "rules": [_rule_report(rule, inspection) for rule in rules],
        "summary": _summary(inspection.prints, manifest),
    }


def _rule_report(rule: Rule, inspection: Inspection) -> dict[str, Any]:
    found = [finding for finding in inspection.findings if finding.rule == rule.name]
    return {
        "name": rule.name,
        "severity": rule.severity,
        "checks": rule.allowed,
        "count": len(found),
        "skipped": inspection.skipped.get(rule.name),
        "examples": [{"file": f.file, "split": f.split, "value": f.value} for f in found[:EXAMPLES]],
    }


def _summary(prints: Mapping[str, Fingerprints], manifest: pd.DataFrame) -> dict[str, Any]:
    """Counts, and mean and standard deviation of the pixels of each split, in [0, 1]."""
    known = manifest.reindex(columns=list(COLUMNS))
    ok = known[known["status"] == "ok"]
    splits = {}
    for split, print_ in prints.items():
        mean = print_.mean.mean()
        std = np.sqrt((print_.std**2 + (print_.mean - mean) ** 2).mean())
        labels = Counter(ok["label"][ok["split"] == split].dropna().astype(str))
        splits[split] = {
            "images": len(print_.mean),
            "mean": round(float(mean), 6),
            "std": round(float(std), 6),
            "classes": dict(sorted(labels.items())),
        }
    return {
        "files": len(manifest),
        "quarantined": int((known["status"] == "quarantined").sum()),
        "splits": splits,
    }


def _write_failures(rules: tuple[Rule, ...], inspection: Inspection) -> None:
    by_name = {rule.name: rule for rule in rules}
    with workspace.VALIDATION_FAILURES.open(
        "w", encoding="utf-8", errors="backslashreplace", newline=""
    ) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FAILURE_COLUMNS)
        for f in inspection.findings:
            rule = by_name[f.rule]
            row = (rule.severity, rule.name, f.file, f.split, f.value, rule.allowed, rule.what_to_do)
            writer.writerow(_harmless(cell) for cell in row)


def _harmless(cell: str) -> str:
    """A file may be called `=cmd|…`: an apostrophe before it keeps a spreadsheet from running it.

    Also after what a spreadsheet of other settings takes for the end of a cell.
    """
    return _FORMULA.sub("'", cell)


# https://owasp.org/www-community/attacks/CSV_Injection; of full width are those that East Asian systems take too.
_FORMULA = re.compile(r'(?:^|(?<=[;\t\r\n]))(?=["\t\r\n]*[=+\-@＝＋－＠])')


def _show(rules: tuple[Rule, ...], inspection: Inspection) -> None:
    """Errors, then warnings: a table on a terminal, plain lines in a log."""
    console = Console(highlight=False, soft_wrap=True)
    for severity, style in (("error", "bold red"), ("warning", "bold yellow")):
        for rule in (rule for rule in rules if rule.severity == severity):
            found = [finding for finding in inspection.findings if finding.rule == rule.name]
            if not found:
                continue
            heading = (
                f"{severity}: {rule.name} ({len(found)}); rule: {rule.allowed}; to do: {rule.what_to_do}"
            )
            console.print(Text(heading, style=style))
            table = Table("split", "file", "found")
            for f in found[:EXAMPLES]:
                cells = [_one_line(cell) for cell in (f.split, f.file, f.value)]
                table.add_row(*(Text(cell) for cell in cells))  # Text: a name's brackets are no markup
                if not console.is_terminal:
                    print("  " + "  ".join(cell for cell in cells if cell))
            if console.is_terminal:
                console.print(table)
            if len(found) > EXAMPLES:
                print(f"  … {len(found) - EXAMPLES} more in {workspace.VALIDATION_FAILURES}")


def _one_line(cell: str) -> str:
    """Without the line breaks and terminal commands that a file's name may hold."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cell)


if __name__ == "__main__":
    entry.run(main)
