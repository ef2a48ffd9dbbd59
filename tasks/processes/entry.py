"""How a program of this project begins and ends: by a return, an error in one line, or an interruption."""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import psutil

from vae.config.errors import InputError

# What a user can put right about a disk or a folder.
_PLACE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

_SHELLS = ("sh", "dash", "bash", "zsh", "ksh", "fish")
_REAPERS = ("systemd", "init", "launchd", "tini", "dumb-init", "docker-init")

INPUT_ERROR = 2  # exit code: the user has to change something, so trying again is of no use


def run(stage: Callable[[], None]) -> NoReturn:
    """Runs a stage's `main`: what the user can put right ends in one line and an exit code of its own."""
    # Both end a stage as Ctrl-C does, also where a shell's & had SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        stage()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(INPUT_ERROR)
    except OSError as error:
        if error.errno not in _PLACE_ERRORS:
            raise
        print(f"error: {_of_place(error)}", file=sys.stderr, flush=True)
        sys.exit(INPUT_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Where DVC was killed alone, its stage ends too: the next `dvc repro` would start a second one beside it."""
    runner = _runner()
    while runner is not None and runner.is_running():
        time.sleep(0.5)
    print("the program that ran this stage is gone", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    os._exit(130)  # it does not hear: the lock must be free within ten seconds


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


def _of_place(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    todo = (
        "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "make it writable"
    )
    return f"{where}{error.strerror}; {todo}, then run the same command again"
