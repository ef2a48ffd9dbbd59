"""What MLflow could not be told of a training: kept in a file, and sent when it answers again.

A store may be a server elsewhere, or a disk that is full. A training neither waits for it nor fails with it.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
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
class Record:
    """All that a training has to tell, whether or not it could.

    Attributes:
        store: where its run belongs, as MLflow names it.
        run_id: of its run; None where the store has never answered.
        history: rows of numbers by name, each by its epoch.
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


def send(client: MlflowClient, experiment_id: str, record: Record) -> str:
    """Tells what the store lacks of a training; returns the id of its run, which is made where there is none.

    A run that is open stays so: only one that has ended is given its status.
    """
    if record.run_id is None or not exists(client, record.run_id):  # or a person has deleted it
        record.run_id = client.create_run(experiment_id, run_name=record.name).info.run_id
    run = client.get_run(record.run_id)
    unknown = [
        Param(name, str(value)) for name, value in record.parameters.items() if name not in run.data.params
    ]
    for start in range(0, len(unknown), _AT_ONCE):
        client.log_batch(record.run_id, params=unknown[start : start + _AT_ONCE])
    known = {metric.step for metric in client.get_metric_history(record.run_id, "valid/kl")}
    for epoch, row in record.history.items():
        if epoch not in known:
            client.log_batch(record.run_id, metrics_of(epoch, row))
    for name, tag in record.tags.items():
        if run.data.tags.get(name) != tag:
            client.set_tag(record.run_id, name, tag)
    if record.status != "RUNNING":
        client.set_terminated(record.run_id, record.status)
    record.behind = False
    return record.run_id


def metrics_of(epoch: int, row: Mapping[str, float]) -> list[Metric]:
    return [Metric(name, float(value), 0, epoch) for name, value in row.items() if name != "epoch"]


def keep(record: Record) -> Path:
    """Writes down a training that has ended, to be sent later. NaN is written as Python reads it."""
    path = _folder() / f"{record.run_id or uuid4().hex}.json"
    _write(path, record)
    return path


def send_kept(client: MlflowClient, experiment_id: str) -> Iterator[str]:
    """Sends what was kept for this store; the ids of the runs."""
    for path in sorted(_folder().glob("*.json")):
        try:
            record = _read(path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            path.rename(path.with_suffix(".unreadable"))
            print(f"warning: {path} can not be read and is set aside: {error}", flush=True)
            continue
        if record.store != client.tracking_uri:
            continue
        if record.run_id is None:
            record.run_id = client.create_run(experiment_id, run_name=record.name).info.run_id
            _write(path, record)  # a second try goes on with this run
        yield send(client, experiment_id, record)
        path.unlink(missing_ok=True)


def exists(client: MlflowClient, run_id: str) -> bool:
    """Raises: what the store raises where it does not answer."""
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if is_away(error):
            raise
        return False


def _write(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(dataclasses.asdict(record), default=str), encoding="utf-8")
    aside.replace(path)


def _read(path: Path) -> Record:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["history"] = {int(epoch): row for epoch, row in values["history"].items()}
    return Record(**values)


def _folder() -> Path:
    return workspace.root() / ".run" / "unsent"
