"""How a program of this project begins and ends: logging, one line for an error that the user can fix, an exit code."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from tasks.processes import owner
from vae.config.errors import InputError

INPUT_ERROR = 2  # exit code: the user has to change something, so a retry is pointless
INTERRUPTED = 130

# What a user can fix about a disk or a folder.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PLACE_ERRORS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)


def run(program: Callable[[], None]) -> NoReturn:
    """Runs a program's `main`; an error that the user can fix ends in one line and an exit code of its own."""
    log_to("stdout")
    # SIGTERM ends it as Ctrl-C does, and so does SIGINT where a shell's & had it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if "DVC_STAGE" in os.environ:
        owner.end_with_owners()
    try:
        program()
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except Exception as error:
        message = user_error(error)
        if message is None:
            raise
        _end(f"error: {message}", INPUT_ERROR)
    sys.exit(0)


def user_error(error: Exception) -> str | None:
    """The message of an error that the user can fix; None for any other."""
    if isinstance(error, InputError):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in _PLACE_ERRORS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    todo = {
        errno.EACCES: "check its permissions",
        errno.EPERM: "check its permissions",
        errno.EROFS: "make it writable",
    }
    return f"{where}{error.strerror}; {todo.get(error.errno, 'free some space')}, then run the same command again"


def log_to(stream: str) -> None:
    """The project's own messages go to `stdout` or `stderr`; a warning begins with `warning: `."""
    for name in ("__main__", "flows", "tasks", "vae", "benchmarks"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Handler(stream)], False
        logger.setLevel(logging.INFO)


class _Handler(logging.Handler):
    """Prints to whatever the stream is at that moment: a progress bar replaces it while it is shown."""

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.name_of_stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        with suppress(OSError):  # a lost message is no reason to end
            print(f"{level}{record.getMessage()}", file=getattr(sys, self.name_of_stream), flush=True)


def _end(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)
