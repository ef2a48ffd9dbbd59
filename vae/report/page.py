"""The report: one self-contained HTML file, the same to the bit for the same inputs.

It holds no time, host, run or absolute path. Names from users (classes, files, parameters) are escaped, and the
page's content security policy allows its one script and loads nothing.
"""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vae.config.constants import SPLITS
from vae.config.parameters import Parameters
from vae.config.text import number, printable
from vae.inference.grids import embedded
from vae.report.facts import Facts, Origin, Picture
from vae.report.latent_map import HEIGHT, WIDTH
from vae.report.numbers import KEY_NUMBERS

QUARANTINED_SHOWN = 50
EXAMPLES_SHOWN = 5

# A sign for each level, so that the page does not rely on colour.
LEVELS = {"good": "✓", "poor": "!", "bad": "✕"}
LEVEL_OF = {
    "healthy": "good",
    "partly_collapsed": "poor",
    "under_regularised": "poor",
    "overfitted": "poor",
    "diverged": "bad",
    "collapsed": "bad",
    "not_learning": "bad",
}


@dataclass(frozen=True)
class Number:
    name: str
    value: str
    meaning: str


def html(facts: Facts, origin: Origin | None = None) -> str:
    """The report. With an origin: the copy for MLflow, with links to its run and a comparison with the champion."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "printable": printable, "embedded": embedded}
    script = (folder / "report.js").read_text(encoding="utf-8")
    verdict = str(facts.monitor.get("verdict", "unknown"))
    level = LEVEL_OF.get(verdict, "poor")
    recommendations = [str(text) for text in facts.monitor.get("recommendations") or []]
    sections: dict[str, list[Picture]] = {}
    for picture in facts.pictures:
        sections.setdefault(picture.section, []).append(picture)
    page = environment.get_template("report.html.j2").render(
        facts=facts,
        origin=origin,
        subject=_subject(facts.parameters),
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        verdict=verdict.replace("_", " "),
        level=level,
        sign=LEVELS[level],
        to_do=_summarised(recommendations) if recommendations else _without_recommendation(verdict),
        recommendations=recommendations,
        numbers=list(_key_numbers(facts)),
        sections=sections,
        map_size=(WIDTH, HEIGHT),
        sheet=base64.b64encode(facts.latent_map.sheet).decode(),
        compared=list(_compared(facts, origin)),
        predictions=list(_predictions(facts)),
        weights=list(_weights(facts)),
        data=_data(facts.manifest),
        rules=[rule for rule in facts.validation.get("rules") or [] if rule.get("count")],
        examples_shown=EXAMPLES_SHOWN,
        parameters=_parameters(facts.parameters),
        changed=facts.monitor.get("changes") or {},
    )
    return page.strip() + "\n"


def _subject(p: Parameters) -> str:
    """The data and the number of latents: `leaves, 64×64 pixels in colour, 64 latents`."""
    name = PurePath(p.data.path).name if p.data.source in ("folder", "idx", "npy") else p.data.source
    height, width = p.data.image_size
    latents = p.model.latent_dim
    return (
        f"{printable(name)}, {width}×{height} pixels in {'grey' if p.data.channels == 1 else 'colour'}, "
        f"{latents} latent{'' if latents == 1 else 's'}"
    )


def _summarised(recommendations: list[str]) -> str:
    more = len(recommendations) - 1
    return recommendations[0] + (f", and {more} more below" if more else "")


def _without_recommendation(verdict: str) -> str:
    if verdict == "healthy":
        return "Nothing needs to change. Look at the reconstructions and samples below, then use the model."
    return "Look at the training curves below."


def _key_numbers(facts: Facts) -> Iterator[Number]:
    test, p = facts.metrics["test"], facts.parameters
    latents, mean_error = p.model.latent_dim, number(test.get("mean_image_mse"))
    bound = _normalised(facts)
    yield Number(
        "ELBO" if bound else "Cross-entropy bound",
        number(test["elbo"]),
        f"nats per image; predicting the mean image gives {number(test.get('mean_image_elbo'))}. "
        + (
            "Comparable only within one likelihood and image size."
            if bound
            else "A Bernoulli likelihood of grey pixels is not normalised: a loss, not a likelihood."
        ),
    )
    yield Number(
        "Negative log-likelihood",
        number(test["nll"]),
        f"nats per image, an upper bound from {p.evaluate.importance_samples:,} importance samples."
        if test["nll"] is not None
        else "Not defined for this likelihood and these images.",
    )
    yield Number("KL", number(test["kl"]), "nats per image: the information in the latents. Near 0 is collapse.")
    yield Number(
        "Active units",
        f"{number(test['active_units'])} of {latents}",
        f"latents whose mean varies by more than {p.monitor.active_unit_threshold:g} over the split.",
    )
    yield Number(
        "Informative units",
        f"{number(test['informative_units'])} of {latents}",
        f"latents that carry more than {p.monitor.informative_unit_nats:g} nats each.",
    )
    yield Number(
        "MSE",
        number(test["mse"]),
        f"per pixel in [0, 1], with z = μ; {number(test['mse_sampled'])} with z sampled, "
        f"{mean_error} for the mean image.",
    )
    yield Number("PSNR", f"{number(test['psnr'])} dB", "the same error in decibels; higher is better.")
    yield Number("SSIM", number(test["ssim"]), "structural similarity; 1 is an identical image.")
    accuracy = test["probe_accuracy"]
    yield Number(
        "Linear probe",
        "–" if accuracy is None else f"{accuracy:.1%}",
        "Not available: it needs two or more classes."
        if accuracy is None
        else f"of classes predicted from the latents; the most frequent class alone: {test['probe_majority']:.1%}.",
    )


def _normalised(facts: Facts) -> bool:
    return facts.parameters.objective.likelihood == "gaussian" or facts.metrics["test"]["nll"] is not None


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


def _predictions(facts: Facts) -> Iterator[tuple[str, str, str, str]]:
    """Yields (quantity, predicted, validation split, test split)."""
    valid, test, expected = facts.metrics["valid"], facts.metrics["test"], facts.preflight
    for name, predicted, measured in (
        ("KL, nats per image", "predicted_kl", "kl"),
        ("informative units", "predicted_active_units", "informative_units"),
        ("active units", "predicted_active_units", "active_units"),
        ("mean squared error, z sampled", "predicted_mse", "mse_sampled"),
    ):
        yield name, number(expected.get(predicted)), number(valid[measured]), number(test[measured])


def _weights(facts: Facts) -> Iterator[Number]:
    p, expected = facts.parameters, facts.preflight
    yield Number("KL weight of this run", number(p.kl.max_weight), "kl.max_weight, after the ramp")
    for name, key, meaning in (
        ("critical", "critical_kl_weight", "no latent is active above this"),
        ("collapse", "collapse_kl_weight", "the latents carry less than 1 nat in total above this"),
        ("calibrated", "calibrated_kl_weight", "the loss is the ELBO at the optimal σ"),
    ):
        yield Number(f"{name} weight", number(expected.get(key)), meaning)
    yield Number("σ, predicted", number(expected.get("equivalent_sigma")), "of a pixel, by linear theory")
    error = facts.metrics["valid"]["mse_sampled"]
    if p.objective.likelihood == "gaussian" and error is not None:
        yield Number("σ, measured", number(error**0.5), "root of the MSE with z sampled, validation split")
    beta = facts.monitor.get("effective_beta")
    yield Number(
        "effective β",
        number(expected.get("effective_beta") if beta is None else beta),
        "the KL weight of the equivalent β-VAE at the optimal σ; 1 is the ELBO",
    )


def _data(manifest: pd.DataFrame) -> dict[str, Any]:
    """Images of each split and class, and the quarantined files."""
    used = manifest[manifest["status"] == "ok"]
    bad = manifest[manifest["status"] != "ok"].sort_values("path", kind="stable")
    labels = used["label"].astype(object).where(used["label"].notna(), None)
    classes = sorted({str(label) for label in labels if label is not None})
    counts = {split: labels[used["split"] == split].dropna().astype(str).value_counts() for split in SPLITS}
    return {
        "files": len(manifest),
        "splits": [(split, int((used["split"] == split).sum())) for split in SPLITS],
        "classes": [(name, [int(counts[split].get(name, 0)) for split in SPLITS]) for name in classes],
        "unlabelled": int(labels.isna().sum()),
        "quarantined": [
            (path, reason)
            for path, reason in zip(bad["path"][:QUARANTINED_SHOWN], bad["reason"][:QUARANTINED_SHOWN], strict=True)
        ],
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
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str) and PurePath(value).is_absolute():
        return f"…/{PurePath(value).name}"
    return f"{value:g}" if isinstance(value, float) else str(value)
