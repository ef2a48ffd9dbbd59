"""Stage validate: are the manifest and the arrays fit to train on?

All rules are checked and both reports are written before the stage fails, so that
`reports/validation_failures.csv` lists everything there is to repair.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tasks import workspace
from tasks.processes import entry
from vae.config import loading
from vae.config.constants import SKIPPED, SPLITS
from vae.config.errors import InputError
from vae.config.files import written_aside
from vae.config.text import one_line, printable
from vae.validation.fingerprints import Fingerprints
from vae.validation.inspection import Inspection, classes_in_training, inspect
from vae.validation.rules import Rule, catalogue, probe_decides
from vae.validation.schema import COLUMNS

log = logging.getLogger(__name__)

EXAMPLES = 5
FAILURE_COLUMNS = ("severity", "rule", "file", "split", "value", "allowed", "what_to_do")


def main() -> None:
    shutil.rmtree(workspace.DECODED, ignore_errors=True)  # DVC has stored ingest's outputs by now
    params = loading.load(workspace.PARAMS)
    manifest = read_manifest()
    inspection = inspect(manifest, {split: _read_images(split) for split in SPLITS}, params.data)
    rules = catalogue(params.data, probe_decides(params.promote, classes_in_training(manifest)))
    report = _report(rules, inspection, manifest)
    workspace.write_json(workspace.VALIDATION, report)
    _write_failures(rules, inspection)
    for rule, found in zip(rules, report["rules"], strict=True):
        _log(rule, found["count"], found["examples"])
    counts = ", ".join(f"{split} {values['images']}" for split, values in report["summary"]["splits"].items())
    errors, warnings = (_count(report[f"{severity}s"], severity) for severity in ("error", "warning"))
    log.info(f"validation: {counts} images; {errors}, {warnings}")
    if not report["passed"]:
        broken = [rule["name"] for rule in report["rules"] if rule["severity"] == "error" and rule["count"]]
        raise InputError(
            f"validation failed: {errors} ({', '.join(broken)}); "
            f"{workspace.VALIDATION_FAILURES} says what to do about each"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def read_manifest() -> pd.DataFrame:
    """Raises: InputError: there is no manifest, or it cannot be read."""
    try:
        whole_numbers = {pa.int64(): pd.Int64Dtype()}  # otherwise a null would turn the column into floats
        return pq.read_table(workspace.MANIFEST).to_pandas(types_mapper=whole_numbers.get)
    except FileNotFoundError:
        raise InputError(f"{workspace.MANIFEST} does not exist; `dvc repro` makes it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{workspace.MANIFEST} is not a Parquet file ({one_line(error)}); run ingest again") from None


def _read_images(split: str) -> NDArray[np.generic] | str:
    """The array, memory-mapped, or why there is none."""
    try:
        return np.load(workspace.images(split), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError, EOFError) as error:
        return f"cannot be read: {one_line(error)}"


def _report(rules: tuple[Rule, ...], inspection: Inspection, manifest: pd.DataFrame) -> dict[str, Any]:
    reports = [_rule_report(rule, inspection) for rule in rules]
    errors, warnings = (sum(r["count"] for r in reports if r["severity"] == s) for s in ("error", "warning"))
    return {
        "passed": errors == 0,
        "errors": errors,
        "warnings": warnings,
        "rules": reports,
        "summary": _summary(inspection.prints, manifest),
    }


def _rule_report(rule: Rule, inspection: Inspection) -> dict[str, Any]:
    found = [finding for finding in inspection.findings if finding.rule == rule.name]
    return {
        "name": rule.name,
        "severity": rule.severity,
        "checks": rule.allowed,
        "what_to_do": rule.what_to_do,
        "count": len(found),
        "skipped": inspection.skipped.get(rule.name),
        "examples": [{"file": f.file, "split": f.split, "value": f.value} for f in found[:EXAMPLES]],
    }


def _summary(prints: Mapping[str, Fingerprints], manifest: pd.DataFrame) -> dict[str, Any]:
    """Counts, and the mean and standard deviation of each split's pixels, in [0, 1]."""
    known = manifest.reindex(columns=list(COLUMNS))
    ok = known[known["status"] == "ok"]
    splits = {}
    for split, print_ in prints.items():
        mean = print_.mean.mean()
        std = np.sqrt((print_.std**2 + (print_.mean - mean) ** 2).mean())
        splits[split] = {
            "images": len(print_.mean),
            "mean": round(float(mean), 6),
            "std": round(float(std), 6),
            "classes": ok["label"][ok["split"] == split].value_counts().sort_index().to_dict(),
        }
    skipped = known["reason"].str.startswith(SKIPPED, na=False)
    quarantined = int(((known["status"] == "quarantined") & ~skipped).sum())
    return {"files": len(manifest), "quarantined": quarantined, "splits": splits}


def _write_failures(rules: tuple[Rule, ...], inspection: Inspection) -> None:
    findings = pd.DataFrame(map(vars, inspection.findings), columns=["rule", "file", "split", "value"])
    known = pd.DataFrame(map(vars, rules)).rename(columns={"name": "rule"})
    table = findings.merge(known, on="rule", how="left")[list(FAILURE_COLUMNS)].map(_harmless)
    with written_aside(workspace.VALIDATION_FAILURES) as aside:
        table.to_csv(aside, index=False, lineterminator="\n", errors="backslashreplace")


def _harmless(cell: str) -> str:
    """An apostrophe keeps a spreadsheet from running a file name such as `=cmd|…`.

    Also after characters that a spreadsheet with other settings takes for the end of a cell.
    """
    return _FORMULA.sub("'", cell)


# https://owasp.org/www-community/attacks/CSV_Injection, with the full-width forms that East Asian systems accept.
_FORMULA = re.compile(r'(?:^|(?<=[;\t\r\n]))(?=["\t\r\n]*[=+\-@＝＋－＠])')


def _log(rule: Rule, count: int, examples: list[dict[str, str]]) -> None:
    if count:
        level = logging.ERROR if rule.severity == "error" else logging.WARNING
        log.log(level, f"{rule.name} ({count}); rule: {rule.allowed}; to do: {rule.what_to_do}")
    for example in examples:
        log.info("  " + "  ".join(printable(example[cell]) for cell in ("split", "file", "value") if example[cell]))
    if count > EXAMPLES:
        log.info(f"  … {count - EXAMPLES} more in {workspace.VALIDATION_FAILURES}")


if __name__ == "__main__":
    entry.run(main)
