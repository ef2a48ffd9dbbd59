"""Stage `evaluate`: how good the model is on images it has never seen; numbers, plots and a report."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks import workspace
from tasks.processes import contention, entry
from tasks.tracking import evaluation_run, store
from vae.collapse.expectations import of_remedied
from vae.compute import devices
from vae.compute.batches import open_images
from vae.compute.devices import Compute
from vae.config.constants import SPLITS
from vae.config.errors import InputError
from vae.config.files import written_aside
from vae.config.resolved import ResolvedParameters, changed
from vae.config.text import number, printable, rounded
from vae.evaluation.evaluate import Evaluation, evaluate
from vae.evaluation.probe import ClassRead, classes_read
from vae.inference.scoring import elbo_per_image
from vae.metrics.pooled import pooled
from vae.models import saved
from vae.models.saved import Saved
from vae.report import figures, latent_map, page, rate_distortion
from vae.report.facts import Facts
from vae.report.numbers import key_numbers

log = logging.getLogger(__name__)

CLASSES_NAMED = 5


def main() -> None:
    p = workspace.load_parameters()
    device = devices.choose(p.train).device
    model = saved.load(workspace.MODEL, device)
    compute = model.compute(device)
    devices.set_up(compute, p.train.deterministic)
    p = changed(p, model.config.changes)
    monitor = workspace.read_json(workspace.MONITOR)
    with contention.coped_with(compute):
        facts, latents = gather(p, model, compute, monitor)
    write(facts, latents)

    test = facts.metrics["test"]
    log.info(
        f"verdict: {monitor['verdict']}\n"
        f"test ELBO {number(test['elbo'])} ± {number(test['elbo_se'])} nats per image, KL {number(test['kl'])}, "
        f"{number(test['active_units'])} of {p.model.units} units active\n"
        f"report: {workspace.REPORT}"
    )
    for finding in facts.findings:
        log.info(finding)
    elbos = elbo_per_image(model.model, open_images(workspace.images("test")), model.likelihood, compute)
    with store.away(
        "evaluation and model not recorded; to record them later: dvc repro --force --single-item evaluate"
    ):
        evaluation_run.log_evaluation(
            model, facts.metrics, monitor, lambda origin: page.html(facts, origin), p, elbos, facts.findings
        )


def gather(
    p: ResolvedParameters, model: Saved, compute: Compute, monitor: Mapping[str, Any]
) -> tuple[Facts, pd.DataFrame]:
    """Collect the report's content from the model and the earlier stages' files; writes nothing.

    Raises:
        InputError: a file of an earlier stage is missing or does not fit the others.
    """
    images = {split: open_images(workspace.images(split)) for split in SPLITS}
    manifest = workspace.read(workspace.MANIFEST, pd.read_parquet)
    rows = {split: rows_of(manifest, split, len(array)) for split, array in images.items()}
    labels = {split: labels_of(found) for split, found in rows.items()}
    foreseen = workspace.read_json(workspace.PREFLIGHT)
    preflight = of_remedied(foreseen, p, model.config.changes, model.pixels)
    log.info(
        f"evaluate: {len(images['valid']):,} valid and {len(images['test']):,} test images, "
        f"{p.evaluate.importance_samples:,} importance samples each"
    )
    evaluated = evaluate(model, images, labels, p, compute)
    test = evaluated["test"]
    epochs, latent_epochs = (workspace.read(path, pd.read_csv) for path in (workspace.HISTORY, workspace.KL_PER_LATENT))
    drawn = figures.generated(p, model, compute, images["test"], test, monitor["verdict"])
    charted = figures.charted(p, model, test, labels["test"], epochs, latent_epochs, preflight)
    pictured = (foreseen.get("pilot") or {}).get("pictures", [])
    sheet = workspace.read(workspace.PILOT_SHEET, Path.read_bytes)
    curve = rate_distortion.draw(p, preflight, pictured, sheet, test.metrics)
    read = classes_read(labels["test"], test.guesses, labels["train"])
    if line := left_out(read):
        log.info(line)
    descriptions = described(rows["test"], test.errors)
    facts = Facts(
        parameters=p,
        metrics={split: result.metrics for split, result in evaluated.items()},
        monitor=monitor,
        preflight=preflight,
        validation=workspace.read_json(workspace.VALIDATION),
        manifest=manifest,
        pictures=[*drawn, *charted, *([curve.picture] if curve else [])],
        rate_distortion=curve,
        latent_map=latent_map.draw(
            pooled(test.mu, model.model.latent_map), images["test"], labels["test"], descriptions, p.seed
        ),
        classes_read=read,
        yardstick=test.yardstick,
        detail=test.detail,
        hashes={
            **{f"{split} images": workspace.sha256(workspace.images(split)) for split in SPLITS},
            "model weights": model.sha256,
        },
    )
    return facts, latent_table(test)


def write(facts: Facts, latents: pd.DataFrame) -> None:
    workspace.write_json(workspace.METRICS, facts.metrics)
    workspace.write_json(workspace.SUMMARY, summary(facts))
    shutil.rmtree(workspace.PLOTS, ignore_errors=True)
    workspace.PLOTS.mkdir(parents=True)
    for picture in facts.pictures:
        (workspace.PLOTS / picture.file).write_bytes(picture.png)
    with written_aside(workspace.LATENTS) as aside:
        latents.to_csv(aside, index=False)
    workspace.write(workspace.REPORT, page.html(facts))


def summary(facts: Facts) -> dict[str, str | float | None]:
    """The verdict and the key numbers of the test split, for `dvc metrics diff` and `dvc exp show`."""
    test = facts.metrics["test"]
    return {"verdict": facts.monitor["verdict"], **{n.key: test.get(n.key) for n in key_numbers(test)}}


def latent_table(result: Evaluation) -> pd.DataFrame:
    """One row per latent, or channel of a map, largest KL first, for `dvc plots`."""
    kl = result.measurement.kl_per_latent
    order = np.argsort(-np.nan_to_num(kl), kind="stable")
    columns = {
        "kl": kl,
        "mean_variance": result.measurement.mean_variance,
        "posterior_share": result.measurement.posterior_share,
    }
    sorted_columns = {name: rounded(values[order].tolist()) for name, values in columns.items()}
    return pd.DataFrame({"rank": np.arange(1, len(kl) + 1), "latent": order} | sorted_columns)


def rows_of(manifest: pd.DataFrame, split: str, count: int) -> pd.DataFrame:
    """The manifest rows of a split, in the order of its array."""
    rows = manifest[(manifest["status"] == "ok") & (manifest["split"] == split)].sort_values("index")
    if len(rows) != count:
        raise InputError(
            f"{workspace.MANIFEST} has {len(rows)} {split} images, {workspace.images(split)} has {count}; "
            "run `dvc repro --force ingest`"
        )
    return rows


def left_out(read: Sequence[ClassRead]) -> str | None:
    """Which test images the probe's accuracy leaves out, if any."""
    unseen = [row for row in read if row.unseen]
    names = ", ".join(printable(row.name) for row in unseen[:CLASSES_NAMED])
    more = f", and {len(unseen) - CLASSES_NAMED:,} more" if len(unseen) > CLASSES_NAMED else ""
    if not unseen:
        return None
    return (
        f"linear probe: leaves out {sum(row.images for row in unseen):,} test images, since the training split has "
        f"none of their classes ({names}{more})"
    )


def labels_of(rows: pd.DataFrame) -> NDArray[np.object_]:
    """The class of each image, or None."""
    return np.array([None if pd.isna(label) else str(label) for label in rows["label"]], dtype=object)


def described(rows: pd.DataFrame, errors: NDArray[np.float64]) -> list[str]:
    """Descriptions for the latent map: file, class, and reconstruction error."""
    return [
        f"{path}{'' if pd.isna(label) else f', class {label}'}, error {number(float(error))}"
        for path, label, error in zip(rows["path"], rows["label"], errors, strict=True)
    ]


if __name__ == "__main__":
    entry.run(main)
