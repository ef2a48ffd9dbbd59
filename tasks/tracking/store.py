"""MLflow's store: connected to, done without where it does not answer, and asked for the run of a model."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import mlflow
import pandas as pd
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tasks import workspace
from tasks.processes import run_notes
from tasks.processes.lock import hold
from tasks.tracking import lineage
from vae.config import loading
from vae.config.parameters import Parameters
from vae.models.saved import weights_hash

EXPERIMENT = "vae-train"
WEIGHTS, VERDICT, ENDED = "weights.sha256", "verdict", "ended"  # tags of a run

_AT_ONCE = 100  # parameters in a request; MLflow's own limit

log = logging.getLogger(__name__)


def uri() -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file of the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.root() / 'mlflow.db'}"


def connect() -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment.

    The first use creates or migrates the database, which two processes may not do at once. Runs of dead processes
    are ended, unless another process is doing that.
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
    with suppress(Timeout), FileLock(root / ".run" / "mlflow-tidy.lock", timeout=0):
        _end_dead_runs(client)
    return client, experiment_id


def _end_dead_runs(client: MlflowClient) -> None:
    """A run whose process is gone gets the tags and the status that its note has for it, else KILLED."""
    for run_id, note in run_notes.left_behind(notes()):
        if not exists(client, run_id):
            continue
        set_tags(client, run_id, note.get("tags", {}))
        run = client.get_run(run_id)
        if run.info.status == "RUNNING":
            status = run.data.tags.get(ENDED, note.get("status", "KILLED"))
            client.set_tag(run_id, ENDED, status)
            client.set_terminated(run_id, status)


def notes() -> Path:
    """Of the runs that processes of this workspace work for."""
    return workspace.root() / ".run" / "mlflow_runs"


def is_away(error: Exception) -> bool:
    """Whether the store is at fault (does not answer, is full or damaged), and not what it was asked."""
    if isinstance(error, MlflowException):
        # A damaged database is a bad request to MLflow.
        return error.get_http_status_code() >= 500 or isinstance(error.__cause__, SQLAlchemyError)
    return isinstance(error, SQLAlchemyError | OSError)


@contextmanager
def away(consequence: str) -> Iterator[None]:
    """Where the store does not answer, a warning names the consequence, and the work goes on."""
    try:
        yield
    except Exception as error:
        if not is_away(error):
            raise
        reason = [*str(error).strip().splitlines(), type(error).__name__][0][:200]
        log.warning("MLflow at %s: %s; %s", mlflow.get_tracking_uri(), reason, consequence)


def exists(client: MlflowClient, run_id: str) -> bool:
    """False where a person has deleted it. Raises: what the store raises where it does not answer."""
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if is_away(error):
            raise
        return False


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


def _run_from_files(client: MlflowClient, experiment_id: str, weights_sha256: str) -> Run:
    tags = {WEIGHTS: weights_sha256, "made_from_files": "true"}
    tags |= {**lineage.commit(), **lineage.flow(), **lineage.data()}
    run = client.create_run(experiment_id, tags=tags)
    log.info("MLflow has no run of these weights; made run %s from the files", run.info.run_name)
    complete_from_files(client, run.info.run_id)
    client.set_terminated(run.info.run_id)
    return client.get_run(run.info.run_id)


def complete_from_files(client: MlflowClient, run_id: str) -> None:
    """What the run of the workspace's model may lack, since the store was away: parameters and epochs."""
    parameters = flat_parameters(loading.load(workspace.PARAMS)) if workspace.PARAMS.exists() else {}
    history = pd.read_csv(workspace.HISTORY).to_dict("records") if workspace.HISTORY.exists() else []
    backfill(client, run_id, parameters, history)  # type: ignore[arg-type]  # keys are str


def backfill(
    client: MlflowClient, run_id: str, parameters: Mapping[str, Any], history: Iterable[Mapping[str, float]]
) -> None:
    """Logs what a run lacks of these parameters and of these rows of a history."""
    known = client.get_run(run_id).data.params
    missing = [Param(name, str(value)) for name, value in parameters.items() if name not in known]
    for start in range(0, len(missing), _AT_ONCE):
        client.log_batch(run_id, params=missing[start : start + _AT_ONCE])
    epochs = {metric.step for metric in client.get_metric_history(run_id, "valid/kl")}
    for row in history:
        if int(row["epoch"]) not in epochs:
            client.log_batch(run_id, metrics_of(row))


def metrics_of(row: Mapping[str, float]) -> list[Metric]:
    """Of a row of a history, by its epoch."""
    step = int(row["epoch"])
    return [Metric(name, float(value), 0, step) for name, value in row.items() if name != "epoch"]


def flat_parameters(p: Parameters) -> dict[str, Any]:
    """`{"train.epochs": 60, …}`, and `seed`."""
    return {
        f"{section}.{key}": value
        for section, values in p.model_dump().items()
        if isinstance(values, dict)
        for key, value in values.items()
    } | {"seed": p.seed}


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def links(run: Run) -> list[tuple[str, str]]:
    """(label, URL) of all that a run came from, where it is known."""
    found = [("MLflow run " + run.info.run_name, run_url(run))]
    url = run.data.tags.get("prefect.flow_run_url")
    if url and url.startswith(("http://", "https://")):  # a tag is anyone's who reaches the store
        found.append((f"Prefect flow run {run.data.tags.get('prefect.flow_run_name', '')}".rstrip(), url))
    return found


def run_url(run: Run) -> str:
    return f"{workspace.mlflow_url()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def artifact_url(run: Run, path: str) -> str:
    """Where a browser gets a file of the run's artifacts."""
    return f"{workspace.mlflow_url()}/get-artifact?{urlencode({'path': path, 'run_uuid': run.info.run_id})}"
