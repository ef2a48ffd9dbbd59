"""Prefect's server may become unreachable during a run: the training continues, and the run ends with one line."""

import logging

from httpx import TransportError
from prefect.settings import get_current_settings


def sentence() -> str:
    return (
        f"Prefect's server at {get_current_settings().api.url} is gone; what was finished is kept: "
        "run the same command again"
    )


def explains(message: str | None) -> bool:
    """Whether a state's message comes from a server that did not answer."""
    return any(words in (message or "") for words in ("connection attempts failed", "Connection refused"))


def quiet() -> None:
    """Keeps Prefect's own tracebacks about an unreachable server from burying that line in a terminal."""
    logging.raiseExceptions = False  # what a logging handler prints when it cannot send
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(worth_a_line)
    for name in ("prefect.events.clients", "prefect._internal.concurrency", "EventsWorker", "APILogWorker"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.CRITICAL)


def worth_a_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, TransportError)
