"""Flow runs and the processes behind them: named, recorded, and swept when their process is dead."""

import datetime
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

from tasks import alive, workspace


def name() -> str:
    """Says what ran, and when: `leaves-20260131-120000`."""
    experiment = flow_run.parameters.get("experiment") or "params"
    return f"{experiment.replace('/', '-')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


@contextmanager
def recorded() -> Iterator[None]:
    """Notes which process works for this flow run, as long as it does."""
    with alive.noted(_folder(), str(flow_run.id), {"pid": os.getpid()}):
        yield


def sweep() -> list[str]:
    """Sets flow runs whose process is dead to Crashed, so that none is Running for ever; returns their names.

    A run that was killed holds its deployment's concurrency slot until then.
    """
    swept = []
    with get_client(sync_client=True) as client:
        for identifier in alive.left_behind(_folder()):
            try:
                run = client.read_flow_run(UUID(identifier))
                if run.state is not None and not run.state.is_final():
                    client.set_flow_run_state(run.id, Crashed(message="its process died"), force=True)
                    swept.append(run.name)
            except ObjectNotFound:
                pass
    return swept


def running() -> dict[UUID, int]:
    """The flow runs of this workspace whose process lives, with that process's id.

    A note that another process is just sweeping is locked too: its process does not exist any more.
    """
    noted = {UUID(run): note.get("pid") for run, note in alive.living(_folder()).items()}
    return {run: pid for run, pid in noted.items() if pid and psutil.pid_exists(pid)}


def _folder() -> Path:
    return workspace.root() / ".run" / "flow_runs"
