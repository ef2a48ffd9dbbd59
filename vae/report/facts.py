"""What a report tells: plain data, gathered by the stage evaluate and laid out by `vae.report.page`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from vae.config.resolved import ResolvedParameters
from vae.evaluation.probe import ClassRead
from vae.report.latent_map import LatentMap


@dataclass(frozen=True)
class Picture:
    """A picture with what is seen on it. Pictures of one section stand together.

    Attributes:
        file: its name, without folder. png: as DVC and MLflow show it.
        alt: for who can not see it; the caption stands below it in any case.
        svg: a chart as a drawing in the page's own colours; the page then shows this.
        rows, columns: what stands beside and above a grid of images.
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
        """The SVG, made by this program: markup, not text."""
        return Markup(self.svg)


@dataclass(frozen=True)
class Facts:
    """All that a report tells.

    Attributes:
        metrics: `reports/metrics.json`; monitor, preflight, validation: the reports of these names. A key
            that is missing or null shows as a dash.
        manifest: a row a source file.
        pictures: in the order of the report.
        latent_map: of the test images. classes_read: what the linear probe made of each class; empty without one.
        hashes: what was read, by name: SHA-256.
    """

    parameters: ResolvedParameters
    metrics: Mapping[str, Mapping[str, float | None]]
    monitor: Mapping[str, Any]
    preflight: Mapping[str, Any]
    validation: Mapping[str, Any]
    manifest: pd.DataFrame
    pictures: Sequence[Picture]
    latent_map: LatentMap
    classes_read: Sequence[ClassRead]
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Origin:
    """Where a run comes from and what it stands against: for a copy that may hold what differs from run to run.

    Attributes:
        links: (what, text, URL; None where there is none).
        promotion: one sentence: would this model replace the champion, and why; None where nobody asked.
        champion: its name and its metrics on the test split; None without one.
    """

    links: Sequence[tuple[str, str, str | None]]
    promotion: str | None = None
    champion: tuple[str, Mapping[str, float | None]] | None = None
