"""MLflow's store: connecting to it, carrying on without it, and finding the run of a model."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import mlflow
import pandas as pd
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tasks import overlay, workspace
from tasks.host import addresses, place
from tasks.host.place import EXPERIMENT
from tasks.processes import run_notes
from tasks.processes.lock import hold
from tasks.tracking import lineage
from vae.config import loading
from vae.models.files import weights_hash

WEIGHTS, VERDICT, ENDED, STAGE = "weights.sha256", "verdict", "ended", "dvc.train"  # tags of a run

T = TypeVar("T")

log = logging.getLogger(__name__)


def uri() -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file here. Raises: InputError: no store can be there."""
    return addresses.tracking_uri() or _own()


def _own() -> str:
    return f"sqlite:///{place.database()}"


def connect() -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment. Ends runs of dead processes, unless another process is doing that."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    locks, address = workspace.root() / ".run", uri()
    server = address.startswith("http")
    mlflow.set_tracking_uri(address)
    # The first use creates or migrates the database, which two processes must not do at once; a server does it itself.
    alone = hold(locks / "mlflow.lock", "the set-up of MLflow's database", seconds=60)
    with nullcontext() if server else alone:
        if address == _own():
            place.follow()
        client = MlflowClient()
        if client.get_experiment_by_name(EXPERIMENT) is None:
            if_there(  # None where another program has just created it
                client.create_experiment,
                EXPERIMENT,
                # A server may own the artifacts; otherwise they lie beside the database.
                None if server else place.artifacts().as_uri(),
                {"mlflow.experimentKind": "custom_model_development"},  # the UI's pages for training
            )
    experiment_id = mlflow.set_experiment(EXPERIMENT).experiment_id
    locks.mkdir(exist_ok=True)
    with suppress(Timeout), FileLock(locks / "mlflow-tidy.lock", timeout=0):
        _end_dead_runs(client, experiment_id)
    return client, experiment_id


def _end_dead_runs(client: MlflowClient, experiment_id: str) -> None:
    """Gives the runs of dead processes the tags that their notes hold, and the status in them, else KILLED."""
    for noted_as, note in run_notes.left_behind(notes()):
        run_id, tags = noted_as, note.get("tags", {})
        if exists(client, run_id):
            set_tags(client, run_id, tags)
        elif tags:  # a training during which the store never answered
            run_id = client.create_run(experiment_id, tags=tags).info.run_id
            _note(noted_as).rename(_note(run_id))  # if this is interrupted, the next process ends the same run
        else:
            continue
        run = client.get_run(run_id)
        if run.info.status == "RUNNING":
            end_run(client, run_id, run.data.tags.get(ENDED, "KILLED"))
        _note(run_id).unlink(missing_ok=True)


def notes() -> Path:
    """The folder with notes of the runs that processes of this workspace work for, in this store."""
    # Notes about the workspace's own store move with it.
    name = "own" if uri() == _own() else hashlib.sha256(uri().encode()).hexdigest()[:8]
    return workspace.root() / ".run" / "mlflow_runs" / name


def _note(run_id: str) -> Path:
    return notes() / f"{run_id}.json"


def leave_note(run_id: str, tags: Mapping[str, str]) -> None:
    """Leaves it to the next process that reaches the store to end a run and to set these tags."""
    with suppress(OSError):
        workspace.write_json(_note(run_id), {"tags": dict(tags)})


def end_run(client: MlflowClient, run_id: str, status: str) -> None:
    client.set_tag(run_id, ENDED, status)
    client.set_terminated(run_id, status)


def is_away(error: Exception) -> bool:
    """Whether the store is at fault (does not answer, is full or damaged), and not the request."""
    if isinstance(error, MlflowException):
        # A damaged database is a bad request to MLflow.
        return error.get_http_status_code() >= 500 or isinstance(error.__cause__, SQLAlchemyError)
    return isinstance(error, SQLAlchemyError | OSError)


@contextmanager
def away(consequence: str) -> Iterator[None]:
    """Where the store does not answer, logs a warning with the consequence instead of raising."""
    try:
        yield
    except Exception as error:
        if not is_away(error):
            raise
        log.warning("MLflow at %s: %s; %s", mlflow.get_tracking_uri(), reason_of(error), consequence)


def reason_of(error: Exception) -> str:
    """The first line of what an error of MLflow says; the others are SQL or links."""
    lines = str(getattr(error, "message", error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")


def if_there(get: Callable[..., T], *arguments: Any) -> T | None:
    """What a request of the client returns; None where the store refuses it, above all since there is no such thing.

    Raises: what the store raises where it does not answer.
    """
    try:
        return get(*arguments)
    except MlflowException as error:
        if is_away(error):
            raise
        return None


def exists(client: MlflowClient, run_id: str) -> bool:
    """False where a person has deleted it."""
    run = if_there(client.get_run, run_id)
    return run is not None and run.info.lifecycle_stage == "active"


def find(client: MlflowClient, experiment_id: str, condition: str) -> Run | None:
    """The latest run that meets a condition of MLflow's search."""
    latest = ["attributes.start_time DESC"]
    return next(iter(client.search_runs([experiment_id], condition, order_by=latest, max_results=1)), None)


def run_of(weights_sha256: str) -> Run:
    """The run that made these weights; where the store has none, one is created from the files."""
    client, experiment_id = connect()
    found = find(client, experiment_id, f"tags.`{WEIGHTS}` = '{weights_sha256}'")
    return found or _run_from_files(client, experiment_id, weights_sha256)


def run_here() -> Run:
    """The run of the model in the workspace."""
    return run_of(weights_hash(workspace.MODEL))


def _run_from_files(client: MlflowClient, experiment_id: str, weights_sha256: str) -> Run:
    tags = {WEIGHTS: weights_sha256, "made_from_files": "true"}
    tags |= {**lineage.commit(), **lineage.flow(), **lineage.data()}
    run = client.create_run(experiment_id, tags=tags)
    log.info("MLflow has no run of these weights; created run %s from the files", run.info.run_name)
    complete_from_files(client, run.info.run_id)
    end_run(client, run.info.run_id, "FINISHED")
    return client.get_run(run.info.run_id)


def complete_from_files(client: MlflowClient, run_id: str) -> None:
    """Logs what the run of the workspace's model lacks of parameters and epochs, since the store was away."""
    parameters = overlay.flat(loading.load(workspace.PARAMS).model_dump()) if workspace.PARAMS.exists() else {}
    history = pd.read_csv(workspace.HISTORY).to_dict("records") if workspace.HISTORY.exists() else []
    backfill(client, run_id, parameters, history)  # type: ignore[arg-type]  # keys are str


def backfill(
    client: MlflowClient, run_id: str, parameters: Mapping[str, Any], history: Iterable[Mapping[str, float]]
) -> None:
    """Logs those of the parameters and of the history's rows that the run lacks."""
    known = client.get_run(run_id).data.params
    client.log_batch(run_id, params=[Param(n, str(value)) for n, value in parameters.items() if n not in known])
    epochs = {metric.step for metric in client.get_metric_history(run_id, "valid/kl")}
    for row in history:
        if int(row["epoch"]) not in epochs:
            client.log_batch(run_id, metrics_of(row))


def metrics_of(row: Mapping[str, float]) -> list[Metric]:
    """The numbers of one row of a history, with its epoch as their step."""
    step, now = int(row["epoch"]), int(1000 * time.time())
    return [Metric(name, float(value), now, step) for name, value in row.items() if name != "epoch"]


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def links(run: Run) -> list[tuple[str, str]]:
    """(label, URL) of the run and of the flow run that it belongs to."""
    found = [("MLflow run " + run.info.run_name, run_url(run))]
    url = run.data.tags.get("prefect.flow_run_url")
    if url and url.startswith(("http://", "https://")):  # whoever reaches the store can set a tag
        found.append((f"Prefect flow run {run.data.tags.get('prefect.flow_run_name', '')}".rstrip(), url))
    return found


def described(run: Run) -> list[tuple[str, str]]:
    """(what, value): the run, its commit, its train stage and its flow run, as far as they are known."""
    tags = run.data.tags
    commit, flow = f"none: {tags.get('git.unavailable', 'unknown')}", "none: it was run by dvc"
    if "git.commit" in tags:
        commit = tags["git.commit"]
        changed = tags.get("git.changed", "").replace("\n", ", ")
        commit += f", dirty: {changed}" if changed else ", clean"
    if "prefect.flow_run_id" in tags:
        name, url = (tags.get(f"prefect.flow_run_{part}", "") for part in ("name", "url"))
        flow = f"{name} ({tags['prefect.flow_run_id']}) {url}"
    return [
        ("MLflow run", f"{run.info.run_name} ({run.info.run_id}) {run_url(run)}"),
        ("commit", commit),
        (STAGE, tags.get(STAGE, "unknown: the run was not evaluated")),
        ("flow run", flow),
        ("weights", tags.get(WEIGHTS, "none")),
    ]


def run_url(run: Run) -> str:
    return f"{workspace.mlflow_url()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def artifact_url(run: Run, path: str) -> str:
    """Where a browser fetches a file of the run's artifacts."""
    return f"{workspace.mlflow_url()}/get-artifact?{urlencode({'path': path, 'run_uuid': run.info.run_id})}"
