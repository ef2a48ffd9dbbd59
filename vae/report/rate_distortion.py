"""The rate–distortion curve of a report: the main picture of what was predicted and what was measured.

The stops are points along the curve, one for each KL weight, between which the page's slider moves.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vae.collapse import kl_weights
from vae.collapse.expectations import OperatingPoint, at_threshold, at_weight, distortion, tolerance
from vae.collapse.pilot_curve import PilotCurve, curve_of
from vae.collapse.rate_distortion import Curve, steered
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.resolved import ResolvedParameters
from vae.config.text import three_digits
from vae.inference import grids
from vae.report import charts
from vae.report.facts import Picture, RateDistortion, Row, Stop

STOPS = 60  # and one at this run's weight
DRAWN = 200  # points of a line


def draw(
    p: ResolvedParameters,
    preflight: Mapping[str, Any],
    pictures: Sequence[Mapping[str, Any]],
    sheet: bytes,
    test: Mapping[str, float | None],
) -> RateDistortion | None:
    """None of images that do not vary.

    Args:
        preflight: `reports/preflight.json`, as it would be for these parameters.
        pictures: the R points that the pilot drew, as in `reports/preflight.json`. sheet: a PNG of R + 1 rows of one
            height, originals first.
        test: the metrics of the test split.
    """
    if preflight["eigenvalue_sum"] <= 0:
        return None
    known = curve_of(preflight, math.prod(p.data.image_shape))
    curve = known.of(p)
    here = _of_this_run(p, curve, preflight)
    if not isinstance(curve, PilotCurve):  # a remedy has changed the network that drew them
        pictures = []
    pictured = [at_threshold(p, curve, drawn["threshold"]) for drawn in pictures]
    points = _points(p, curve, here, pictured)
    unit = (
        "distortion, nats per image" if p.objective.likelihood == "bernoulli" else "root mean squared error of a pixel"
    )
    figure = _chart(p, preflight, known, points, here, pictured, unit, test)
    picture = Picture(
        "Rate and distortion",  # the page gives it a place of its own
        "rate_distortion.png",
        _caption(curve, _measured(p, test) is not None, bool(pictured)),
        f"Line chart: {unit}, over the rate, with the prediction for this run and its measurement marked",
        charts.png(figure),
        charts.svg(figure, "rate_distortion"),
    )
    pngs = rows_of(sheet, len(pictured) + 1) if pictured else []
    return RateDistortion(
        picture=picture,
        stops=_stops(p, curve, points, pictured, _lift(p, curve, known, test), figure),
        start=points.index(here) if here is not None else len(points) // 2,
        distortion=unit,
        originals=pngs[0] if pngs else None,
        rows=[
            Row(three_digits(at.kl_weight), three_digits(at.rate), three_digits(at.distortion), _samples(drawn), png)
            for at, drawn, png in zip(pictured, pictures, pngs[1:], strict=True)
        ],
        sentences=[*_error_of(p, preflight["predicted_kl"], test["kl"]), *_without_pilot(p, known, curve, pictured)],
    )


def _chart(
    p: ResolvedParameters,
    preflight: Mapping[str, Any],
    known: Curve,
    points: Sequence[OperatingPoint],
    here: OperatingPoint | None,
    pictured: Sequence[OperatingPoint],
    unit: str,
    test: Mapping[str, float | None],
) -> Figure:
    curve, spectrum = known.of(p), _spectrum_of(known).of(p)
    drawn = np.geomspace(points[0].threshold, points[-1].threshold, DRAWN)
    lines = []
    for by in [curve, spectrum] if isinstance(curve, PilotCurve) else [curve]:
        rates = np.array([by.rates(s).sum() for s in drawn])
        heights = np.array([distortion(p, by, s) for s in drawn]) + _lift(p, by, known, test)
        lines.append((by.source, rates, heights))
    predicted = None
    if here is not None:
        height = here.distortion + _lift(p, curve, known, test)
        predicted = preflight["predicted_kl"], height, f"predicted at a KL weight of {here.kl_weight:.3g}"
    marked = [(at.rate, at.distortion) for at in pictured]
    return charts.rate_distortion(lines, marked, predicted, _measured(p, test), tolerance(p), unit)


def _stops(
    p: ResolvedParameters,
    curve: Curve,
    points: Sequence[OperatingPoint],
    pictured: Sequence[OperatingPoint],
    lift: float,
    figure: Figure,
) -> list[Stop]:
    """lift: what is added to their distortion. figure: drawn, so that the places in it are known."""
    heights = [at.distortion + lift for at in points]
    places = charts.places(figure, np.array([at.rate for at in points]), np.array(heights))
    logs = np.log([at.threshold for at in pictured])
    return [
        Stop(
            kl_weight=three_digits(at.kl_weight),
            effective_beta=three_digits(at.effective_beta),
            rate=three_digits(at.rate),
            distortion=three_digits(height),
            informative=int((curve.rates(at.threshold) > p.monitor.informative_unit_nats).sum()),
            x=round(float(100 * left), 2),
            y=round(float(100 * top), 2),
            row=int(np.abs(logs - math.log(at.threshold)).argmin()) if pictured else -1,
        )
        for at, height, (left, top) in zip(points, heights, places, strict=True)
    ]


def _of_this_run(p: ResolvedParameters, curve: Curve, preflight: Mapping[str, Any]) -> OperatingPoint | None:
    """Where its KL weight, or its control, puts it; None where the rate is unbounded."""
    if preflight["predicted_kl"] is None:
        return None
    if p.kl.control == "schedule":
        return at_weight(p, curve, p.kl.max_weight)
    return at_threshold(p, curve, steered(curve, p, p.kl.max_weight).threshold)


def _points(
    p: ResolvedParameters, curve: Curve, here: OperatingPoint | None, pictured: Sequence[OperatingPoint]
) -> list[OperatingPoint]:
    """In ascending order of the KL weight, evenly in its logarithm: from far below collapse to beyond it."""
    shown = [*pictured, *([here] if here else [])]
    low = min(kl_weights.of_beta(p, curve) / 3, *(at.kl_weight / 1.1 for at in shown), math.inf)
    high = max(kl_weights.critical(p, curve), *(at.kl_weight for at in shown), 0.0)
    points = [at_weight(p, curve, float(weight)) for weight in np.geomspace(low, high, STOPS)]
    return sorted([*points, *([here] if here else [])], key=lambda at: at.kl_weight)


def _spectrum_of(known: Curve) -> Curve:
    return known.spectrum if isinstance(known, PilotCurve) else known


def _lift(p: ResolvedParameters, by: Curve, known: Curve, test: Mapping[str, float | None]) -> float:
    """What linear theory's distortion lacks: of a Bernoulli likelihood, that of the mean image."""
    if p.objective.likelihood != "bernoulli" or isinstance(by, PilotCurve):
        return 0.0
    curve = known.of(p)
    mean_image = curve.total if isinstance(curve, PilotCurve) else -(test.get("mean_image_elbo") or 0.0)
    return mean_image - by.total / 2


def _measured(p: ResolvedParameters, test: Mapping[str, float | None]) -> tuple[float, float] | None:
    """Rate and distortion on the test split, z sampled; None of a diverged model."""
    kl, mse, nats = (test.get(name) for name in ("kl", "mse_sampled", "reconstruction"))
    height = nats if p.objective.likelihood == "bernoulli" else None if mse is None else math.sqrt(mse)
    return None if kl is None or height is None else (kl, height)


def _caption(curve: Curve, is_measured: bool, has_pictures: bool) -> str:
    parts = [f"Each point of the curve is a training at one KL weight, as {curve.source} predicts it."]
    if is_measured:
        parts.append(
            "Blue: the trained model on the test split; the bar spans the rates that a good prediction may give."
        )
    if has_pictures:
        parts.append("The numbers are the rows of pictures below.")
    return " ".join(parts)


def _error_of(p: ResolvedParameters, predicted: float | None, kl: float | None) -> list[str]:
    """How far the prediction was off, in a sentence."""
    if predicted is None or kl is None:
        return []
    told = f"Predicted: {three_digits(predicted)} nats per image. Measured on the test split: {three_digits(kl)}."
    if max(predicted, kl) <= COLLAPSED_BELOW_NATS:
        return [f"{told} Both are less than {COLLAPSED_BELOW_NATS:g} nat: collapse, as predicted."]
    off, allowed = abs(predicted - kl), tolerance(p)
    if off == 0:
        return [told]
    share = f"{off / kl:.0%} of the measured KL" if kl > 0 else "all of it"
    within = "within" if off <= allowed * kl else "beyond"
    way = "low" if predicted < kl else "high"
    return [f"{told} The prediction was too {way} by {share}, {within} the tolerance of {allowed:.0%}."]


def _without_pilot(p: ResolvedParameters, known: Curve, curve: Curve, pictured: Sequence[OperatingPoint]) -> list[str]:
    """Why there is no pilot's curve, or why it has no pictures."""
    if isinstance(curve, PilotCurve):
        if pictured or p.model.architecture != "autoregressive":
            return []
        return ["No pictures: an autoregressive decoder would take minutes to draw images of this size."]
    if isinstance(known, PilotCurve):
        return ["The pilot learnt the curve of another network than that of the remedies: this is linear theory's."]
    if p.model.lower_latents is not None:
        return ["There was no pilot, which would add its curve and pictures: it supports one level of latents only."]
    if p.preflight.pilot is False:
        return ["There was no pilot, which would add its curve and pictures: preflight.pilot is false."]
    if p.preflight.pilot is True:
        return ["There is no curve of a pilot: it learnt nothing, or the images hold next to nothing to encode."]
    return [
        "There was no pilot, which would add its curve and pictures: it would have cost more than a tenth of the "
        "training, or it learnt nothing, or the images hold next to nothing to encode. Set preflight.pilot to true to "
        "have one at any cost."
    ]


def _samples(drawn: Mapping[str, Any]) -> str:
    recall, distance = drawn.get("sample_recall"), drawn.get("sample_frechet")
    return "" if recall is None or distance is None else f"recall {recall:.2f}, Fréchet {three_digits(distance)}"


def rows_of(sheet: bytes, count: int) -> list[bytes]:
    """The rows of a sheet as PNGs."""
    picture = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))
    return [grids.png(row) for row in np.split(picture, count)]
