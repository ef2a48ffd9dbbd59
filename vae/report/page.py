"""The report: one self-contained HTML file, bit-identical for the same inputs.

It holds no time, host, run or absolute path. Names from users (classes, files, parameters) are escaped, and the
page's content security policy allows its one script and loads nothing.
"""

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from vae.config.constants import SKIPPED, SPLITS
from vae.config.parameters import Parameters
from vae.config.text import number, printable, written
from vae.evaluation.detail import READ
from vae.evaluation.yardstick import METHODS, NAMES
from vae.inference.grids import embedded
from vae.report.facts import Facts, Origin
from vae.report.latent_map import HEIGHT, WIDTH
from vae.report.numbers import KEY_NUMBERS
from vae.samples.quality import MEASURES

TEMPLATES = Path(__file__).parent / "templates"

QUARANTINED_SHOWN = 50
EXAMPLES_SHOWN = 5

BAD = {"diverged", "collapsed", "not_learning"}
SIGNS = {"good": "✓", "poor": "!", "bad": "✕"}  # so that the page does not rely on colour


def html(facts: Facts, origin: Origin | None = None) -> str:
    """The report. With an origin: the copy for MLflow, with links to its run and a comparison with the champion."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    verdict = str(facts.monitor.get("verdict", "unknown"))
    level = "good" if verdict == "healthy" else "bad" if verdict in BAD else "poor"
    page = _template().render(
        facts=facts,
        origin=origin,
        subject=_subject(facts.parameters),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdict=verdict.replace("_", " "),
        level=level,
        sign=SIGNS[level],
        recommendations=facts.monitor.get("recommendations") or [],
        map_size=(WIDTH, HEIGHT),
        sheet=base64.b64encode(facts.latent_map.sheet).decode(),
        compared=list(_compared(facts, origin)),
        measures=MEASURES,
        methods=METHODS,
        kinds=NAMES,
        read_from=READ,
        data=_data(facts.manifest),
        rules=[rule for rule in facts.validation.get("rules") or [] if rule.get("count")],
        examples_shown=EXAMPLES_SHOWN,
        parameters=_parameters(facts.parameters),
        changed=facts.monitor.get("changes") or {},
    )
    return page.strip() + "\n"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": _percent,
        "short": _short,
        "printable": printable,
        "embedded": embedded,
    }
    return environment.get_template("report.html.j2")


def _subject(p: Parameters) -> str:
    """The data and the number of latents: `leaves, 64×64 pixels in colour, 64 latents`; of two levels those of each."""
    name = PurePath(p.data.path).name if p.data.source in ("folder", "idx", "npy") else p.data.source
    height, width = p.data.image_size
    latents, shape = p.model.latent_dim, p.model.latent_shape
    places = "" if shape is None else f"{shape[0]}×{shape[1]}×{shape[2]} = "
    top = p.model.top_latents
    levels = "" if top == latents else f" ({top} in the upper level, {latents - top} in the lower)"
    return (
        f"{printable(name)}, {width}×{height} pixels in {'grey' if p.data.channels == 1 else 'colour'}, "
        f"{places}{latents} latent{'' if latents == 1 else 's'}{levels}"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _compared(facts: Facts, origin: Origin | None) -> Iterator[tuple[str, str, str, str]]:
    """Yields (quantity, champion, this model, difference with `better` or `worse`)."""
    if origin is None or origin.champion is None:
        return
    for n in KEY_NUMBERS:
        ours, theirs = facts.metrics["test"].get(n.key), origin.champion[1].get(n.key)
        if ours is None or theirs is None:
            continue
        difference = ours - theirs
        gain = difference * n.better
        word = " better" if gain > 0 else " worse" if gain < 0 else ""
        sign = "+" if difference > 0 else ""
        yield n.label, number(theirs), number(ours), f"{sign}{number(difference)}{word}"


def _data(manifest: pd.DataFrame) -> dict[str, Any]:
    """Images of each split and class, and the quarantined files."""
    used = manifest[manifest["status"] == "ok"]
    bad = manifest[(manifest["status"] != "ok") & ~manifest["reason"].str.startswith(SKIPPED, na=False)]
    bad = bad.sort_values("path", kind="stable")
    labelled = used[used["label"].notna()]
    counts = pd.crosstab(labelled["label"].astype(str), labelled["split"]).reindex(columns=SPLITS, fill_value=0)
    return {
        "files": len(manifest),
        "splits": [(split, int((used["split"] == split).sum())) for split in SPLITS],
        "classes": list(zip(counts.index, counts.to_numpy().tolist(), strict=True)),
        "unlabelled": len(used) - len(labelled),
        "quarantined": bad[["path", "reason"]][:QUARANTINED_SHOWN].to_numpy().tolist(),
        "quarantined_count": len(bad),
    }


def _parameters(p: Parameters) -> list[tuple[str, list[tuple[str, str]]]]:
    """Full names and values, by section."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for section, values in p.model_dump().items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            row = (f"{section}.{name}" if name else section, _value(value))
            sections.setdefault(section if name else "all stages", []).append(row)
    return list(sections.items())


def _value(value: Any) -> str:
    """As in params.yaml. An absolute path keeps its last part only: the rest differs between machines."""
    if isinstance(value, str) and PurePath(value).is_absolute():
        return f"…/{PurePath(value).name}"
    return written(value)
