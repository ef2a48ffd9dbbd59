"""What a flow run shows: tables, the closing page, and the closing lines of `make run`."""

import base64
import csv
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.settings import get_current_settings

from tasks import workspace
from tasks.overlay import written_settings
from tasks.tracking.markdown import link, plain
from vae.config.text import number
from vae.report.numbers import KEY_NUMBERS

MOST_ROWS = 200  # of a table artifact; the file has them all
MOST_BYTES = 1_000_000  # of an image in Prefect's database; the file and MLflow have it in any case
RECONSTRUCTIONS = workspace.PLOTS / "reconstructions_median.png"


def validation(create_table: Callable[..., Any]) -> None:
    """The broken rules as a table, where there are any."""
    if not workspace.VALIDATION_FAILURES.exists():
        return
    with workspace.VALIDATION_FAILURES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows:
        more = f" (the first {MOST_ROWS} of {len(rows)})" if len(rows) > MOST_ROWS else ""
        create_table(rows[:MOST_ROWS], key="validation", description=f"What validation found{more}")


def verdict(create_table: Callable[..., Any]) -> None:
    """The verdict and its numbers as a table."""
    monitor = workspace.read_json(workspace.MONITOR)
    rows = [("verdict", monitor["verdict"]), ("summary", monitor["summary"])]
    for kind in ("reason", "recommendation", "warning"):
        rows += [(kind, line) for line in monitor[f"{kind}s"]]
    rows += [(label, number(monitor[name])) for label, name in _MEASURED]
    rows += [("kept epoch", f"{monitor['kept_epoch']} of {monitor['epochs']}")]
    rows += [("stopped early", monitor["stopped"])] if monitor["stopped"] else []
    create_table(
        [{"what": what, "value": value} for what, value in rows],
        key="monitor",
        description="The kept model on the whole validation split; information in nats per image",
    )


def reconstructions(create_image: Callable[..., Any]) -> None:
    """Test images above what the model makes of them, where MLflow has them: Prefect keeps the address alone."""
    from tasks.tracking import store

    if not RECONSTRUCTIONS.exists():
        return
    with store.away("no picture among the flow run's artifacts"):
        run = store.run_here()
        create_image(
            store.artifact_url(run, f"{workspace.PLOTS.name}/{RECONSTRUCTIONS.name}"),
            key="reconstructions",
            description="Test images in the middle, by their error, above what the model makes of them",
        )


def data_uri(picture: Path) -> str | None:
    """None where there is no picture, or it is too large for Prefect's database."""
    if not picture.exists() or picture.stat().st_size > MOST_BYTES:
        return None
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def origin(create_link: Callable[..., Any]) -> None:
    """A link to the MLflow run that made the model, though this flow run may have found it cached."""
    from tasks.cli import trace
    from tasks.tracking import store

    with store.away("no link to its run"):
        run = store.run_here()
        create_link(
            store.run_url(run),
            key="mlflow-run",
            link_text=f"MLflow run {run.info.run_name}",
            description="\n".join(f"- {what}: {value}" for what, value in trace.described(run)),
        )


def summary() -> str:
    """Markdown: verdict, numbers, what to do, links."""
    monitor = workspace.read_json(workspace.MONITOR)
    test = workspace.read_json(workspace.METRICS)["test"]
    picture = data_uri(RECONSTRUCTIONS)
    lines = [
        f"# {plain(monitor['verdict'])}",
        plain(monitor["summary"]),
        "",
        *([f"![test images above what the model makes of them]({picture})", ""] if picture else []),
        "| test split | |",
        "| --- | --- |",
        *[f"| {n.label} | {number(test[n.key])} |" for n in KEY_NUMBERS],
        "",
        *[f"- {plain(line)}" for line in monitor["reasons"] + monitor["recommendations"]],
        "",
        f"- report: `{workspace.REPORT}`",
        *[f"- {link(label, url)}" for label, url in _mlflow_links()],
    ]
    return "\n".join(lines)


def closing(folder: Path, experiment: str = "", settings: str = "", page: str | None = None) -> str:
    """What `make run` ends with; the advice as a command that keeps this run's experiment and settings.

    Args:
        page: of the flow run; it answers while a server is up.
    """
    monitor = workspace.read_json(workspace.MONITOR)
    test = workspace.read_json(workspace.METRICS)["test"]
    url = next(iter(url for _, url in _mlflow_links()), workspace.mlflow_url())
    numbers = "   ".join(f"{n.label} {number(test[n.key])}" for n in KEY_NUMBERS if n.headline)
    advice = [f"           {line}" for line in monitor["recommendations"]]
    if remedy := monitor["remedy"]:
        name = f"EXPERIMENT={experiment} " if experiment else ""
        kept = [word for word in shlex.split(settings) if word.partition("=")[0] not in remedy]
        advice.append(
            f'           try: make run {name}SET="{shlex.join([*kept, *written_settings(remedy)])}"'
        )
    if len(monitor["remedies"]) > 1:
        advice = [f"remedied   {line}" for line in monitor["remedies"]] + advice
    warnings = [f"warning    {line}" for line in monitor["warnings"]]
    return "\n".join(
        [
            "",
            f"verdict    {monitor['verdict']}: {monitor['summary']}",
            *advice,
            *warnings,
            f"test       {numbers}",
            f"report     {folder / workspace.REPORT}",
            f"next       `make up` starts the servers: runs and images at {url} (MLflow), "
            f"the flow run at {page or get_current_settings().ui_url} (Prefect)",
            "           edit params.yaml, then `make run` or `dvc repro`: only what the change touches runs again",
        ]
    )


_MEASURED = (
    ("ELBO", "elbo"),
    ("KL", "kl"),
    ("KL that preflight predicted", "predicted_kl"),
    ("reconstruction", "reconstruction"),
    ("mean squared error, z sampled", "mse_sampled"),
    ("mean squared error of the mean image", "mean_image_mse"),
    ("latents", "latents"),
    ("active units", "active_units"),
    ("informative units", "informative_units"),
    ("prior gap", "prior_gap"),
    ("prior gap with covariances", "prior_gap_full"),
    ("effective beta", "effective_beta"),
)


def point_candidate(name: str) -> None:
    """DVC may have brought back the results of an earlier run: the registry's `candidate` follows them."""
    from tasks.tracking import evaluation_run, store
    from vae.models import saved

    with store.away(f"the alias candidate of {name} stays where it was"):
        evaluation_run.point_candidate(saved.weights_hash(workspace.MODEL), name)


def end_dead_runs() -> None:
    """A stage that was killed could not end its run in MLflow."""
    from tasks.tracking import store

    with store.away("a run of it may stand as RUNNING until the next one starts"):
        store.connect()


def _mlflow_links() -> list[tuple[str, str]]:
    from tasks.tracking import store

    with store.away("no links to its run"):
        return store.links(store.run_here())
    return []
