"""Detects CPU contention: other busy programs make a training many times slower, and nothing else would reveal it.

Each step waits again and again for the slowest thread; a thread without a core of its own is the slowest.
"""

import os
import time
from dataclasses import dataclass

import psutil

LEAST_SECONDS = 0.5  # of observation
TAKEN = 0.8  # of a core, by all other programs: more than many idle ones add up to


@dataclass(frozen=True)
class Mark:
    """CPU seconds so far: of the cores that this process may use, and of this process."""

    at: float
    all: float
    own: float


def mark() -> Mark:
    cores, own = _cores(), time.process_time()
    times = psutil.cpu_times(percpu=True)
    here = [core for number, core in enumerate(times) if number in cores]
    # user includes the guests' time; iowait is idle
    return Mark(time.monotonic(), sum(core.user + getattr(core, "nice", 0.0) + core.system for core in here), own)


def cores_taken(since: Mark) -> float | None:
    """How many cores other programs kept busy; None if the time was too short to say."""
    now = mark()
    if now.at - since.at < LEAST_SECONDS:
        return None
    return max((now.all - since.all) - (now.own - since.own), 0.0) / (now.at - since.at)


def warning(since: Mark, threads: int) -> str | None:
    """A warning where fewer cores are free than a training has threads."""
    taken, cores = cores_taken(since), len(_cores())
    if taken is None or taken < TAKEN or taken + threads < cores + TAKEN:
        return None
    free = max(int(cores - taken + 0.5), 1)
    return (
        f"other programs keep {taken:.1f} of {cores} cores busy, and each of the training's {threads} threads waits "
        "for the slowest: it may take many times as long. Wait until they have ended"
        + (f", or set OMP_NUM_THREADS={free} (which changes the last bits)" if free < threads else "")
    )


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
