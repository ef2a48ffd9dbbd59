"""A stage ends with the DVC that runs it, and both end with the program that runs that DVC.

DVC passes no signals on, and a killed program cannot. So each looks for those above it, twice a second, and interrupts
itself once one of them is gone; DVC then releases its locks.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil

from tasks.host import git

OWNER = "VAE_TRAIN_OWNER"  # environment: the process id of the program that runs DVC
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
# Seconds that a stage and its DVC have after each signal: within ten of them the locks have to be free.
PATIENCE = (5.0, 2.0, 2.0)

_SHELLS = ("sh", "dash", "bash", "zsh", "ksh", "fish")
_REAPERS = ("systemd", "init", "launchd", "tini", "dumb-init", "docker-init")


def end_with_owners() -> None:
    """From now on this stage ends when the DVC that runs it is gone, or the program that runs that DVC."""
    _end_without([_runner(), *_program()], PATIENCE[0])


def end_with_program() -> None:
    """From now on this DVC ends when the program that runs it is gone; it may first wait for its stage to end."""
    _end_without(_program(), sum(PATIENCE[:2]))


def _program() -> list[psutil.Process | None]:
    return [_process(int(pid))] if (pid := os.environ.get(OWNER)) else []


def _end_without(owners: Sequence[psutil.Process | None], patience: float) -> None:
    """In the background: SIGINT once an owner is gone, and an end by force if this process still runs after that."""

    def watch() -> None:
        while all(map(_lives, owners)):
            time.sleep(0.5)
        with contextlib.suppress(OSError):  # whoever read this output may be gone as well
            print("the program that ran this is gone", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(patience)
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def _lives(process: psutil.Process | None) -> bool:
    """A zombie is dead: it remains in the process table until its parent has collected its exit code."""
    with contextlib.suppress(psutil.Error):
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _runner() -> psutil.Process | None:
    """The nearest ancestor that is not a shell: DVC starts a stage through one, which may stay in between.

    None if DVC died before this process had loaded its libraries: its parent is then a reaper of orphans.
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
    """`dvc COMMAND…` with errors on its standard output. The block's end waits for it, an error ends it.

    In a session of its own, so that Ctrl-C reaches this process first.
    """
    process = _start_dvc(command, environment, folder, subprocess.DEVNULL)
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            end(psutil.Process(process.pid))


def _start_dvc(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None, stdin: int
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.processes.owned_dvc", *command],
        cwd=folder,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        env=with_interpreter(git.own_environment(environment)) | {OWNER: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
    )


class OwnedDVC:
    """`dvc COMMAND…` for one command after another, by one process, which loads DVC at once and only once.

    As a context it ends that process. One that a command or a person has ended is replaced for the next command.
    """

    def __init__(self) -> None:
        self._process = _start_dvc([], os.environ, None, subprocess.PIPE)

    def __enter__(self) -> "OwnedDVC":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # between two commands, it ends by that
        with contextlib.suppress(subprocess.TimeoutExpired, psutil.NoSuchProcess):
            self._process.wait(PATIENCE[0])
        if self._process.poll() is None:
            end(psutil.Process(self._process.pid))

    def run(self, command: Sequence[str], environment: Mapping[str, str], read: Callable[[str], None]) -> int:
        """Runs a command and passes what it prints to `read`, line by line; an error of `read` ends it.

        environment: what is added to this program's for the command.
        Returns: its exit code; negative, as that of Popen, where DVC was killed.
        """
        mark = uuid4().hex
        request = json.dumps([mark, list(command), dict(environment)]) + "\n"
        if self._process.poll() is not None or not _sent(self._process, request):
            self._process = _start_dvc([], os.environ, None, subprocess.PIPE)
            _sent(self._process, request)
        process = self._process
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(mark):
                    return int(line.removeprefix(mark))
                read(line.rstrip())
            return process.wait()
        except BaseException:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(psutil.Process(process.pid))
            raise


def _sent(process: "subprocess.Popen[str]", request: str) -> bool:
    """Whether a process was there to take it."""
    assert process.stdin is not None
    try:
        process.stdin.write(request)
        process.stdin.flush()
    except BrokenPipeError:
        return False
    return True


def ask_dvc(
    *arguments: str, folder: Path | None = None, seconds: float | None = None
) -> "subprocess.CompletedProcess[str]":
    """`dvc ARGUMENTS…` for a question, whose answer is waited for. Raises: subprocess.TimeoutExpired."""
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = git.own_environment(os.environ)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=seconds
    )


def with_interpreter(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with this interpreter's folder first on the PATH: the virtual environment need not be active."""
    folders = [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
    return {**environment, "PATH": os.pathsep.join(folders)}


def end(process: psutil.Process, patience: Sequence[float] = PATIENCE) -> None:
    """Ends a process and its descendants by SIGINT, SIGTERM and SIGKILL, each after the seconds of the one before.

    DVC ignores SIGINT during a stage: the stage ends, and DVC releases its locks. SIGTERM would leave them behind.
    """
    family = [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += process.children(recursive=True)
    for number, seconds in zip(SIGNALS, patience, strict=True):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        _, family = psutil.wait_procs(family, timeout=seconds)
