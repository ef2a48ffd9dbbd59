"""The servers of `make up`: their processes, by the notes that it leaves, and whether they answer."""

import contextlib
import urllib.request
from pathlib import Path

import psutil

from tasks import workspace

PREFECT, MLFLOW, WORKER = "prefect-server", "mlflow-server", "prefect-worker"
MLFLOW_HEALTH = f"http://127.0.0.1:{workspace.MLFLOW_PORT}/health"


def note(name: str) -> Path:
    """The file with the id of a server's process."""
    return workspace.root() / ".run" / f"{name}.pid"


def noted_process(name: str) -> psutil.Process | None:
    """The process in the note, if it is alive and a Prefect or MLflow: its id may be another program's by now."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(note(name).read_text()))
        if name.partition("-")[0] in process.cmdline():
            return process
    return None


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False
