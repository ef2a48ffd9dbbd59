"""The collapse cases of `experiments/collapse/`: is each verdict right, and does the remedy rescue?

`make zoo` runs them all in one process, in a folder of its own, and prints for each: predicted, observed, verdict,
expected verdict, rescued. `reports/zoo.csv` has the numbers; docs/collapse.md says what they gave and why.

A case is an experiment; `cases.csv` has what it does not say: the verdict expected, by whoever made the case and
before it was judged; the best setting known for it; and whether thresholds were chosen with it in view (`tune`) or
it was kept aside (`held-out`).
"""

import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from benchmarks import case_images
from tasks import ingest, overlay, validate, workspace
from tasks.processes import entry
from vae.collapse import linear_theory, remedies, restarts
from vae.collapse.restarts import Attempt
from vae.compute import devices
from vae.compute.batches import for_measuring, open_images
from vae.config import loading
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, changed, resolve
from vae.metrics.mean_image import MeanImage
from vae.models.likelihood import gaussian_log_prob, optimal_sigma
from vae.training import loop

FOLDER = Path("experiments/collapse")
ZOO, ZOO_TABLE = workspace.REPORTS / "zoo.csv", workspace.REPORTS / "zoo.md"
RESCUED_SKILL = 0.98  # of the best setting known

COLUMNS = (
    "case", "half", "predicted_kl", "predicted_verdict", "kl", "active_units", "verdict", "expected", "right",
    "remedies", "final_verdict", "skill", "rescued", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    half: str
    expected: str
    best: str
    mechanism: str


def main(
    case: Annotated[list[str] | None, typer.Option(help="a case; give it once for each")] = None,
    half: Annotated[str | None, typer.Option(help="tune or held-out: only these")] = None,
) -> None:
    """Runs the collapse cases; exits 1 where a verdict is wrong or a collapse is not rescued."""
    cases = [c for c in read_cases() if (not case or c.name in case) and half in (None, c.half)]
    if not cases:
        raise InputError(f"no such case; known: {', '.join(c.name for c in read_cases())}")
    started = time.perf_counter()
    base = overlay.lay_over(workspace.PARAMS.read_text(encoding="utf-8"), overlay.defaults())
    texts = {c.name: (FOLDER / f"{c.name}.yaml").read_text(encoding="utf-8") for c in cases}
    rows = []
    print(f"{'case':36} {'predicted':>10} {'KL':>9}  {'verdict':22} {'expected':22} rescued", flush=True)
    with _folder_of_its_own():
        case_images.write(case_images.FOLDER)
        zoo = Zoo(base)
        for c in cases:
            row = zoo.run(c, texts[c.name])
            rows.append(row)
            print(_line(row), flush=True)
    workspace.REPORTS.mkdir(exist_ok=True)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.to_csv(ZOO, index=False)
    ZOO_TABLE.write_text(markdown(table), encoding="utf-8")
    print(summary(table) + f" {(time.perf_counter() - started) / 60:.1f} minutes.")
    if not table["right"].all() or not (table["rescued"] != "no").all():
        raise typer.Exit(1)


def read_cases() -> list[Case]:
    table = pd.read_csv(FOLDER / "cases.csv", keep_default_na=False)
    return [Case(*row) for row in table.astype(str).itertuples(index=False)]


class Zoo:
    """Runs cases; images and the best settings, which several cases share, are made once.

    The working folder is the workspace that ingest and validate write to.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.images: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.best: dict[str, float] = {}

    def run(self, case: Case, text: str) -> dict[str, Any]:
        """A row of the table."""
        started = time.perf_counter()
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"case": case.name, "half": case.half}
        row |= {"expected": case.expected}
        try:
            row |= self._trained(case, text)
        except _Refused as refusal:
            row |= {"verdict": str(refusal), "predicted_verdict": str(refusal)}
        return row | {
            "right": row["verdict"] == case.expected,
            "seconds": round(time.perf_counter() - started, 1),
        }

    def _trained(self, case: Case, text: str) -> dict[str, Any]:
        values = overlay.flat(loading.read_mapping(text, case.name)) | {"train.on_collapse": "remedy"}
        p, train_images, valid_images, spectrum = self._prepared(values)
        tried = self._attempts(p, spectrum, train_images, valid_images)
        first, last = tried[0], restarts.best(tried)
        row = {
            "predicted_kl": first.evidence.predicted["predicted_kl"],
            "predicted_verdict": _predicted_verdict(first),
            "kl": first.evidence.valid.rate,
            "active_units": first.evidence.valid.active_units(p.monitor.active_unit_threshold),
            "verdict": first.verdict.verdict,
        }
        if first.verdict.verdict == "healthy":
            return row
        steps = [f"{a.verdict.verdict} → {', '.join(remedies.in_words(a.verdict.remedy))}" for a in tried]
        steps = steps[: tried.index(last)]
        if last.prior is not None:
            steps[-1] = "a fitted prior"
        mean_image = mean_image_elbo(p, train_images, valid_images)
        reached = restarts.calibrated_elbo(last)
        best = max(reached, self._best(values, case.best))
        skill = (reached - mean_image) / (best - mean_image)
        rescued = last.verdict.verdict == "healthy" and skill >= RESCUED_SKILL
        return row | {
            "remedies": "; ".join(steps),
            "final_verdict": last.verdict.verdict,
            "skill": skill,
            "rescued": "yes" if rescued else "no",
        }

    def _best(self, values: dict[str, Any], setting: str) -> float:
        """The ELBO, at the σ of its own error, of the best setting known."""
        if not setting:
            return -math.inf
        values = values | overlay.parse_settings(setting) | {"train.on_collapse": "continue"}
        key = repr(sorted(values.items()))
        if key not in self.best:
            p, train_images, valid_images, spectrum = self._prepared(values)
            p = changed(p, {"train.remedy_attempts": 0})
            self.best[key] = restarts.calibrated_elbo(
                self._attempts(p, spectrum, train_images, valid_images)[0]
            )
        return self.best[key]

    def _attempts(
        self,
        p: ResolvedParameters,
        spectrum: linear_theory.Spectrum,
        train_images: np.ndarray,
        valid_images: np.ndarray,
    ) -> list[Attempt]:
        compute = devices.choose(p.train)

        def train(now: ResolvedParameters, number: int, reason: str) -> loop.Trained:
            return loop.train(now, train_images, valid_images, compute)

        return restarts.attempts(p, spectrum, train_images, valid_images, compute, train)

    def _prepared(
        self, values: dict[str, Any]
    ) -> tuple[ResolvedParameters, np.ndarray, np.ndarray, linear_theory.Spectrum]:
        """Parameters, images and their spectrum; a refusal names who refused."""
        text = overlay.lay_over(self.base, values)
        try:
            p = loading.parse(loading.read_mapping(text, "the case"), "the case")
        except InputError:
            raise _Refused("refused by parameters") from None
        key = repr((p.seed, p.data))
        if key not in self.images:
            self.images[key] = _ingested(text)
        train_images, valid_images = self.images[key]
        spectrum = linear_theory.spectrum_for(p, train_images)
        weight = linear_theory.resolved_weight(p, spectrum)
        resolved = resolve(p, p.train.steps_per_epoch(len(train_images)), weight)
        return resolved, train_images, valid_images, spectrum


class _Refused(Exception):
    """By whom, in the words of the table."""


def _ingested(text: str) -> tuple[np.ndarray, np.ndarray]:
    workspace.PARAMS.write_text(text, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        for stage, name in ((ingest.main, "ingest"), (validate.main, "validate")):
            try:
                stage()
            except InputError:
                raise _Refused(f"refused by {name}") from None
    train_images, valid_images = (np.array(open_images(workspace.images(s))) for s in ("train", "valid"))
    return train_images, valid_images


def mean_image_elbo(p: ResolvedParameters, train_images: np.ndarray, valid_images: np.ndarray) -> float:
    """Of the training split's mean image on the validation split, at the σ of its own error there."""
    mean_image = MeanImage.of(for_measuring(train_images, p))
    if p.objective.likelihood == "bernoulli":
        return mean_image.elbo(valid_images, "bernoulli")
    pixels = int(np.prod(p.data.image_shape))
    mse = mean_image.mse(valid_images)
    error = torch.tensor(mse * pixels, dtype=torch.float64)
    return float(gaussian_log_prob(error, pixels, optimal_sigma(mse) ** 2))


def _predicted_verdict(attempt: Attempt) -> str:
    """What linear theory alone would have said: collapsed or not."""
    kl = attempt.evidence.predicted["predicted_kl"]
    return "collapsed" if kl is not None and kl < 1 else "not collapsed"


@contextlib.contextmanager
def _folder_of_its_own() -> Iterator[None]:
    """`data/`, `reports/` and `params.yaml` of the project stay as they are."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        workspace.REPORTS.mkdir()
        try:
            yield
        finally:
            os.chdir(before)


def _line(row: dict[str, Any]) -> str:
    mark = "" if row["right"] else "  ← WRONG"
    skill = (
        f" (skill {row['skill']:.3f}: {row['final_verdict']}, {row['remedies']})" if row["rescued"] else ""
    )
    return (
        f"{row['case']:36} {_short(row['predicted_kl']):>10} {_short(row['kl']):>9}  {row['verdict']:22} "
        f"{row['expected']:22} {row['rescued'] or '–'}{skill}{mark}  {row['seconds']:.0f} s"
    )


def markdown(table: pd.DataFrame) -> str:
    """The table as docs/collapse.md has it."""
    lines = [
        "| case | predicted KL | measured KL | verdict | expected | rescued by | skill |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table.to_dict("records"):
        predicted, kl, skill = (_short(row[name]) for name in ("predicted_kl", "kl", "skill"))
        mark = "" if row["right"] else " (wrong)"
        how = {"yes": row["remedies"], "no": f"not rescued: {row['remedies']}"}.get(row["rescued"], "–")
        lines.append(
            f"| {row['case']} | {predicted} | {kl} | {row['verdict']}{mark} | {row['expected']} | {how} | {skill} |"
        )
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else "–"


def summary(table: pd.DataFrame) -> str:
    parts = []
    for half, rows in table.groupby("half", sort=False):
        healthy = rows["expected"] == "healthy"
        alarmed = int((healthy & (rows["verdict"] != "healthy")).sum())
        asked = rows["rescued"] != ""
        parts.append(
            f"{half}: {rows['right'].sum()} of {len(rows)} verdicts right, {alarmed} of {healthy.sum()} healthy ones "
            f"alarmed, {(rows['rescued'] == 'yes').sum()} of {asked.sum()} rescued."
        )
    return "\n".join(parts)


if __name__ == "__main__":
    entry.run(lambda: typer.run(main))
