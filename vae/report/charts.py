"""The charts of an evaluation. The same data gives the same bytes: no pyplot, no user style, no date.

Each is narrow enough for a phone to show it with readable text; a wide page shows two side by side.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vae.config.constants import COLLAPSED_BELOW_NATS

SHEET = Path(__file__).parent / "templates/charts.mplstyle"
STYLE = matplotlib.rc_params_from_file(SHEET, use_default_template=False)

BLUE, ORANGE, GREEN, RED = "#2f6db3", "#d9822b", "#3c8d5a", "#c0392b"
INK, GREY, LIGHT = STYLE["text.color"], STYLE["axes.edgecolor"], STYLE["grid.color"]
CLASSES = (BLUE, ORANGE, GREEN, RED, "#7d5ba6", "#8c5a3c", "#d069a8", "#a3a72f", "#2fa7b3", "#5b6470")
LONGEST_NAME = 30  # characters of a class name in a legend
WIDTH = 5.6  # inches
# The page replaces these colours by its own variables: light, dark and print differ.
PAGE_COLOURS = {
    BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red", INK: "ink", GREY: "quiet", LIGHT: "line",
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    with matplotlib.style.context(["default", SHEET]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # class names may be in any script
        yield


@styled()
def training_curves(history: pd.DataFrame, ramp_epochs: float, kept_epoch: int) -> Figure:
    """Reconstruction, KL and KL weight over epochs, with the ramp shaded and the kept epoch marked.

    history: the columns of `vae.training.history.COLUMNS`. kept_epoch: from 1, or 0 for none.
    """
    figure = Figure(figsize=(WIDTH, 6), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.4])
    epochs = history["epoch"].to_numpy()
    for ax, name, title in (
        (axes[0], "reconstruction", "Reconstruction: −ln p(x|z), nats per image"),
        (axes[1], "kl", "KL: information in the latents, nats per image"),
    ):
        for split, colour in (("train", BLUE), ("valid", ORANGE)):
            ax.plot(epochs, history[f"{split}/{name}"], color=colour, label=split, **_dots(len(epochs)))
        ax.set_title(title)
        values = history[[f"train/{name}", f"valid/{name}"]].to_numpy()
        _limit_to_later_epochs(ax, values, from_zero=name == "kl")
    axes[2].plot(epochs, history["kl_weight"], color=GREEN, **_dots(len(epochs)))
    axes[2].set_title("KL weight at the end of the epoch")
    axes[2].set_ylim(bottom=0)
    axes[2].set_xlabel("epoch")
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    right = max(float(epochs.max()), 1.0)
    for ax in axes:
        if ramp_epochs > 0:
            ax.axvspan(0.5, min(ramp_epochs, right) + 0.5, color=GREEN, alpha=0.1, lw=0, label="KL ramp")
        if kept_epoch > 0:
            ax.axvline(kept_epoch, color=INK, lw=1, ls=":", label=f"kept epoch {kept_epoch}")
        ax.set_xlim(0.5, right + 0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


@styled()
def kl_per_latent(
    kl: NDArray[np.float64],
    posterior_share: NDArray[np.float64],
    predicted: Sequence[float] | None,
    informative: float,
    source: str = "linear theory",
    unit: str = "latent",
) -> Figure:
    """KL of each latent, largest first, with the prediction of `source` and the threshold `informative`.

    kl: (Z,), nats per image. posterior_share: (Z,), in [0, 1], plotted below in the same order. unit: latent, channel.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    kl = np.nan_to_num(kl, nan=0, posinf=0)
    ranked = np.argsort(-kl, kind="stable")
    place, order = np.arange(1, len(kl) + 1), kl[ranked]
    above = order > informative
    for bars, colour, label in ((above, BLUE, "informative"), (~above, GREY, f"at most {informative:g} nats")):
        if bars.any():
            ax.bar(place[bars], order[bars], width=0.85, color=colour, label=label)
            below.bar(place[bars], np.nan_to_num(posterior_share)[ranked][bars], width=0.85, color=colour)
    if predicted is not None and len(predicted):
        expected = np.sort(np.asarray(predicted, dtype=np.float64))[::-1]
        steps = np.arange(len(expected) + 1) + 0.5
        ax.stairs(expected, steps, baseline=None, color=ORANGE, lw=1.6, label=f"predicted by {source}")
    ax.axhline(informative, color=RED, lw=1, ls="--")
    ax.set(ylabel="KL, nats per image", xlim=(0.4, len(order) + 0.6))
    below.set(xlabel=f"{unit}, sorted", ylabel="posterior's share\nof variance", ylim=(0, 1))
    ax.set_ylim(0, max(ax.get_ylim()[1], 2 * informative))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return figure


@styled()
def kl_over_time(epochs: pd.DataFrame, kept_epoch: int, unit: str = "latent") -> Figure:
    """Heat map of KL in nats per image: epochs on x, latents on y, sorted by their last KL.

    epochs: the column `epoch` and one column per latent. The colour scale is a square root, so that 0.1 nats differ
    visibly from 0 beside latents of several nats. kept_epoch, unit: as above.
    """
    kl = np.nan_to_num(epochs.drop(columns="epoch").to_numpy(np.float64), nan=0, posinf=0)
    ranked = np.argsort(-kl[-1], kind="stable")
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(
        kl[:, ranked].T,
        extent=(0.5, len(kl) + 0.5, kl.shape[1] + 0.5, 0.5),
        norm=PowerNorm(0.5, vmin=0, vmax=max(kl.max(), 1e-3)),
        cmap="viridis",
        aspect="auto",
        interpolation="nearest",
    )
    if kept_epoch > 0:
        ax.axvline(kept_epoch, color="white", lw=1, ls=":")
    ax.grid(visible=False)
    ax.set(xlabel="epoch", ylabel=f"{unit}, sorted by its last KL")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(drawn, ax=ax, label="KL, nats per image")
    return figure


@styled()
def expected_kl(
    weights: NDArray[np.float64],
    kl: NDArray[np.float64],
    collapse: float | None,
    weight: float,
    measured: float | None,
    source: str = "linear theory",
) -> Figure:
    """Predicted KL over KL weights, by `source`, with the weight of this run and its measured KL.

    weights, kl: (K,), kl in nats per image. collapse: collapse is predicted above this weight.
    """
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    ax = figure.subplots()
    ax.semilogx(weights, kl, color=ORANGE, label=f"predicted by {source}")
    if collapse is not None and collapse < weights[-1]:
        ax.axvspan(max(collapse, weights[0]), weights[-1], color=RED, alpha=0.12, lw=0, label="collapse predicted")
    if weight > 0:
        ax.axvline(weight, color=INK, lw=1, ls=":", label=f"weight of this run: {weight:g}")
        if measured is not None:
            ax.plot([weight], [measured], "o", color=BLUE, ms=8, label=f"measured: {measured:.3g} nats")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set(xlabel="KL weight", ylabel="KL, nats per image", xlim=(weights[0], weights[-1]))
    ax.set_ylim(bottom=0)
    ax.legend()
    return figure


@styled()
def rate_distortion(
    curves: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64]]],
    pictured: Sequence[tuple[float, float]],
    predicted: tuple[float, float, str] | None,
    measured: tuple[float, float] | None,
    tolerance: float,
    distortion: str,
) -> Figure:
    """Distortion over rate in nats per image, on a square-root scale, so that the last nats have room.

    curves: (name, rates, distortions), the main one first. pictured: (rate, distortion) of the numbered points.
    predicted: of this run, with its label. measured: of the trained model; the predicted rate may be off by
    `tolerance`, a share of the measured one. distortion: the label of its axis.
    """
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    ax = figure.subplots()
    (name, rates, errors), *others = curves
    for other, x, y in others:
        ax.plot(x, y, color=GREY, lw=1, label=other)
    ax.plot(rates, errors, color=ORANGE, lw=2.4, label=name)
    ax.axvspan(0, COLLAPSED_BELOW_NATS, color=RED, alpha=0.12, lw=0, label="collapse: less than 1 nat is left")
    if predicted is not None:
        ax.plot(*predicted[:2], "D", color=ORANGE, ms=8, mec=INK, mew=1, label=predicted[2], ls="")
    if measured is not None:
        label = f"measured, ± {tolerance:.0%} of the KL"
        ax.errorbar(*measured, xerr=tolerance * measured[0], fmt="o", color=BLUE, ms=7, capsize=4, label=label)
    for number, point in enumerate(pictured, start=1):
        ax.plot(*point, "o", color=INK, ms=4)
        ax.annotate(str(number), point, (4, 4), textcoords="offset points", weight="bold")
    most = max(
        float(rates.max()), 1.1, predicted[0] if predicted else 0, measured[0] * (1 + tolerance) if measured else 0
    )
    ticks = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xlim(0, 1.03 * most)
    ax.set(xlabel="rate, nats per image (square-root scale)", ylabel=distortion)
    ax.legend()
    return figure


@styled()
def detail_kept(kept: NDArray[np.float64], colour: NDArray[np.float64] | None, side: int, threshold: float) -> Figure:
    """The share of the images' power that reconstructions keep, by octave of width; below 0 is drawn as 0.

    kept, colour: (K,), widths to 2, 4, 8, … pixels, of all channels and of differences of colour. side: the widest
    there is. threshold: below, an octave is lost.
    """
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    ax = figure.subplots()
    place = np.arange(len(kept))
    series = [(kept, BLUE, "of detail")] + (
        [(colour, ORANGE, "of differences of colour")] if colour is not None else []
    )
    width = 0.85 / len(series)
    for index, (shares, fill, label) in enumerate(series):
        left = place + (index - (len(series) - 1) / 2) * width
        ax.bar(left, np.clip(np.nan_to_num(shares), 0, 1), width=width, color=fill, label=label)
    ax.axhline(threshold, color=RED, lw=1, ls="--")
    ax.set_xticks(place, [f"{2**k}–{min(2 ** (k + 1), side)}" for k in range(len(kept))])
    ax.set(xlabel="width of spots and stripes, pixels", ylabel="power kept", ylim=(0, 1))
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def places(figure: Figure, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where data points lie in a drawn figure, as shares of its width from the left and its height from above: (K, 2).

    Points outside of the axes lie on their edge.
    """
    ax = figure.axes[0]
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    inside = np.stack([np.clip(x, left, right), np.clip(y, low, high)], 1)
    shares = figure.transFigure.inverted().transform(ax.transData.transform(inside))
    return np.stack([shares[:, 0], 1 - shares[:, 1]], 1)


@styled()
def latent_map(mu: NDArray[np.float32], labels: NDArray[np.object_]) -> Figure:
    """The first two principal components of the posterior means, coloured by class; rare classes share a grey.

    mu: (N, Z). labels: (N,), None for an image without a class.
    """
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    ax = figure.subplots()
    points, explained = principal_components(mu)
    style: dict[str, Any] = {"s": 22 if len(mu) < 3000 else 5, "alpha": 0.75, "lw": 0}
    by_class = groups(labels)
    for name, members, colour in by_class:
        ax.scatter(*points[members].T, color=colour, label=name, **style)
    ax.set(
        xlabel=f"first principal component ({explained[0]:.0%} of the variance)",
        ylabel=f"second ({explained[1]:.0%})",
    )
    if len(by_class) > 1:
        legend = ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2 if len(mu) < 3000 else 3)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class name such as `$x^` is not a formula
    return figure


def principal_components(mu: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2) coordinates and the share of the variance of each axis; zeros where the latents do not vary.

    The largest entry of each direction is positive, so that the picture does not flip between machines.
    """
    centred = np.nan_to_num(mu.astype(np.float64), posinf=0, neginf=0)
    centred = centred - centred.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :2]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    points, shares = np.zeros((len(mu), 2)), np.zeros(2)
    points[:, : vectors.shape[1]] = centred @ vectors
    if values.sum() > 0:
        shares[: vectors.shape[1]] = values[:2] / values.sum()
    return points, shares


def groups(labels: NDArray[np.object_]) -> list[tuple[str, NDArray[np.bool_], str]]:
    """(name, members, colour) of the most frequent classes, of all others together, and of images without a class."""
    known = np.array([label is not None for label in labels], dtype=bool)
    texts = np.array([str(label) for label in labels])
    names, counts = np.unique(texts[known], return_counts=True)
    most = len(CLASSES)
    shown = sorted(names[np.argsort(-counts, kind="stable")][: most if len(names) <= most else most - 1])
    found = [(_short(name), known & (texts == name), CLASSES[i]) for i, name in enumerate(shown)]
    rest = known & ~np.isin(texts, shown)
    if rest.any():
        found.insert(0, (f"{len(names) - len(shown)} other classes", rest, LIGHT))
    if not known.all():
        found.insert(0, ("no class", ~known, LIGHT if len(names) else BLUE))
    return found


@styled()
def png(figure: Figure) -> bytes:
    """The figure as PNG, without a date: the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


@styled()
def svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element with text as text and the page's colours (`PAGE_COLOURS`).

    name: unique on the page; it seeds the ids inside the element.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<(metadata|style).*?</\1>\s*|<!--.*?-->\s*", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # figure_1, axes_1: not unique on the page
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    drawing = re.sub(r"font-family: [^;\"]*;? ?", "", drawing)
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", drawing)
    for colour, page_colour in PAGE_COLOURS.items():
        drawing = drawing.replace(colour, f"var(--{page_colour})")
    return drawing.strip()


def _dots(epochs: int) -> dict[str, Any]:
    """Markers for short histories: a line of one point would be invisible."""
    return {"marker": "o", "ms": 3} if epochs <= 20 else {}


def _limit_to_later_epochs(ax: Axes, values: NDArray[np.float64], from_zero: bool) -> None:
    """Cut the y axis to the later epochs where the first ones, often many times worse, would flatten the rest.

    A KL that falls to nearly 0, as in a collapse, stays in view.
    """
    finite = values[np.isfinite(values).all(1)]
    if from_zero:
        ax.set_ylim(bottom=0)
    if len(finite) < 10:
        return
    later = finite[len(finite) // 10 :]
    low, high = (0 if from_zero else later.min()), later.max()
    if np.abs(later).max() >= 1 and finite.max() - low > 3 * (high - low):
        margin = 0.1 * (high - low)
        ax.set_ylim(low if from_zero else low - margin, high + margin)


def _short(name: str) -> str:
    text = "".join(c if c.isprintable() else "?" for c in " ".join(name.split()))
    text = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
    return f" {text}" if text.startswith("_") else text  # matplotlib omits labels with a leading _
