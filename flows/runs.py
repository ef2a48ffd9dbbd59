"""Flow runs and the processes behind them: named, recorded, and swept when their process is dead."""

import datetime
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from tasks import workspace


def name() -> str:
    """Says what ran, and when: `leaves-20260131-120000`."""
    experiment = flow_run.parameters.get("experiment") or "params"
    return f"{experiment.replace('/', '-')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


@contextmanager
def recorded() -> Iterator[None]:
    """Notes which process works for this flow run, as long as it does."""
    record = _folder() / f"{flow_run.id}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()}))
    try:
        yield
    finally:
        record.unlink(missing_ok=True)


def sweep() -> list[str]:
    """Sets flow runs whose process is dead to Crashed, so that none is Running for ever; returns their names.

    A run that was killed holds its deployment's concurrency slot until then.
    """
    swept = []
    with get_client(sync_client=True) as client:
        for record in sorted(_folder().glob("*.json")):
            if _process(record) is not None:
                continue
            try:
                run = client.read_flow_run(UUID(record.stem))
                if run.state is not None and not run.state.is_final():
                    client.set_flow_run_state(run.id, Crashed(message="its process died"), force=True)
                    swept.append(run.name)
            except ObjectNotFound:
                pass
            record.unlink(missing_ok=True)
    return swept


def alive() -> dict[UUID, int]:
    """The flow runs of this workspace whose process lives, with that process's id."""
    found = {UUID(record.stem): _process(record) for record in _folder().glob("*.json")}
    return {run: pid for run, pid in found.items() if pid is not None}


def _process(record: Path) -> int | None:
    """The id of the process that a record names; None where that is dead."""
    try:
        noted = json.loads(record.read_text())
        return noted["pid"] if psutil.Process(noted["pid"]).create_time() == noted["started"] else None
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


def _folder() -> Path:
    return workspace.root() / ".run" / "flow_runs"
