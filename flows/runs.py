"""Flow runs and the processes behind them: named, recorded, and swept when their process is dead."""

import datetime
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

LONGEST, LONGEST_WORD = 72, 40  # characters of a name, its time left out


_latest: str | None = None  # the flow run that this process works or worked for


def name() -> str:
    """Says what ran, and when: `leaves-epochs=2-20260131-120000`."""
    given = flow_run.parameters
    what = called(given.get("experiment"), given.get("overrides"))
    return f"{what}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def called(experiment: str | None, overrides: Mapping[str, Any] | None) -> str:
    """The experiment, or `params`, and the values laid over it: `leaves-epochs=2`.

    Letters, digits and `. = -` alone, so that files, Git and DVC take it too. Nothing is checked yet: any key
    and any value gives a name. Values that do not fit in are counted: `leaves-epochs=2-3-more`.
    """
    words = [_word(experiment or "") or "params"]
    values = [(str(key).rpartition(".")[2], value) for key, value in (overrides or {}).items()]
    for number, (key, value) in enumerate(values):
        word = _word(f"{key}={PurePath(value).name if isinstance(value, str) else value}")
        if len("-".join([*words, word])) > LONGEST:
            words.append(f"{len(values) - number}-more")
            break
        words.append(word)
    return "-".join(words)


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", re.sub(r"[\[\]{}'\"]", "", text))[:LONGEST_WORD].strip("-.")


def tag(*tags: str) -> None:
    """Adds tags to this flow run, which a person filters by; those that it has, such as `auto-scheduled`, stay."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(str(flow_run.id)))
        client.update_flow_run(run.id, tags=[*run.tags, *(tag for tag in tags if tag not in run.tags)])


@contextmanager
def recorded() -> Iterator[None]:
    """Notes which process works for this flow run, as long as it does."""
    global _latest
    _latest = str(flow_run.id)
    with run_notes.noted(_folder(), _latest, {"pid": os.getpid()}):
        yield


def leave_open() -> None:
    """Leaves a note of this process's run, whose server is gone and did not hear of its end: `sweep` tells it."""
    if _latest is not None:
        (_folder() / f"{_latest}.json").write_text("{}")


def sweep() -> list[str]:
    """Sets flow runs whose process is dead to Crashed, so that none is Running for ever; returns their names.

    A run that was killed holds its deployment's concurrency slot until then.
    """
    swept = []
    with get_client(sync_client=True) as client:
        for identifier, _ in run_notes.left_behind(_folder()):
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
    noted = {UUID(run): note.get("pid") for run, note in run_notes.living(_folder()).items()}
    return {run: pid for run, pid in noted.items() if pid and psutil.pid_exists(pid)}


def _folder() -> Path:
    return workspace.root() / ".run" / "flow_runs"
