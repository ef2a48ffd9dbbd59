"""What a flow run shows: the predicted curve, two tables, the closing page, and the closing lines of `make run`."""

import base64
import csv
import shlex
from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.settings import get_current_settings

from tasks import overlay, workspace
from tasks.tracking.markdown import link, plain
from vae.config import loading
from vae.config.text import number, written
from vae.report.numbers import KEY_NUMBERS, key_numbers

MOST_ROWS = 200  # of a table artifact; the file has all of them
MOST_BYTES = 1_000_000  # of an image in Prefect's database; the file and MLflow have it in any case
RECONSTRUCTIONS = workspace.PLOTS / "reconstructions_median.png"

Links = Sequence[tuple[str, str]]  # (label, URL)


def validation() -> None:
    """The broken rules as a table, if there are any."""
    if not workspace.VALIDATION_FAILURES.exists():
        return
    with workspace.VALIDATION_FAILURES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows:
        more = f" (the first {MOST_ROWS} of {len(rows)})" if len(rows) > MOST_ROWS else ""
        create_table_artifact(rows[:MOST_ROWS], key="validation", description=f"What validation found{more}")


def curve() -> None:
    """What preflight predicts, as Markdown with its pictures."""
    create_markdown_artifact(prediction(), key="curve", description="What preflight predicts at each KL weight")


def prediction() -> str:
    found, kl = workspace.read_json(workspace.PREFLIGHT), loading.load(workspace.PARAMS).kl
    weight, collapse, error = found["kl_weight"], found["collapse_kl_weight"], found["predicted_mse"]
    target = weight if kl.control == "schedule" else getattr(kl, kl.control_name)
    rate = "an unbounded KL" if found["predicted_kl"] is None else f"a KL of {number(found['predicted_kl'])} nats"
    sentences = [
        f"At kl.{kl.control_name} = {target:g}, {found['predicted_by']} predicts {rate} per image"
        + ("." if error is None else f" and a root mean squared error of {number(error**0.5)} a pixel."),
        f"Posterior collapse begins at a KL weight of {number(collapse)}: above it, less than 1 nat is left."
        if collapse
        else "No KL weight leaves more than 1 nat: expect posterior collapse.",
        f"At a KL weight of {number(found['calibrated_kl_weight'])} the loss is the ELBO at the best σ.",
        *([f"How many latents: {found['latent_dims']['advice']}."] if "latent_dims" in found else []),
        *found["warnings"],
    ]
    if found["asked_kl_weight"] != written(weight):
        sentences.insert(0, f"kl.max_weight: {found['asked_kl_weight']} has become {weight:g}.")
    lines = [
        *[f"- {plain(line)}" for line in sentences],
        "",
        *_picture(workspace.PREFLIGHT_PLOT, "the predicted curve"),
    ]
    points = (found.get("pilot") or {}).get("pictures")
    if points:
        lines += [
            *_picture(
                workspace.PILOT_SHEET,
                "validation images, what the pilot decodes at five points of the curve, and samples to the right",
            ),
            "| row | KL weight | nats per image | distortion | recall of samples | Fréchet distance |",
            "|" + " --- |" * 6,
            "| 0 | originals | | | | |",
            *[
                f"| {row} | {number(at['kl_weight'])} | {number(at['rate'])} | {number(at['distortion'])} "
                f"| {number(at['sample_recall'])} | {number(at['sample_frechet'])} |"
                for row, at in enumerate(points, start=1)
            ],
        ]
    return "\n".join(lines)


def _picture(path: Path, alt: str) -> list[str]:
    uri = data_uri(path)
    return [f"![{alt}]({uri})", ""] if uri else []


def verdict() -> None:
    """The verdict and its numbers as a table."""
    monitor = workspace.read_json(workspace.MONITOR)
    rows = [("verdict", monitor["verdict"]), ("summary", monitor["summary"])]
    for kind in ("reason", "recommendation", "warning"):
        rows += [(kind, line) for line in monitor[f"{kind}s"]]
    rows += [
        (name.replace("_", " "), number(value))
        for name, value in monitor.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    rows += [("stopped early", monitor["stopped"])] if monitor["stopped"] else []
    create_table_artifact(
        [{"what": what, "value": value} for what, value in rows],
        key="monitor",
        description="The kept model on the whole validation split; information in nats per image",
    )


def page(links: Links) -> None:
    """The verdict with numbers, advice and links, as Markdown."""
    create_markdown_artifact(summary(links), key="verdict", description="The verdict, and where to look next")


def summary(links: Links) -> str:
    monitor = workspace.read_json(workspace.MONITOR)
    test = workspace.read_json(workspace.METRICS)["test"]
    lines = [
        f"# {plain(monitor['verdict'])}",
        plain(monitor["summary"]),
        "",
        *_picture(RECONSTRUCTIONS, "test images above their reconstructions"),
        "| test split | |",
        "| --- | --- |",
        *[f"| {n.label} | {number(test.get(n.key))} |" for n in key_numbers(test)],
        "",
        *[f"- {plain(line)}" for line in monitor["reasons"] + monitor["recommendations"]],
        "",
        f"- report: `{workspace.REPORT}`",
        *[f"- {link(label, url)}" for label, url in links],
    ]
    return "\n".join(lines)


def data_uri(picture: Path) -> str | None:
    """None where there is no picture, or it is too large for Prefect's database."""
    if not picture.exists() or picture.stat().st_size > MOST_BYTES:
        return None
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def closing(links: Links, experiment: str, settings: str, flow_run_page: str | None) -> str:
    """The last lines of `make run`. They repeat its experiment and settings in the command that they suggest."""
    monitor = workspace.read_json(workspace.MONITOR)
    test = workspace.read_json(workspace.METRICS)["test"]
    url = links[0][1] if links else workspace.mlflow_url()
    prefect = flow_run_page or get_current_settings().ui_url
    numbers = [f"{n.label.partition(',')[0]} {number(test.get(n.key))}" for n in KEY_NUMBERS if n.headline]
    remedied = monitor["remedies"] if len(monitor["remedies"]) > 1 else []
    lines = [
        "",
        f"verdict    {monitor['verdict']}: {monitor['summary']}",
        *[f"remedied   {line}" for line in remedied],
        *[f"           {line}" for line in monitor["recommendations"]],
        *([f"           try: {command(experiment, settings, monitor['remedy'])}"] if monitor["remedy"] else []),
        *[f"warning    {line}" for line in monitor["warnings"]],
        f"test       {'   '.join(numbers)}",
        f"report     {Path.cwd() / workspace.REPORT}",
        f"next       `make up` starts the servers: runs and images at {url} (MLflow), "
        f"the flow run at {prefect} (Prefect)",
        "           edit params.yaml, then `make run` or `dvc repro`: only what the change affects runs again",
    ]
    return "\n".join(lines)


def command(experiment: str, settings: str, remedy: dict[str, object]) -> str:
    """`make run …` with a remedy's values laid over this run's settings."""
    words = overlay.as_settings(overlay.parse_settings(settings) | remedy)
    quoted = shlex.quote(words) if set(words) & set('$`"\\!') else f'"{words}"'  # what the shell reads inside "…"
    return f"make run {f'EXPERIMENT={experiment} ' if experiment else ''}SET={quoted}"
