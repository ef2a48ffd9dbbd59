"""A stage ends with whoever asked for it: the DVC that runs it, and the program that runs that DVC.

DVC passes no signal on, and a program that is killed passes none on either. So a stage looks after them itself,
twice a second, and ends as on Ctrl-C when one of them is gone; DVC then frees its locks.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

OWNER = "VAE_TRAIN_OWNER"  # environment: the process id of the program that runs DVC
PATIENCE = (
    (signal.SIGINT, 5.0),
    (signal.SIGTERM, 2.0),
    (signal.SIGKILL, 2.0),
)  # seconds that each signal is given

_SHELLS = ("sh", "dash", "bash", "zsh", "ksh", "fish")
_REAPERS = ("systemd", "init", "launchd", "tini", "dumb-init", "docker-init")


def end_with_owners() -> None:
    """From now on this process ends when the DVC that runs it is gone, or the program that runs that."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    owners = [_runner()]
    if pid := os.environ.get(OWNER):
        owners.append(_process(int(pid)))
    while all(map(_lives, owners)):
        time.sleep(0.5)
    print("the program that ran this stage is gone", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    os._exit(130)  # still running after SIGINT: the lock must be free within ten seconds


def _lives(process: psutil.Process | None) -> bool:
    """A dead process stays in the table until its parent has asked for its exit code."""
    with contextlib.suppress(psutil.Error):
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _runner() -> psutil.Process | None:
    """The nearest ancestor that is no shell: DVC runs a stage through one, and some of them stay in between.

    None where DVC was gone before the libraries were loaded: then a reaper of orphans stands in its place.
    """
    with contextlib.suppress(psutil.Error):
        for ancestor in psutil.Process().parents():
            first = ancestor.pid == 1 and "dvc" not in " ".join(ancestor.cmdline())
            if first or ancestor.name() in _REAPERS:
                return None
            if ancestor.name() not in _SHELLS:
                return ancestor
    return None


@contextmanager
def owned_dvc(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """`python -m dvc COMMAND…`, its errors among what it prints. Whatever ends the block ends it, and its stage.

    In a session of its own, so that Ctrl-C reaches this process first. SIGINT goes first: DVC ignores it during a
    stage, the stage ends, and DVC frees its locks; SIGTERM first would end DVC and leave its lock behind.
    """
    # A worker may have been started without the environment active.
    interpreters = str(Path(sys.executable).parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={
            **environment,
            OWNER: str(os.getpid()),
            "PATH": os.pathsep.join([interpreters, environment.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
            "DVC_NO_ANALYTICS": "true",
        },
    )
    try:
        yield process
    finally:
        _end_session(process)


def _end_session(process: "subprocess.Popen[str]") -> None:
    for number, seconds in PATIENCE:
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
