"""Flow runs and their processes: runs are named, noted, and set to Crashed when their process is dead."""

import datetime
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from tasks import workspace
from tasks.processes import run_notes

LONGEST, LONGEST_WORD = 72, 40  # characters of a name without its time, and of a word in it

_latest: str | None = None  # the last flow run of this process


def name() -> str:
    """What ran, and when: `leaves-epochs=2-20260131-120000`."""
    given = flow_run.parameters
    what = called(given.get("experiment"), given.get("overrides"))
    return f"{what}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def called(experiment: str | None, overrides: Mapping[str, Any] | None) -> str:
    """The experiment, or `params`, and the values laid over it: `leaves-epochs=2`.

    Only letters, digits and `. = -`, which files, Git and DVC accept. Nothing is checked yet: any key and any value
    gives a name. A long one is cut.
    """
    words = [_word(experiment or "") or "params"]
    for key, value in (overrides or {}).items():
        name = str(key).rpartition(".")[2]
        words.append(_word(f"{name}={PurePath(value).name if isinstance(value, str) else value}"))
    return "-".join(words)[:LONGEST].rstrip("-.")


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", re.sub(r"[\[\]{}'\"]", "", text))[:LONGEST_WORD].strip("-.")


def tag(*tags: str) -> None:
    """Adds tags to this flow run, to filter by; those that it has, such as `auto-scheduled`, stay."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(str(flow_run.id)))
        client.update_flow_run(run.id, tags=[*run.tags, *(tag for tag in tags if tag not in run.tags)])


@contextmanager
def recorded() -> Iterator[None]:
    """Notes that this process works on this flow run, as long as it does."""
    global _latest
    _latest = str(flow_run.id)
    with run_notes.noted(_folder(), _latest, run_notes.this_process()):
        yield


def leave_open() -> None:
    """Leaves a note of this process's run, if the server was not there to learn of its end: for `sweep`."""
    if _latest is not None:
        workspace.write_json(_folder() / f"{_latest}.json", {})


def sweep() -> list[str]:
    """Sets flow runs whose process is dead to Crashed; returns their names.

    They would be Running forever, and hold their deployment's concurrency slot.
    """
    swept = []
    with get_client(sync_client=True) as client:
        for identifier, _ in run_notes.left_behind(_folder()):
            with suppress(ObjectNotFound):
                run = client.read_flow_run(UUID(identifier))
                if run.state is not None and not run.state.is_final():
                    client.set_flow_run_state(run.id, Crashed(message="its process died"), force=True)
                    swept.append(run.name)
    return swept


def running() -> dict[UUID, int]:
    """The flow runs of this workspace whose process is alive, with its id.

    A note that another process is sweeping is locked as well: the process that it names does not exist.
    """
    noted = {UUID(run): note.get("pid") for run, note in run_notes.living(_folder()).items()}
    return {run: pid for run, pid in noted.items() if pid and psutil.pid_exists(pid)}


def _folder() -> Path:
    return workspace.root() / ".run" / "flow_runs"
