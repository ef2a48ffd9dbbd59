"""What MLflow could not be told of a training: kept in a file, and sent when it answers again.

A store may be a server elsewhere, or a disk that is full. A training neither waits for it nor fails with it.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tasks import workspace

_AT_ONCE = 100  # parameters in a request; MLflow's own limit


@dataclass
class Training:
    """All that a training has to tell, whether or not it could.

    Attributes:
        store: where its run belongs, as MLflow names it.
        run_id: of its run; None where the store has never answered.
        history: rows of numbers by name, each with its epoch.
        behind: whether the store lacks something of it.
    """

    name: str | None
    tags: dict[str, str]
    store: str
    run_id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, float]] = field(default_factory=dict)
    status: str = "RUNNING"
    behind: bool = False


def is_away(error: Exception) -> bool:
    """Whether the store is at fault (does not answer, is full or damaged), and not what it was asked."""
    if isinstance(error, MlflowException):
        # A damaged database is a bad request to MLflow.
        return error.get_http_status_code() >= 500 or isinstance(error.__cause__, SQLAlchemyError)
    return isinstance(error, SQLAlchemyError | OSError)


def send(client: MlflowClient, experiment_id: str, training: Training) -> str:
    """Tells what the store lacks of a training; returns the id of its run, which is made where there is none."""
    if training.run_id is None or not exists(client, training.run_id):  # or a person has deleted it
        training.run_id = client.create_run(experiment_id, run_name=training.name).info.run_id
    run = client.get_run(training.run_id)
    unknown = [
        Param(name, str(value)) for name, value in training.parameters.items() if name not in run.data.params
    ]
    for start in range(0, len(unknown), _AT_ONCE):
        client.log_batch(training.run_id, params=unknown[start : start + _AT_ONCE])
    known = {metric.step for metric in client.get_metric_history(training.run_id, "valid/kl")}
    for epoch, row in training.history.items():
        if epoch not in known:
            metrics = [Metric(n, float(v), 0, epoch) for n, v in row.items() if n != "epoch"]
            client.log_batch(training.run_id, metrics=metrics)
    for name, tag in training.tags.items():
        client.set_tag(training.run_id, name, tag)
    if training.status != "RUNNING":
        client.set_terminated(training.run_id, training.status)
    training.behind = False
    return training.run_id


def keep(training: Training) -> Path:
    """Writes down a training that has ended, to be sent later."""
    path = _folder() / f"{training.run_id or uuid4().hex}.json"
    workspace.write_json(path, dataclasses.asdict(training))
    return path


def send_kept(client: MlflowClient, experiment_id: str) -> Iterator[str]:
    """Sends what was kept for this store; the ids of the runs."""
    for path in sorted(_folder().glob("*.json")):
        values = workspace.read_json(path)
        if values["store"] != client.tracking_uri:
            continue
        values["history"] = {int(epoch): row for epoch, row in values["history"].items()}
        yield send(client, experiment_id, Training(**values))
        path.unlink()


def exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if is_away(error):
            raise
        return False


def _folder() -> Path:
    return workspace.root() / ".run" / "unsent"
