"""MLflow: one run for one trained model, found again by the hash of its weights."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import mlflow
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from tasks import workspace
from tasks.processes import run_notes
from tasks.processes.lock import hold
from tasks.tracking import lineage, outbox, pages, promotion, registry
from tasks.tracking.registry import CANDIDATE, VERDICT, WEIGHTS
from vae.config.parameters import Parameters
from vae.models.saved import Saved, weights_hash
from vae.report.facts import Origin

EXPERIMENT = "vae-train"
EVALUATED = "evaluated."  # the commit whose code made the final metrics, which may be a later one
NOTE = "mlflow.note.content"  # what the page of a run begins with


def uri() -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file of the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.root() / 'mlflow.db'}"


def connect(send_kept: bool = True) -> tuple[MlflowClient, str]:
    """The store. The first use creates or migrates its database, which two processes may not do at once.

    What earlier trainings could not tell is sent, and the runs of dead processes are ended, unless another
    process is doing that.

    Returns:
        A client, and the id of the experiment.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    root = workspace.root()
    mlflow.set_tracking_uri(uri())
    with hold(root / ".run" / "mlflow.lock", "the set-up of MLflow's database", seconds=60):
        client = MlflowClient()  # makes the database already
        if client.get_experiment_by_name(EXPERIMENT) is None:
            # A server may own the artifacts; otherwise they lie beside the database, wherever it is opened from.
            remote = mlflow.get_tracking_uri().startswith("http")
            client.create_experiment(
                EXPERIMENT,
                None if remote else (root / "mlruns").as_uri(),
                tags={"mlflow.experimentKind": "custom_model_development"},  # the UI's pages for training
            )
    experiment_id = mlflow.set_experiment(EXPERIMENT).experiment_id
    if send_kept:
        with contextlib.suppress(Timeout), FileLock(root / ".run" / "mlflow-unsent.lock", timeout=0):
            _tidy(client, experiment_id)
    return client, experiment_id


def _tidy(client: MlflowClient, experiment_id: str) -> None:
    """Sends what was kept, and gives the runs of dead processes the status that they ended with, or KILLED."""
    for run_id in outbox.send_kept(client, experiment_id):
        print(f"MLflow answers again: what it missed of run {run_id} is sent", flush=True)
    for run_id in run_notes.left_behind(running()):
        run = client.get_run(run_id) if outbox.exists(client, run_id) else None
        if run is not None and run.info.status == "RUNNING":
            client.set_tag(run_id, "ended", run.data.tags.get("ended", "KILLED"))
            client.set_terminated(run_id, run.data.tags.get("ended", "KILLED"))


def running() -> Path:
    """Notes of the runs that processes of this workspace work for."""
    return workspace.root() / ".run" / "mlflow_runs"


@contextmanager
def away(what: str) -> Iterator[None]:
    """Where the store does not answer, that is told and the work goes on."""
    try:
        yield
    except Exception as error:
        if not outbox.is_away(error):
            raise
        reason = [*str(error).strip().splitlines(), type(error).__name__][0][:200]
        print(f"WARNING: MLflow at {mlflow.get_tracking_uri()}: {reason}; {what}", flush=True)


def run_of(weights_sha256: str) -> Run:
    """The run that made these weights; where the store has none, one is made from the files and says so."""
    client, experiment_id = connect()
    found = client.search_runs(
        [experiment_id],
        f"tags.`{WEIGHTS}` = '{weights_sha256}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return found[0] if found else _run_from_files(client, experiment_id, weights_sha256)


def run_here() -> Run:
    """The run of the model that stands in the workspace."""
    return run_of(weights_hash(workspace.MODEL))


def log_evaluation(
    saved: Saved,
    metrics: Mapping[str, Mapping[str, float | None]],
    monitor: Mapping[str, Any],
    plots: Path,
    make_report: Callable[[Origin], str],
    p: Parameters,
    test_elbos: np.ndarray,
) -> str:
    """Metrics, plots, report and model into the run of these weights; returns the model's URI.

    make_report gives the report as HTML with what the tracked one can not have: links, and the champion.
    test_elbos: (N,), the ELBO of each test image in nats, by which `tasks.tracking.promotion` compares models.
    """
    run = run_of(saved.sha256)
    client, run_id, name = MlflowClient(), run.info.run_id, p.evaluate.register_as
    evaluated = {EVALUATED + tag: value for tag, value in lineage.git().items()}
    tags = {**lineage.subject(p), **lineage.stage("train"), **evaluated, VERDICT: monitor["verdict"]}
    for tag, value in tags.items():
        client.set_tag(run_id, tag, value)
    client.update_run(run_id, name=_with_verdict(run, monitor["verdict"]))
    numbers = {
        f"{split}/{metric}": value
        for split, values in metrics.items()
        for metric, value in values.items()
        if isinstance(value, int | float)
    }
    # Validation's curves keep their epochs; a final number stands under a name of its own.
    with _reopened(client, run), mlflow.start_run(run_id=run_id, log_system_metrics=False):
        mlflow.log_metrics({key.replace("valid/", "final_valid/"): value for key, value in numbers.items()})
        mlflow.log_artifacts(str(plots), "plots")
        for report in (
            workspace.METRICS,
            workspace.SUMMARY,
            workspace.LATENTS,
            workspace.MONITOR,
            workspace.PREFLIGHT,
            workspace.VALIDATION,
            workspace.HISTORY,
            workspace.KL_PER_LATENT,
            workspace.PARAMS,
            lineage.LOCK,
        ):
            if report.exists():
                mlflow.log_artifact(str(report))
        data = lineage.data()["data.sha256"]
        promotion.keep_scores(client, run_id, test_elbos, data)
        version = registry.register(client, saved, run_id, name, monitor["verdict"])
        model_uri = f"models:/{name}/{version.version}"
        champion = champion_of(client, name)
        sentence = None
        if p.promote.mode != "disabled":
            sentence = promotion.consider(client, version, p.promote.mode)
            print(
                f"promotion{' (dry run)' if p.promote.mode == 'dry_run' else ''}: version {version.version} {sentence}"
            )
        test = metrics["test"]
        client.set_tag(run_id, NOTE, pages.of_run(run_id, monitor, test, sentence, model_uri))
        card = pages.of_version(name, version.version, saved, p, monitor, test, data, sentence)
        client.update_model_version(name, version.version, card)
        mlflow.log_text(make_report(origin(client.get_run(run_id), sentence, champion)), "report.html")
    return model_uri


@contextmanager
def _reopened(client: MlflowClient, run: Run) -> Iterator[None]:
    """Whatever ends an evaluation, its run keeps the status that the training ended with."""
    run_id = run.info.run_id
    with run_notes.noted(running(), run_id, {"pid": os.getpid()}):
        try:
            yield
        finally:
            client.set_terminated(run_id, run.data.tags.get("ended", "FINISHED"))


def _with_verdict(run: Run, verdict: str) -> str:
    """The run's name, ended by the verdict; that of an earlier evaluation goes."""
    return f"{str(run.info.run_name).removesuffix('-' + run.data.tags.get(VERDICT, verdict))}-{verdict}"


def point_candidate(weights_sha256: str, name: str) -> None:
    """Moves the alias `candidate` to the version with these weights, where the registry has one."""
    client, _ = connect()
    number = registry.version_with(client, name, weights_sha256, registry.prior_hash())
    if number is not None:
        client.set_registered_model_alias(name, CANDIDATE, number)


def links(run: Run) -> list[tuple[str, str]]:
    """(label, URL) of all that a run came from, where it is known."""
    found = [("MLflow run " + run.info.run_name, run_url(run))]
    url = run.data.tags.get("prefect.flow_run_url")
    if url and url.startswith(("http://", "https://")):  # a tag is anyone's who reaches the store
        found.append((f"Prefect flow run {run.data.tags.get('prefect.flow_run_name', '')}".rstrip(), url))
    return found


def origin(run: Run, sentence: str | None, champion: tuple[str, Run] | None) -> Origin:
    """Where a run comes from, with links, and the champion that it stands against."""
    tags = run.data.tags
    rows: list[tuple[str, str, str | None]] = [("MLflow run", run.info.run_name, run_url(run))]
    if commit := tags.get("git.commit"):
        changed = ", with changes that were not committed" if tags.get("git.dirty") == "true" else ""
        rows.append(("Git commit", commit[:12] + changed, lineage.commit_url(commit)))
    rows += [
        ("Prefect flow run", name.removeprefix("Prefect flow run "), url) for name, url in links(run)[1:]
    ]
    if stage := tags.get("dvc.train"):
        rows.append(("Entry of train in dvc.lock", f"SHA-256 {stage[:12]}…", None))
    if champion is None:
        return Origin(rows, sentence)
    version, its_run = champion
    if its_run.info.run_id == run.info.run_id:
        return Origin([*rows, ("Champion", f"this model, version {version}", None)], sentence)
    metrics = {
        name.removeprefix("test/"): value
        for name, value in its_run.data.metrics.items()
        if name.startswith("test/")
    }
    same_data = promotion.data_of(its_run) == promotion.data_of(run)
    name = f"the champion, version {version}" + ("" if same_data else ", which was tested on other data")
    return Origin(rows, sentence, (name, metrics))


def champion_of(client: MlflowClient, name: str) -> tuple[str, Run] | None:
    """The version that bears the alias `champion`, and the run that evaluated it."""
    version = registry.champion(client, name)
    run = None if version is None else registry.run_behind(client, version)
    return None if version is None or run is None else (str(version.version), run)


def run_url(run: Run) -> str:
    return f"{workspace.mlflow_url()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def artifact_url(run: Run, path: str) -> str:
    """Where a browser gets a file of the run's artifacts."""
    return f"{workspace.mlflow_url()}/get-artifact?{urlencode({'path': path, 'run_uuid': run.info.run_id})}"


def _run_from_files(client: MlflowClient, experiment_id: str, weights_sha256: str) -> Run:
    run = client.create_run(
        experiment_id,
        tags={
            WEIGHTS: weights_sha256,
            "made_from_files": "true",
            **lineage.git(),
            **lineage.flow(),
            **lineage.data(),
        },
    )
    run_id = run.info.run_id
    print(f"the MLflow store has no run of these weights; made run {run.info.run_name} from the files")
    if workspace.HISTORY.exists():
        metrics = [
            Metric(str(name), float(value), 0, int(row["epoch"]))
            for row in pd.read_csv(workspace.HISTORY).to_dict("records")
            for name, value in row.items()
            if name != "epoch"
        ]
        for start in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics[start : start + 1000])
    client.set_terminated(run_id)
    return client.get_run(run_id)
