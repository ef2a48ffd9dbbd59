"""A progress bar where a person watches; elsewhere a line now and then, or nothing."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


@contextmanager
def bar(
    what: str, total: int, unit: str = "", seconds_between_lines: float | None = None
) -> Iterator[Callable[[int], None]]:
    """Yields a function that is called with how many are done. The bar is on standard error.

    seconds_between_lines: how often a log that nobody watches gets a line; None: never.
    """
    if sys.stderr.isatty():
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda completed: progress.update(task, completed=completed)
        return
    last = time.monotonic()

    def line(completed: int) -> None:
        nonlocal last
        if seconds_between_lines is not None and time.monotonic() - last > seconds_between_lines:
            last = time.monotonic()
            log.info("%s: %s of %s %s", what, f"{completed:,}", f"{total:,}", unit)

    yield line
