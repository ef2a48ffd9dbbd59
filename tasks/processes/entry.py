"""How a program of this project begins and ends: logging set up, errors in one line, an exit code that says which."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from tasks.processes import owner
from vae.config.errors import InputError

INPUT_ERROR = 2  # exit code: the user has to change something, so trying again is of no use
INTERRUPTED = 130

# What a user can mend about a disk or a folder.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PLACE_ERRORS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)


def run(program: Callable[[], None]) -> NoReturn:
    """Runs a stage's `main`: what the user can mend ends in one line and an exit code of its own."""
    log_to("stdout")
    # Both end a stage as Ctrl-C does, also where a shell's & had SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
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
    todo = "free some space" if error.errno in _FULL else "make it writable"
    return f"{where}{error.strerror}; {todo}, then run the same command again"


def log_to(stream: str) -> None:
    """The project's own messages go to `stdout` or `stderr`; a warning begins with `warning:`."""
    handler = _Handler(stream)
    handler.setFormatter(_Formatter())
    for name in ("__main__", "flows", "tasks", "vae", "benchmarks"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return level + record.getMessage()


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to whatever the stream is at the moment: a progress bar stands in for it meanwhile."""

    def __init__(self, stream: str) -> None:
        self.name_of_stream = stream
        super().__init__()

    @property
    def stream(self) -> TextIO:
        return getattr(sys, self.name_of_stream)

    @stream.setter
    def stream(self, stream: TextIO) -> None: ...


def _end(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
