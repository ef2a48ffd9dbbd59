"""The servers of `make up`: their processes, by the notes that it leaves, and whether they answer."""

import contextlib
import os
import tomllib
import urllib.request
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from socket import create_connection
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import psutil

from tasks import workspace
from tasks.host import environment

PREFECT, MLFLOW, WORKER = "prefect-server", "mlflow-server", "prefect-worker"
OTHER_PORT = {
    PREFECT: "`export PREFECT_API_URL=http://127.0.0.1:4201/api`",
    MLFLOW: "`export VAE_TRAIN_MLFLOW_PORT=5001`",
}
MLFLOW_HEALTH = f"http://127.0.0.1:{workspace.MLFLOW_PORT}/health"

STARTED_AS = "VAE_TRAIN_SERVER"  # environment of a server: its name and version, and the folder that it works for

OUTDATED = "it was started before this folder was moved or its libraries were updated"


def note(name: str) -> Path:
    """The file with the id of a server's process."""
    return workspace.root() / ".run" / f"{name}.pid"


def mark(name: str) -> str:
    """By which a server's process is known as this folder's: a note may be a copy, its id another program's by now."""
    return f"{name} {version(name.partition('-')[0])} of {workspace.root()}"


def noted_process(name: str) -> psutil.Process | None:
    """The process in the note, if it is alive and was started as this server of this folder."""
    process = _noted(name)
    return process if process is not None and _mark_of(process) == mark(name) else None


def outdated_process(name: str) -> psutil.Process | None:
    """The process in the note, if it was started when this folder had another path, where its stores still are, or
    another version of the server.

    The servers of a folder that this one is a copy of work in that other folder, so they are none.
    """
    process = _noted(name)
    with contextlib.suppress(OSError, psutil.Error):
        if process is not None and _mark_of(process) != mark(name) and workspace.root().samefile(process.cwd()):
            return process
    return None


def _noted(name: str) -> psutil.Process | None:
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(note(name).read_text()))
        if name.partition("-")[0] in process.cmdline():
            return process
    return None


def _mark_of(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        return process.environ().get(STARTED_AS)
    return None


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except (OSError, ValueError, HTTPException):  # nothing there, no address, no HTTP
        return False


def silence(url: str) -> str | None:
    """Why nothing answers there; None if something does, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=30).close()
    except (HTTPError, HTTPException, SSLError):
        return None
    except URLError as error:
        return None if isinstance(error.reason, SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def listens(process: psutil.Process, port: int) -> bool:
    """Whether this process or a descendant accepts connections there; assumed where the system does not say."""
    try:
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for member in (process, *process.children(recursive=True))
            for connection in member.net_connections("tcp")
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def listener(port: int) -> str:
    """` (process 1234, mlflow-server of /path)`: who accepts connections there; empty where that is another user's."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                return f" (process {process.pid}, {_mark_of(process) or process.name()})"
    return ""


def prefect_url() -> str | None:
    """The API of this folder's own server; None outside of the project's folder.

    PREFECT_API_URL may give it another port of this machine than prefect.toml: one where no other server listens.
    """
    named, settings = os.environ.get("PREFECT_API_URL", ""), Path("prefect.toml")
    if urlsplit(named).hostname in environment.LOOPBACK:
        port, own = urlsplit(named).port or 80, noted_process(PREFECT)
        if listens(own, port) if own else not is_taken("127.0.0.1", port):
            return named
    return tomllib.loads(settings.read_text(encoding="utf-8"))["api"]["url"] if settings.exists() else None


def is_taken(host: str, port: int) -> bool:
    """Whether anything accepts connections there."""
    with contextlib.suppress(OSError), create_connection((host, port), timeout=1):
        return True
    return False
