"""The picture of a prediction: rate against distortion, the spectrum of the images, and the KL over KL weights."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.collapse import kl_weights, rate_distortion
from vae.collapse.expectations import OperatingPoint, at_weight
from vae.collapse.linear_theory import Spectrum
from vae.collapse.rate_distortion import Curve
from vae.config.beta_elbo import BetaELBO
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.parameters import Parameters

BLUE, RED, GREY = "#2f6db3", "#c0392b", "#888888"
TICKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # of the square-root scale


def draw(
    p: Parameters, weight: float, spectrum: Spectrum, curve: Curve, pictured: list[OperatingPoint] | None = None
) -> Figure:
    """pictured: the points whose pictures are on the pilot's sheet, numbered here."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplot_mosaic([["distortion", "distortion"], ["spectrum", "kl"]])
    weights = kl_weights.of_interest(kl_weights.critical(p, spectrum), weight)
    lines = [
        (by.source, colour, [at_weight(p, by, float(w)) for w in weights])
        for by, colour in [(spectrum, GREY)] * (curve is not spectrum) + [(curve, BLUE)]
    ]
    _rate_distortion(panels["distortion"], p, weight, lines, curve, pictured or [])
    _spectrum(panels["spectrum"], spectrum, rate_distortion.threshold(curve, BetaELBO.of(p, weight)))
    _kl(panels["kl"], weights, lines, weight, kl_weights.of_rate(p, curve))
    return figure


Lines = list[tuple[str, str, list[OperatingPoint]]]  # name, colour, points


def _rate_distortion(
    ax: Axes, p: Parameters, weight: float, lines: Lines, curve: Curve, pictured: list[OperatingPoint]
) -> None:
    bernoulli = p.objective.likelihood == "bernoulli"
    unit = "root mean squared error of a pixel"
    if bernoulli:
        unit = "distortion, nats" + (" up to a constant" if len(lines) == 1 else "")
        lines = lines[-1:]  # linear theory's has another zero
    for name, colour, points in lines:
        ax.plot([at.rate for at in points], [at.distortion for at in points], color=colour, label=name)
    ax.axvspan(0, COLLAPSED_BELOW_NATS, color=RED, alpha=0.12, lw=0, label="collapse: less than 1 nat is left")
    for number, at in enumerate(pictured, start=1):
        ax.plot(at.rate, at.distortion, "o", color="black", ms=4)
        ax.annotate(str(number), (at.rate, at.distortion), (4, 4), textcoords="offset points", weight="bold")
    if weight > 0 and p.kl.control == "schedule":
        here = at_weight(p, curve, weight)
        ax.plot(here.rate, here.distortion, "D", color=RED, ms=7, label=f"kl.max_weight = {weight:g}")
    most = max(lines[-1][2][0].rate, 1.1)
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set_xticks(TICKS, [str(tick) for tick in TICKS])
    ax.set_xlim(0, most)
    ax.set(xlabel="rate (nats per image, square-root scale)", ylabel=unit, title="Predicted rate and distortion")
    ax.legend()


def _spectrum(ax: Axes, spectrum: Spectrum, threshold: float) -> None:
    values = spectrum.eigenvalues
    ax.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-12), marker=".", color=BLUE)
    ax.axhline(threshold, color=RED, ls="--", label="threshold at this weight")
    ax.set(xlabel="latent", ylabel="eigenvalue of the images' covariance", title="Spectrum of the images")
    ax.legend()


def _kl(ax: Axes, weights: np.ndarray, lines: Lines, weight: float, collapse: float) -> None:
    for name, colour, points in lines:
        ax.semilogx(weights, [at.rate for at in points], color=colour, label=name)
    ax.axhline(COLLAPSED_BELOW_NATS, color=GREY, lw=0.8)
    if collapse > 0 and math.isfinite(collapse):
        ax.axvspan(min(collapse, weights[-1]), weights[-1], color=RED, alpha=0.12, label="collapse predicted")
    if weight > 0:
        ax.axvline(weight, color=RED, ls="--", label=f"kl.max_weight = {weight:g}")
    ax.set(xlabel="KL weight", ylabel="predicted KL (nats per image)", title="Predicted KL")
    ax.set_xlim(weights[0], weights[-1])
    ax.legend()
