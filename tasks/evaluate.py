"""Stage evaluate: how good the model is on images it has never seen; numbers, plots and a report of it all."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks import workspace
from vae import evaluation, grids, parameters, pictures, plots, report, saved
from vae.annealing import first_final_epoch
from vae.batches import open_images
from vae.devices import Compute, choose
from vae.errors import InputError
from vae.evaluation import Evaluation
from vae.parameters import Parameters
from vae.preflight import of_remedied
from vae.report import Facts, Picture, number
from vae.rounding import rounded
from vae.saved import Saved

PAIRS = 8  # best, median and worst reconstructions, this many each
SAMPLES = 48
TRAVERSED = 8  # latents
STEPS = np.linspace(-3, 3, 9)


def main() -> None:
    p = workspace.load_parameters()
    device = choose(p.train).device
    model = saved.load(workspace.MODEL, device)
    p = parameters.changed(p, model.changes)
    monitor = workspace.read_json(workspace.MONITOR)
    facts, latents = evaluate(p, model, model.compute(device), monitor)

    workspace.write_json(workspace.METRICS, facts.metrics)
    shutil.rmtree(workspace.PLOTS, ignore_errors=True)
    workspace.PLOTS.mkdir(parents=True)
    for picture in facts.pictures:
        (workspace.PLOTS / picture.file).write_bytes(picture.png)
    latents.to_csv(workspace.PLOTS / "kl_per_latent.csv", index=False)
    workspace.REPORT.write_text(report.html(facts), encoding="utf-8")

    test = facts.metrics["test"]
    print(
        f"verdict: {monitor['verdict']}\n"
        f"test ELBO {number(test['elbo'])} nats per image, KL {number(test['kl'])}, "
        f"{number(test['active_units'])} of {p.model.latent_dim} units active\n"
        f"report: {workspace.REPORT}",
        flush=True,
    )

    from tasks import tracking

    with tracking.away(
        "this evaluation and its model are not there; once it answers: dvc repro --force --single-item evaluate"
    ):
        tracking.log_evaluation(
            model,
            facts.metrics,
            monitor,
            workspace.PLOTS,
            lambda links: report.html(facts, links),
            p,
        )


def _about_samples(verdict: str) -> str:
    if verdict == "collapsed":
        return "They are all alike because the latents are not used."
    if verdict == "under_regularised":
        return "Most of the prior lies where no image was encoded, so most of these are of nothing seen."
    return (
        "With few images or many latents they can be blurred or mixed even where reconstructions are good: "
        "the verdict judges the latents, not these."
    )


def evaluate(
    p: Parameters, model: Saved, compute: Compute, monitor: Mapping[str, Any]
) -> tuple[Facts, pd.DataFrame]:
    """Everything about a model, from the files of the stages before, and a table of its latents; writes nothing.

    Raises:
        InputError: a file of an earlier stage is missing or does not fit the others.
    """
    images = {split: open_images(workspace.images(split)) for split in workspace.SPLITS}
    manifest = read_manifest()
    labels = {split: labels_of(manifest, split, len(array)) for split, array in images.items()}
    preflight = of_remedied(workspace.read_json(workspace.PREFLIGHT), p, model.changes, model.pixels)
    print(
        f"evaluate: {len(images['valid']):,} valid and {len(images['test']):,} test images, "
        f"{p.evaluate.importance_samples:,} importance samples each",
        flush=True,
    )
    evaluated = evaluation.evaluate(model, images, labels, p, compute)
    facts = Facts(
        parameters=p,
        metrics={split: result.metrics for split, result in evaluated.items()},
        monitor=monitor,
        preflight=preflight,
        validation=workspace.read_json(workspace.VALIDATION),
        manifest=manifest,
        pictures=list(
            draw(
                p,
                model,
                compute,
                images["test"],
                labels["test"],
                evaluated["test"],
                read_epochs(workspace.HISTORY),
                read_epochs(workspace.KL_PER_LATENT),
                preflight,
                monitor["verdict"],
            )
        ),
        hashes={
            **{f"{split} images": workspace.sha256(workspace.images(split)) for split in workspace.SPLITS},
            "model weights": model.sha256,
        },
    )
    return facts, latent_table(evaluated["test"])


def draw(
    p: Parameters,
    model: Saved,
    compute: Compute,
    images: NDArray[np.uint8],
    labels: NDArray[np.object_],
    result: Evaluation,
    history: pd.DataFrame,
    latent_history: pd.DataFrame,
    preflight: Mapping[str, Any],
    verdict: str,
) -> Iterator[Picture]:
    """Every picture of the report, in its order; images, labels and result are of the test split."""
    errors = np.nan_to_num(result.errors, nan=np.inf)
    by_error = np.argsort(errors, kind="stable")
    middle = max(0, (len(by_error) - PAIRS) // 2)
    for name, chosen, what in (
        ("best", by_error[:PAIRS], "The images with the smallest errors"),
        ("median", by_error[middle : middle + PAIRS], "Images in the middle: what to expect"),
        ("worst", by_error[::-1][:PAIRS], "The images with the largest errors, the worst first"),
    ):
        originals = np.array(images[chosen])
        copies = pictures.reconstructions(model, originals, compute)
        span = f"{number(float(errors[chosen].min()))} to {number(float(errors[chosen].max()))}"
        yield Picture(
            "Reconstructions",
            f"reconstructions_{name}.png",
            f"{what}: originals above, reconstructions below (z at its mean). Mean squared error {span}.",
            grids.png(grids.reconstruction_grid(originals, copies, PAIRS)),
        )

    yield Picture(
        "Samples",
        "samples.png",
        f"{SAMPLES} images decoded from z drawn from "
        + ("the prior N(0, 1)" if model.prior is None else "the mixture fitted to the latents after training")
        + ": what the model takes images to be. "
        + _about_samples(verdict),
        grids.png(grids.grid(pictures.samples(model, SAMPLES, compute, p.seed), columns=8)),
    )

    kl = np.nan_to_num(result.measurement.kl_per_latent)
    latents = np.argsort(-kl, kind="stable")[:TRAVERSED]
    start = np.array(images[by_error[len(by_error) // 2]])
    names = ", ".join(f"latent {latent} ({number(float(kl[latent]))} nats)" for latent in latents)
    yield Picture(
        "Traversals",
        "traversals.png",
        "One test image; in each row one latent goes from −3 to 3 while the others stay. "
        f"The most informative latents, from the top: {names}.",
        grids.png(grids.grid(pictures.traversals(model, start, latents, STEPS, compute), columns=len(STEPS))),
    )

    yield Picture(
        "Latent map",
        "latent_map.png",
        "The posterior means of the test images along their two main directions."
        + (" Classes that part here were told apart without labels." if any(labels) else ""),
        plots.png(plots.latent_map(result.mu, labels)),
    )

    ended = f" Training ended early: {model.stopped}." if model.stopped else ""
    yield Picture(
        "Training curves",
        "training_curves.png",
        "Reconstruction and KL of each epoch; the validation split is measured whole, at the final KL weight. "
        f"Kept: epoch {model.kept_epoch} of {len(history)}.{ended}",
        plots.png(plots.training_curves(history, first_final_epoch(p.kl, p.train.epochs), model.kept_epoch)),
    )

    line = p.monitor.informative_unit_nats
    yield Picture(
        "KL per latent",
        "kl_per_latent.png",
        f"The test split's KL of each latent, largest first. Below the dashed line, {line:g} nats, "
        "a latent says next to nothing. Below, in the same order, the share of each latent's variance that is "
        "its posterior's own: 1 says nothing of the image, 0 tells it exactly.",
        plots.png(
            plots.kl_per_latent(
                result.measurement.kl_per_latent,
                result.measurement.posterior_share,
                preflight.get("kl_per_latent"),
                line,
            )
        ),
    )

    yield Picture(
        "KL per latent",
        "kl_over_time.png",
        "The validation split's KL of each latent in each epoch, a row a latent, the largest at the end on top. "
        "A row that turns dark and stays so is a latent lost; one that never lit up was never used.",
        plots.png(plots.kl_over_time(latent_history, model.kept_epoch)),
    )


def latent_table(result: Evaluation) -> pd.DataFrame:
    """A row a latent, the largest KL first: for `dvc plots`, which can lay experiments over one another."""
    kl = result.measurement.kl_per_latent
    order = np.argsort(-np.nan_to_num(kl), kind="stable")
    columns = {
        "kl": kl,
        "mean_variance": result.measurement.mean_variance,
        "posterior_share": result.measurement.posterior_share,
    }
    return pd.DataFrame(
        {"rank": np.arange(1, len(kl) + 1), "latent": order}
        | {name: rounded(values[order].tolist()) for name, values in columns.items()}
    )


def read_manifest() -> pd.DataFrame:
    try:
        return pd.read_parquet(workspace.MANIFEST)
    except FileNotFoundError:
        raise InputError(f"{workspace.MANIFEST} does not exist; `dvc repro` makes it") from None


def labels_of(manifest: pd.DataFrame, split: str, count: int) -> NDArray[np.object_]:
    """The class of each image of a split, in the order of its array; None where it has none."""
    rows = manifest[(manifest["status"] == "ok") & (manifest["split"] == split)].sort_values("index")
    if len(rows) != count:
        raise InputError(
            f"{workspace.MANIFEST} has {len(rows)} {split} images, {workspace.images(split)} has {count}; "
            "run ingest again"
        )
    return np.array([None if pd.isna(label) else str(label) for label in rows["label"]], dtype=object)


def read_epochs(path: Path) -> pd.DataFrame:
    """A table with a row an epoch, as train writes them."""
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `dvc repro` makes it") from None


if __name__ == "__main__":
    workspace.run(main)
