"""The report: one HTML file that needs nothing but itself, and repeats to the bit.

No time, host, run or absolute path is in it. Whatever a user named (classes, files, parameters) is escaped.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vae.parameters import Parameters

SPLITS = ("train", "valid", "test")
QUARANTINED_SHOWN = 50
EXAMPLES_SHOWN = 5

# How bad, and a sign that does not rely on colour.
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
class Picture:
    """A PNG with what is seen on it. Pictures of one section stand together; file is its name, without folder."""

    section: str
    file: str
    caption: str
    png: bytes

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Facts:
    """All that a report tells.

    Attributes:
        metrics: `reports/metrics.json`; monitor, preflight, validation: the reports of these names. A key
            that is missing or null shows as a dash.
        manifest: a row a source file.
        pictures: in the order of the report.
        hashes: what was read, by name: SHA-256.
    """

    parameters: Parameters
    metrics: Mapping[str, Mapping[str, float | None]]
    monitor: Mapping[str, Any]
    preflight: Mapping[str, Any]
    validation: Mapping[str, Any]
    manifest: pd.DataFrame
    pictures: Sequence[Picture]
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Number:
    name: str
    value: str
    meaning: str


def html(facts: Facts, links: Sequence[tuple[str, str]] = ()) -> str:
    """The report. links: (label, URL), for a copy that may hold what differs from run to run."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "printable": printable}
    verdict = str(facts.monitor.get("verdict", "unknown"))
    level = LEVEL_OF.get(verdict, "poor")
    recommendations = [str(text) for text in facts.monitor.get("recommendations") or []]
    sections: dict[str, list[Picture]] = {}
    for picture in facts.pictures:
        sections.setdefault(picture.section, []).append(picture)
    page = environment.get_template("report.html.j2").render(
        facts=facts,
        verdict=verdict.replace("_", " "),
        level=level,
        sign=LEVELS[level],
        to_do=recommendations[0] if recommendations else _nothing_to_do(verdict),
        recommendations=recommendations,
        numbers=list(_key_numbers(facts)),
        sections=sections,
        predictions=list(_predictions(facts)),
        weights=list(_weights(facts)),
        data=_data(facts.manifest),
        rules=[rule for rule in facts.validation.get("rules") or [] if rule.get("count")],
        examples_shown=EXAMPLES_SHOWN,
        parameters=_parameters(facts.parameters),
        links=links,
    )
    return page.rstrip() + "\n"


def number(value: Any) -> str:
    """About four significant digits, a real minus sign, and a dash for what does not exist."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, int):
        text = f"{value:,}"
    elif 1000 <= abs(value) < 1e6:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−") if text.startswith("-") else text


def printable(text: Any) -> str:
    """One line, without what would turn or hide the text around it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def _nothing_to_do(verdict: str) -> str:
    if verdict == "healthy":
        return "nothing has to change; look at the samples below, then use the model."
    return "look at the curves and the reasons below."


def _key_numbers(facts: Facts) -> Iterator[Number]:
    test, p = facts.metrics["test"], facts.parameters
    latents, mean_error = p.model.latent_dim, number(test.get("mean_image_mse"))
    bound = _normalised(facts)
    yield Number(
        "ELBO" if bound else "Cross-entropy bound",
        number(test["elbo"]),
        f"nats per image; the mean image alone, at its own noise, has {number(test.get('mean_image_elbo'))}. "
        + (
            "Comparable only within one likelihood and image size."
            if bound
            else "A Bernoulli likelihood on grey pixels is not normalised: no likelihood, only a loss."
        ),
    )
    yield Number(
        "Negative log-likelihood",
        number(test["nll"]),
        f"nats per image at most, by {p.evaluate.importance_samples:,} importance samples."
        if test["nll"] is not None
        else "There is none for this likelihood and these images.",
    )
    yield Number("KL", number(test["kl"]), "nats per image: what the latents carry. Near 0 is collapse.")
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
        f"of a pixel in [0, 1], z at its mean; {number(test['mse_sampled'])} with z sampled, "
        f"{mean_error} for the mean image.",
    )
    yield Number("PSNR", f"{number(test['psnr'])} dB", "the same error in decibels: higher is closer.")
    yield Number("SSIM", number(test["ssim"]), "likeness of structure: 1 is the same picture.")
    accuracy = test["probe_accuracy"]
    yield Number(
        "Linear probe",
        "–" if accuracy is None else f"{accuracy:.1%}",
        "There is none: it needs two classes or more."
        if accuracy is None
        else f"of classes right, read off the latents; always the most frequent one: {test['probe_majority']:.1%}.",
    )


def _normalised(facts: Facts) -> bool:
    return facts.parameters.objective.likelihood == "gaussian" or facts.metrics["test"]["nll"] is not None


def _predictions(facts: Facts) -> Iterator[tuple[str, str, str, str]]:
    """(quantity, predicted, on the validation split, on the test split)"""
    valid, test, expected = facts.metrics["valid"], facts.metrics["test"], facts.preflight
    for name, predicted, measured in (
        ("KL, nats per image", "predicted_kl", "kl"),
        ("latents in use (informative units)", "predicted_active_units", "informative_units"),
        ("active units", "predicted_active_units", "active_units"),
        ("mean squared error, z sampled", "predicted_mse", "mse_sampled"),
    ):
        yield name, number(expected.get(predicted)), number(valid[measured]), number(test[measured])


def _weights(facts: Facts) -> Iterator[Number]:
    p, expected = facts.parameters, facts.preflight
    yield Number("KL weight of this run", number(p.kl.weight), "kl.max_weight, where the ramp ends")
    for name, key, meaning in (
        ("critical", "critical_kl_weight", "from here on no latent is active"),
        ("collapse", "collapse_kl_weight", "from here on the latents carry less than 1 nat in all"),
        ("calibrated", "calibrated_kl_weight", "here the loss is the ELBO of the best noise level"),
    ):
        yield Number(f"{name} weight", number(expected.get(key)), meaning)
    yield Number("noise σ", number(expected.get("equivalent_sigma")), "of a pixel, that the loss amounts to")
    beta = facts.monitor.get("effective_beta")
    yield Number(
        "effective β",
        number(expected.get("effective_beta") if beta is None else beta),
        "weight of the KL in a VAE with the best noise level; 1 is the ELBO",
    )


def _data(manifest: pd.DataFrame) -> dict[str, Any]:
    """Images of each split and class, and the files that could not be used."""
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
            for path, reason in zip(
                bad["path"][:QUARANTINED_SHOWN], bad["reason"][:QUARANTINED_SHOWN], strict=True
            )
        ],
        "quarantined_count": len(bad),
    }


def _parameters(p: Parameters) -> list[tuple[str, str]]:
    rows = []
    for section, values in p.model_dump().items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            rows.append((f"{section}.{name}" if name else section, _value(value)))
    return rows


def _value(value: Any) -> str:
    """As it stands in params.yaml; of an absolute path only the end, since the rest is the machine's."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str) and PurePath(value).is_absolute():
        return f"…/{PurePath(value).name}"
    return f"{value:g}" if isinstance(value, float) else str(value)
