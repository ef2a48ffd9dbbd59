"""The collapse cases of `experiments/collapse/`: is each verdict right, and does the remedy rescue the run?

`make collapse-cases` runs them all in one process and a temporary folder, and prints for each the predicted and
measured KL, the verdict, the expected verdict and the rescue. Results: `reports/zoo.csv`, `reports/zoo.md`.

A case is an experiment. `cases.csv` adds the expected verdict, written down before the case ran; the best setting
known; and whether thresholds were tuned on the case (`tune`) or it was held out (`held-out`).
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
from vae.collapse import kl_weights, linear_theory, remedies, restarts
from vae.collapse.rate_distortion import Curve
from vae.collapse.restarts import Attempt
from vae.compute import devices
from vae.compute.batches import for_measuring, open_images
from vae.config import loading
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, changed, resolve
from vae.metrics.mean_image import MeanImage
from vae.models.likelihood import Likelihood, gaussian_log_prob, optimal_sigma
from vae.pilot import training as pilot
from vae.training import loop

FOLDER = Path("experiments/collapse")
TABLE, MARKDOWN = workspace.REPORTS / "zoo.csv", workspace.REPORTS / "zoo.md"
RESCUED_SKILL = 0.98  # share of the best known setting's gain over the mean image

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
    case: Annotated[list[str] | None, typer.Option(help="a case; repeat for several")] = None,
    half: Annotated[str | None, typer.Option(help="only the cases of one half: tune or held-out")] = None,
) -> None:
    """Run the collapse cases; exit 1 where a verdict is wrong or a collapse is not rescued."""
    cases = [c for c in read_cases() if (not case or c.name in case) and half in (None, c.half)]
    if not cases:
        raise InputError(
            f"no case matches --case {case or '(any)'} --half {half or '(any)'}; "
            f"cases: {', '.join(c.name for c in read_cases())}"
        )
    started = time.perf_counter()
    base = overlay.lay_over(workspace.PARAMS.read_text(encoding="utf-8"), overlay.defaults())
    texts = {c.name: (FOLDER / f"{c.name}.yaml").read_text(encoding="utf-8") for c in cases}
    rows = []
    print(f"{'case':36} {'predicted':>10} {'KL':>9}  {'verdict':22} {'expected':22} rescued", flush=True)
    with _temporary_folder():
        case_images.write(case_images.FOLDER)
        suite = CaseRunner(base)
        for c in cases:
            row = suite.run(c, texts[c.name])
            rows.append(row)
            print(_line(row), flush=True)
    workspace.REPORTS.mkdir(exist_ok=True)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.to_csv(TABLE, index=False)
    MARKDOWN.write_text(markdown(table), encoding="utf-8")
    print(summary(table) + f" {(time.perf_counter() - started) / 60:.1f} minutes.")
    if not table["right"].all() or not (table["rescued"] != "no").all():
        raise typer.Exit(1)


def read_cases() -> list[Case]:
    table = pd.read_csv(FOLDER / "cases.csv", keep_default_na=False)
    return [Case(*row) for row in table.astype(str).itertuples(index=False)]


class CaseRunner:
    """Runs cases in the working folder; image sets and best settings that several cases share are computed once."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.images: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.best: dict[str, float] = {}
        self.curves: dict[str, Curve] = {}

    def run(self, case: Case, text: str) -> dict[str, Any]:
        """Returns the case's row of the table."""
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
        p, train_images, valid_images, curve = self._prepared(values)
        tried = self._attempts(p, curve, train_images, valid_images)
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
        mean_image = mean_image_elbo(last.trained.likelihood, for_measuring(train_images, p), valid_images)
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
        """The calibrated ELBO (σ at its optimum) of the best setting known, in nats; -inf where none is."""
        if not setting:
            return -math.inf
        values = values | overlay.parse_settings(setting) | {"train.on_collapse": "continue"}
        key = repr(sorted(values.items()))
        if key not in self.best:
            p, train_images, valid_images, curve = self._prepared(values)
            p = changed(p, {"train.remedy_attempts": 0})
            self.best[key] = restarts.calibrated_elbo(self._attempts(p, curve, train_images, valid_images)[0])
        return self.best[key]

    def _attempts(
        self,
        p: ResolvedParameters,
        curve: Curve,
        train_images: np.ndarray,
        valid_images: np.ndarray,
    ) -> list[Attempt]:
        compute = devices.choose(p.train)

        def train(now: ResolvedParameters, number: int, reason: str) -> loop.Trained:
            return loop.train(now, train_images, valid_images, compute)

        return restarts.attempts(p, curve, train_images, valid_images, compute, train)

    def _prepared(self, values: dict[str, Any]) -> tuple[ResolvedParameters, np.ndarray, np.ndarray, Curve]:
        """Parameters, images and curve of one run.

        Raises:
            _Refused: a check of the pipeline refused the case.
        """
        text = overlay.lay_over(self.base, values)
        try:
            p = loading.parse(loading.read_mapping(text, "the case"), "the case")
        except InputError:
            raise _Refused("refused by parameters") from None
        key = repr((p.seed, p.data))
        if key not in self.images:
            self.images[key] = _ingested(text)
        train_images, valid_images = self.images[key]
        key = repr((p.seed, p.data, p.model, p.objective, p.preflight, p.train.epochs, p.train.batch_size))
        if key not in self.curves:
            self.curves[key] = pilot.curve_of(p, linear_theory.spectrum_for(p, train_images), train_images)
        curve = self.curves[key]
        resolved = resolve(p, p.train.steps_per_epoch(len(train_images)), kl_weights.resolved(p, curve))
        return resolved, train_images, valid_images, curve


class _Refused(Exception):
    """A check refused the case; the message is the verdict of the table."""


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


def mean_image_elbo(likelihood: Likelihood, train_images: np.ndarray, valid_images: np.ndarray) -> float:
    """The ELBO of predicting the training mean image for every validation image, in nats: a Gaussian's of one σ at its
    optimum, as `Measurement.elbo_at_own_sigma` has a model's; that of another likelihood by its own probabilities.
    """
    mean_image = MeanImage.of(train_images)
    if likelihood.kind != "gaussian" or not isinstance(likelihood.sigma, float):
        return mean_image.elbo(valid_images, likelihood)
    pixels, mse = math.prod(valid_images.shape[1:]), mean_image.mse(valid_images)
    error = torch.tensor(mse * pixels, dtype=torch.float64)
    return float(gaussian_log_prob(error, pixels, optimal_sigma(mse) ** 2))


def _predicted_verdict(attempt: Attempt) -> str:
    """The verdict of the prediction alone."""
    kl = attempt.evidence.predicted["predicted_kl"]
    return "collapsed" if kl is not None and kl < 1 else "not collapsed"


@contextlib.contextmanager
def _temporary_folder() -> Iterator[None]:
    """Work in a temporary folder, so that the project's `data/`, `reports/` and `params.yaml` stay as they are."""
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
    skill = f" (skill {row['skill']:.3f}: {row['final_verdict']}, {row['remedies']})" if row["rescued"] else ""
    return (
        f"{row['case']:36} {_short(row['predicted_kl']):>10} {_short(row['kl']):>9}  {row['verdict']:22} "
        f"{row['expected']:22} {row['rescued'] or '–'}{skill}{mark}  {row['seconds']:.0f} s"
    )


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    lines = [
        "| case | predicted KL | measured KL | verdict | expected | rescued by | skill |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in table.to_dict("records"):
        predicted, kl, skill = (_short(row[name]) for name in ("predicted_kl", "kl", "skill"))
        mark = "" if row["right"] else " (wrong)"
        how = {"yes": row["remedies"], "no": f"not rescued: {row['remedies'] or 'advice only'}"}.get(
            row["rescued"], "–"
        )
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
