"""An evaluation in MLflow: metrics, plots, report and registered model, in the run that made the weights."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks import workspace
from tasks.tracking import lineage, pages, promotion, registry, store
from tasks.tracking.store import VERDICT
from vae.config.resolved import ResolvedParameters
from vae.models.saved import Saved
from vae.report.facts import Origin

EVALUATED = "evaluated."  # the commit whose code made the final metrics, which may be later than that of the training
NOTE = "mlflow.note.content"  # the first lines of a run's page

log = logging.getLogger(__name__)


def log_evaluation(
    saved: Saved,
    metrics: Mapping[str, Mapping[str, float | None]],
    monitor: Mapping[str, Any],
    make_report: Callable[[Origin], str],
    p: ResolvedParameters,
    test_elbos: np.ndarray,
    findings: Sequence[str] = (),
) -> str:
    """Metrics, plots, report and model into the run of these weights; returns the model's URI.

    make_report: gives the report as HTML, with the links and the champion that only the tracked copy has.
    test_elbos: (N,), the ELBO of each test image in nats, by which `tasks.tracking.promotion` compares models.
    findings: sentences on latents and reconstructions, for the descriptions of run and version.
    """
    run = store.run_of(saved.sha256)
    client, run_id, name = MlflowClient(), run.info.run_id, p.evaluate.register_as
    evaluated = {EVALUATED + tag: value for tag, value in lineage.commit().items()}
    tags = {**lineage.subject(p), **lineage.stage("train"), **evaluated, VERDICT: monitor["verdict"]}
    store.set_tags(client, run_id, tags)
    client.update_run(run_id, name=_with_verdict(run, monitor["verdict"]))
    store.complete_from_files(client, run_id)
    _log_files(client, run_id, metrics)
    data, test = lineage.data()["data.sha256"], metrics["test"]
    promotion.keep_scores(client, run_id, test_elbos, data)
    version = registry.register(client, saved, run_id, name, monitor["verdict"])
    model_uri, champion = f"models:/{name}/{version.version}", champion_of(client, name)
    sentence = None
    if p.promote.mode != "disabled":
        sentence = promotion.consider(client, version, p.promote.mode).sentence
        dry = " (dry run)" if p.promote.mode == "dry_run" else ""
        log.info("promotion%s: version %s %s", dry, version.version, sentence)
    shown = {"monitor": monitor, "test": test, "promotion": sentence, "uri": model_uri, "findings": findings}
    client.set_tag(run_id, NOTE, pages.render("run", run_id=run_id, **shown))
    card = pages.render("version", name=name, version=version.version, saved=saved, p=p, data=data, **shown)
    client.update_model_version(name, version.version, card)
    client.log_text(run_id, make_report(origin(client.get_run(run_id), sentence, champion)), "report.html")
    return model_uri


def _log_files(client: MlflowClient, run_id: str, metrics: Mapping[str, Mapping[str, float | None]]) -> None:
    """Numbers, plots and reports into the run."""
    for split, values in metrics.items():
        # `valid/…` are the curves of the training, by epoch; the final numbers have names of their own.
        name = "final_valid" if split == "valid" else split
        numbers = {f"{name}/{metric}": value for metric, value in values.items() if value is not None}
        mlflow.log_metrics(numbers, run_id=run_id)
    client.log_artifacts(run_id, str(workspace.PLOTS), "plots")
    for report in (*workspace.JSON_REPORTS, *workspace.TABLES, *workspace.PICTURES, workspace.PARAMS, workspace.LOCK):
        if report.exists():
            client.log_artifact(run_id, str(report))


def _with_verdict(run: Run, verdict: str) -> str:
    """The run's name, with the verdict in place of that of an earlier evaluation."""
    return f"{str(run.info.run_name).removesuffix('-' + run.data.tags.get(VERDICT, verdict))}-{verdict}"


def origin(run: Run, promotion_sentence: str | None, champion: tuple[str, Run] | None) -> Origin:
    """Where a run comes from, with links, and the champion that it is compared with."""
    tags = run.data.tags
    rows: list[tuple[str, str, str | None]] = [("MLflow run", run.info.run_name, store.run_url(run))]
    if commit := tags.get("git.commit"):
        changed = ", with uncommitted changes" if tags.get("git.dirty") == "true" else ""
        rows.append(("Git commit", commit[:12] + changed, lineage.commit_url(commit)))
    elif reason := tags.get("git.unavailable"):
        rows.append(("Git commit", f"none: {reason}", None))
    flow_runs = store.links(run)[1:]
    rows += [("Prefect flow run", name.removeprefix("Prefect flow run "), url) for name, url in flow_runs]
    if stage := tags.get("dvc.train"):
        rows.append(("Entry of train in dvc.lock", f"SHA-256 {stage[:12]}…", None))
    if champion is None:
        return Origin(rows, promotion_sentence)
    version, its_run = champion
    if its_run.info.run_id == run.info.run_id:
        return Origin([*rows, ("Champion", f"this model, version {version}", None)], promotion_sentence)
    same_data = promotion.data_of(its_run) == promotion.data_of(run)
    name = f"the champion, version {version}" + ("" if same_data else ", which was tested on other data")
    return Origin(rows, promotion_sentence, (name, registry.test_metrics(its_run)))


def champion_of(client: MlflowClient, name: str) -> tuple[str, Run] | None:
    """The number of the champion's version, and the run that evaluated it."""
    version = registry.champion(client, name)
    run = version and registry.run_behind(client, version)
    return (str(version.version), run) if version and run else None
