"""Whether other programs compute beside a training: then it takes many times as long, and nothing else would tell why.

Each step of a training waits, again and again, for the slowest of its threads; a thread without a core of its own
is the slowest, and the others spend their time waiting.
"""

import os
import time
from dataclasses import dataclass

import psutil

LEAST_SECONDS = 0.5  # of watching
# Of a core, by all other programs together: one that computes, and not what many idle ones add up to.
TAKEN = 0.8


@dataclass(frozen=True)
class Mark:
    """Seconds that the cores which this process may use have computed, and of these this process."""

    at: float
    all: float
    own: float


def mark() -> Mark:
    cores, own = _cores(), time.process_time()
    times = psutil.cpu_times(percpu=True)
    here = [core for number, core in enumerate(times) if number in cores]
    # user holds the guests' time already; iowait is idle
    return Mark(
        time.monotonic(), sum(core.user + getattr(core, "nice", 0.0) + core.system for core in here), own
    )


def cores_taken(since: Mark) -> float | None:
    """How many cores other programs kept busy; None where the time was too short to tell."""
    now = mark()
    if now.at - since.at < LEAST_SECONDS:
        return None
    return max((now.all - since.all) - (now.own - since.own), 0.0) / (now.at - since.at)


def warning(since: Mark, threads: int) -> str | None:
    """What to tell where the threads of a training find fewer free cores than they are."""
    taken, cores = cores_taken(since), len(_cores())
    if taken is None or taken < TAKEN or taken + threads < cores + TAKEN:
        return None
    free = max(int(cores - taken + 0.5), 1)
    return (
        f"other programs keep {taken:.1f} of {cores} cores busy, and each of the {threads} threads of a training waits "
        "for the slowest: it may take many times as long. Wait until they have ended"
        + (f", or set OMP_NUM_THREADS={free} (the last bits are other ones then)" if free < threads else "")
    )


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
