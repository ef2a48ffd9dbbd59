"""The content of a report as plain data: gathered by the stage evaluate, laid out by `vae.report.page`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from vae.config.resolved import ResolvedParameters
from vae.evaluation.detail import Detail
from vae.evaluation.probe import ClassRead
from vae.evaluation.yardstick import Yardstick
from vae.report.latent_map import LatentMap


@dataclass(frozen=True)
class Picture:
    """A picture, its caption and its section of the report.

    Attributes:
        file: File name without folder. png: What DVC and MLflow show.
        alt: Text for screen readers.
        svg: A chart in the page's colours, which the page shows instead of the PNG.
        rows, columns: Labels beside and above a grid of images.
    """

    section: str
    file: str
    caption: str
    alt: str
    png: bytes
    svg: str | None = None
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()

    @property
    def drawing(self) -> Markup:
        """The SVG as markup: this program generated it, so it needs no escaping."""
        return Markup(self.svg)


@dataclass(frozen=True)
class Stop:
    """A point on the rate–distortion curve, in words; x, y: its place in the chart, in per cent from the upper left.

    informative: How many latents are. row: The nearest row of pictures, −1 without any.
    """

    kl_weight: str
    effective_beta: str
    rate: str
    distortion: str
    informative: int
    x: float
    y: float
    row: int


@dataclass(frozen=True)
class Row:
    """Images that the pilot decodes at one point of the curve, and samples.

    samples: their recall and Fréchet distance; "" where they were not compared.
    """

    kl_weight: str
    rate: str
    distortion: str
    samples: str
    png: bytes


@dataclass(frozen=True)
class RateDistortion:
    """The rate–distortion curve.

    Attributes:
        start: Index of the stop at this run's weight.
        distortion: Its name and unit.
        originals, rows: The pilot's pictures, if there are any.
        sentences: How far the prediction was off, and why something is missing.
    """

    picture: Picture
    stops: Sequence[Stop]
    start: int
    distortion: str
    originals: bytes | None
    rows: Sequence[Row]
    sentences: Sequence[str]

    @property
    def data(self) -> str:
        """The stops as JSON, for the page's script."""
        return json.dumps([list(asdict(stop).values()) for stop in self.stops], ensure_ascii=False)


@dataclass(frozen=True)
class Facts:
    """The content of a report.

    Attributes:
        metrics, monitor, preflight, validation: The JSON reports of these names. A key that is missing or null
            shows as a dash.
        manifest: One row per source file.
        pictures: In the order of the report.
        rate_distortion: None of images that do not vary.
        latent_map: Of the test images.
        classes_read: The linear probe's results by class; empty where there is no probe.
        yardstick: What the latents are worth as features; None without classes.
        detail: What reconstructions keep; None of latents that are not finite.
        hashes: SHA-256 of the inputs, by name.
    """

    parameters: ResolvedParameters
    metrics: Mapping[str, Mapping[str, float | None]]
    monitor: Mapping[str, Any]
    preflight: Mapping[str, Any]
    validation: Mapping[str, Any]
    manifest: pd.DataFrame
    pictures: Sequence[Picture]
    rate_distortion: RateDistortion | None
    latent_map: LatentMap
    classes_read: Sequence[ClassRead]
    yardstick: Yardstick | None
    detail: Detail | None
    hashes: Mapping[str, str]

    @property
    def findings(self) -> list[str]:
        """What the latents are worth as features, then what reconstructions lose: one sentence each."""
        return [sentence for part in (self.yardstick, self.detail) if part for sentence in part.findings()]


@dataclass(frozen=True)
class Origin:
    """What differs from run to run, for the report's copy in MLflow.

    Attributes:
        links: (name, text, URL or None).
        promotion: One sentence: would this model replace the champion, and why. None where the gate did not run.
        champion: Its name and its metrics on the test split, or None.
    """

    links: Sequence[tuple[str, str, str | None]]
    promotion: str | None = None
    champion: tuple[str, Mapping[str, float | None]] | None = None
