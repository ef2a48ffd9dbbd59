"""The pictures of the report: images that the model generates, and charts of its measurements."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vae.collapse import kl_weights
from vae.collapse.pilot_curve import curve_of
from vae.collapse.rate_distortion import predict
from vae.compute.devices import Compute
from vae.config.beta_elbo import BetaELBO
from vae.config.resolved import ResolvedParameters
from vae.config.text import number, two_digits
from vae.evaluation.detail import KEPT, Detail
from vae.evaluation.evaluate import Evaluation
from vae.inference import generate, grids
from vae.metrics.pooled import pooled
from vae.models.saved import Saved
from vae.priors.standard import STANDARD
from vae.report import charts
from vae.report.facts import Picture
from vae.schedules.kl import first_final_epoch

COMPARED = 10  # images in a row
FARTHEST = 3  # a traversal goes from −3 to 3 standard deviations of the prior


@dataclass(frozen=True)
class Amount:
    """How many images: pairs for each of best, median and worst, samples, traversed latents and their steps."""

    pairs: int
    samples: int
    latents: int
    steps: int


MANY = Amount(pairs=8, samples=48, latents=8, steps=7)
FEW = Amount(pairs=4, samples=12, latents=3, steps=5)  # an autoregressive decoder is slow: it samples pixel by pixel


def generated(
    p: ResolvedParameters, model: Saved, compute: Compute, images: NDArray[np.uint8], result: Evaluation, verdict: str
) -> Iterator[Picture]:
    """Images that the model generates; `images` and `result` are of the test split."""
    amount = FEW if p.model.architecture == "autoregressive" else MANY
    errors = np.nan_to_num(result.errors, nan=np.inf)
    by_error = np.argsort(errors, kind="stable")
    yield from _reconstructions(model, compute, images, errors, by_error, amount.pairs)
    yield from _samples(model, compute, images, amount.samples, verdict, p.seed)
    kl = np.nan_to_num(result.measurement.kl_per_latent)
    yield _traversals(model, compute, np.array(images[by_error[len(by_error) // 2]]), kl, amount, p.model.unit)


def _reconstructions(
    model: Saved,
    compute: Compute,
    images: NDArray[np.uint8],
    errors: NDArray[np.float64],
    by_error: NDArray[np.int64],
    pairs: int,
) -> Iterator[Picture]:
    middle = max(0, (len(by_error) - pairs) // 2)
    for name, chosen, what in (
        ("best", by_error[:pairs], "The images with the smallest errors"),
        ("median", by_error[middle : middle + pairs], "Images with the median error"),
        ("worst", by_error[::-1][:pairs], "The images with the largest errors, worst first"),
    ):
        originals = np.array(images[chosen])
        copies = generate.reconstruct(model.model, originals, model.likelihood, compute)
        span = f"{number(float(errors[chosen].min()))} to {number(float(errors[chosen].max()))}"
        yield Picture(
            "Reconstructions",
            f"reconstructions_{name}.png",
            f"{what}. Mean squared error {span}, with z = μ.",
            f"{len(chosen)} test images above, their reconstructions below: {name}",
            grids.png(grids.reconstruction_grid(originals, copies, pairs)),
            rows=("original", "decoded"),
        )


def _samples(
    model: Saved, compute: Compute, images: NDArray[np.uint8], count: int, verdict: str, seed: int
) -> Iterator[Picture]:
    """Of the prior that the model ships with; beside that of the ELBO and reconstructions, where this is another."""
    name, own = model.config.prior.name, model.model.prior_name
    described = f"the prior fitted to the latents after training (a {name})"
    if name == own:
        described = own if own == STANDARD else f"the {own}"
    drawn = generate.samples(model, model.prior, count, compute, seed)
    yield Picture(
        "Samples",
        "samples.png",
        f"{count} images decoded from z drawn from {described}."
        + (" They are all alike: the decoder ignores the latents." if verdict == "collapsed" else ""),
        f"{count} images that the model generated",
        grids.png(grids.grid(drawn, columns=8)),
    )
    if name != own:
        plain = generate.samples(model, model.own_prior, COMPARED, compute, seed)
        copies = generate.reconstruct(model.model, np.array(images[:COMPARED]), model.likelihood, compute) / 255
        rows = np.concatenate([copies, drawn[: len(copies)], plain[: len(copies)]])
        yield Picture(
            "Samples",
            "samples_compared.png",
            "Reconstructions of test images, which are the best that this decoder can draw; samples of the fitted "
            f"prior; samples of {own if own == STANDARD else f'the {own}'}, which the training assumed.",
            f"Three rows of images: reconstructions, samples of the fitted prior, samples of {own}",
            grids.png(grids.grid(rows, len(copies))),
            rows=("reconstructions", "fitted prior", STANDARD if own == STANDARD else "learned prior"),
        )


def _traversals(
    model: Saved, compute: Compute, start: NDArray[np.uint8], kl: NDArray[np.float64], amount: Amount, unit: str
) -> Picture:
    """The latents, or channels of a map, with the highest KL, from one image, (H, W, C)."""
    latents = np.argsort(-kl, kind="stable")[: amount.latents]
    steps = np.linspace(-FARTHEST, FARTHEST, amount.steps)
    return Picture(
        "Traversals",
        "traversals.png",
        f"One test image, decoded with one {unit} at a time set to the value above the column"
        f"{'' if unit == 'latent' else ', everywhere,'} while the others stay. "
        f"The most informative {unit}s, from the top, each with its KL.",
        f"A grid of images: {len(latents)} {unit}s, each from −{FARTHEST} to {FARTHEST}",
        grids.png(grids.grid(generate.traversals(model, start, latents, steps, compute), columns=len(steps))),
        rows=[f"z{latent} · {two_digits(kl[latent])}" for latent in latents],
        columns=[number(round(float(step), 2)) for step in steps],
    )


def charted(
    p: ResolvedParameters,
    model: Saved,
    result: Evaluation,
    labels: NDArray[np.object_],
    history: pd.DataFrame,
    latent_history: pd.DataFrame,
    preflight: Mapping[str, Any],
) -> Iterator[Picture]:
    """Charts over epochs, latents and KL weights; `result` and `labels` are of the test split.

    history, latent_history: one row per epoch. preflight: `reports/preflight.json`.
    """
    ended = f" Training ended early: {model.config.stopped}." if model.config.stopped else ""
    kept, unit = model.config.kept_epoch, p.model.unit
    if result.detail:
        yield _detail(result.detail)
    yield _chart(
        "Training",
        "training_curves",
        "Reconstruction and KL of each epoch. The whole validation split is measured, at the final KL weight. "
        f"Kept: epoch {kept} of {len(history)}.{ended}",
        "Line charts over epochs: reconstruction, KL and KL weight, the ramp shaded and the kept epoch marked",
        charts.training_curves(history, first_final_epoch(p.kl, p.train.epochs), kept),
    )
    yield _chart(
        "Training",
        "kl_over_time",
        f"The KL of each {unit} on the validation split, one row per {unit}, sorted by the last epoch. "
        f"A row that turns dark and stays dark is a {unit} that collapsed; one that was always dark was never used.",
        f"Heat map: the KL of each {unit} in each epoch",
        charts.kl_over_time(latent_history, kept, unit),
    )
    if p.kl.control == "schedule" and preflight["eigenvalue_sum"] > 0:
        yield _expected_kl(p, model, preflight, result.metrics["kl"])
    yield _kl_per_latent(result, preflight, p.monitor.informative_unit_nats, unit)
    yield Picture(
        "Latent map",  # the page draws its own, interactive one
        "latent_map.png",
        "The posterior means of the test images along their first two principal components.",
        "Scatter plot of the test images, coloured by class",
        charts.png(charts.latent_map(pooled(result.mu, model.model.latent_map), labels)),
    )


def _detail(found: Detail) -> Picture:
    return _chart(
        "Detail",
        "detail_kept",
        "How much of the images' power the reconstructions keep (1 − power of the error / power of the image), from "
        "the finest spots and stripes to the widest. Under the dashed line, less than half.",
        "Bar chart: the share of power that reconstructions keep, by width of spots and stripes",
        charts.detail_kept(found.spectrum.kept, found.colour.kept if found.colour else None, found.spectrum.side, KEPT),
    )


def _expected_kl(p: ResolvedParameters, model: Saved, preflight: Mapping[str, Any], measured: float | None) -> Picture:
    curve = curve_of(preflight, model.pixels).of(p)
    weights = kl_weights.of_interest(preflight["critical_kl_weight"], p.kl.max_weight)
    kl = np.array([predict(curve, BetaELBO.of(p, weight)).kl for weight in weights])
    return _chart(
        "Predicted and measured",
        "expected_kl",
        f"The KL that {curve.source} predicts for each KL weight, this run's weight, and its KL on the test split.",
        "Line chart: predicted KL over KL weights, with the weight and KL of this run marked",
        charts.expected_kl(weights, kl, preflight["collapse_kl_weight"], p.kl.max_weight, measured, curve.source),
    )


def _kl_per_latent(result: Evaluation, preflight: Mapping[str, Any], informative: float, unit: str) -> Picture:
    found, source = result.measurement, preflight["predicted_by"]
    return _chart(
        "Predicted and measured",
        "kl_per_latent",
        f"The KL of each {unit} on the test split, largest first. Under the dashed line, {informative:g} nats, "
        f"a {unit} carries almost nothing. Lower panel, in the same order: the posterior's share of each {unit}'s "
        "variance; 1 means independent of the image, 0 means determined by it.",
        f"Bar chart: KL of each {unit} beside the prediction, and the posterior's share of variance",
        charts.kl_per_latent(
            found.kl_per_latent, found.posterior_share, preflight.get("kl_per_latent"), informative, source, unit
        ),
    )


def _chart(section: str, name: str, caption: str, alt: str, figure: Figure) -> Picture:
    return Picture(section, f"{name}.png", caption, alt, charts.png(figure), charts.svg(figure, name))
