"""Copes with other busy programs beside a training: they would make it many times slower.

Threads that compute together wait for each other at the end of every operation. libgomp, PyTorch's OpenMP on Linux,
lets them spin for some milliseconds, which is fastest where each has a core of its own. Beside other programs, one
that spins takes the core from the one that it waits for. While libgomp has more threads than there are cores, they
spin for microseconds and then sleep; so a second team of threads is kept, asleep, for as long as others are busy.
Unlike the number of threads, how they wait changes no bit of the results.
"""

import ctypes
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import psutil
import torch
from threadpoolctl import ThreadpoolController

from vae import limits
from vae.compute.devices import Compute

# Of a core, by all other programs: more than many idle ones add up to, less than a busy one gets beside two threads.
TAKEN = 0.6
SECONDS = 1.0  # between two looks
SEVERAL = 3  # looks: with other programs before a warning, without one before the threads spin again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """CPU seconds so far: of the cores that this process may use, and of this process."""

    at: float
    all: float
    own: float


def mark() -> Mark:
    cores, own = limits.affinity(), time.process_time()
    times = psutil.cpu_times(percpu=True)
    here = [core for number, core in enumerate(times) if number in cores]
    # user includes the guests' time; iowait is idle
    return Mark(time.monotonic(), sum(core.user + getattr(core, "nice", 0.0) + core.system for core in here), own)


def cores_taken(since: Mark, now: Mark) -> float:
    """How many cores other programs kept busy."""
    return max((now.all - since.all) - (now.own - since.own), 0.0) / (now.at - since.at)


@contextmanager
def coped_with(compute: Compute) -> Iterator[None]:
    """Changes how the threads of a CPU wait, and says so once, while other programs leave them too few cores."""
    threads = (compute.threads or torch.get_num_threads()) if compute.device.type == "cpu" else 1
    if threads == 1:
        yield
        return
    end = Event()
    watch = Thread(target=_watch, args=(threads, end), name="contention", daemon=True)
    watch.start()
    try:
        yield
    finally:
        end.set()
        watch.join()


def _watch(threads: int, end: Event) -> None:
    cores, busy, calm, warned = len(limits.affinity()), 0, 0, False
    since, team = mark(), None
    while not end.wait(SECONDS):
        now = mark()
        taken, since = cores_taken(since, now), now
        if taken >= TAKEN and taken + threads >= cores + TAKEN:
            busy, calm = busy + 1, 0
        else:
            busy, calm = 0, calm + 1
        if busy and team is None and threads <= cores:  # more threads than cores never spin for long
            team = second_team(cores - threads + 2)  # with it, one more than there are cores
        if calm == SEVERAL and team is not None:
            team.set()
            team = None
        if busy == SEVERAL and not warned:
            log.warning(message(taken, threads, cores))
            warned = True
    if team is not None:
        team.set()


def second_team(size: int) -> Event:
    """Starts a team of libgomp's threads that do nothing, until the event is set."""
    end = Event()
    Thread(target=_hold, args=(size, end), name="second team", daemon=True).start()
    return end


def _hold(size: int, end: Event) -> None:
    """A team belongs to the thread that has started it, and ends with it."""
    nothing = ctypes.CDLL(None).getpid  # some function of C's, which each thread of the team calls once
    for library in ThreadpoolController().select(internal_api="openmp").lib_controllers:
        if library.prefix == "libgomp":
            library.dynlib.GOMP_parallel(nothing, None, size, 0)
    end.wait()


def message(taken: float, threads: int, cores: int) -> str:
    free = max(int(cores - taken + 0.5), 1)
    return (
        f"other programs keep {taken:.1f} of {cores} cores busy: this stage's {threads} threads share the cores with "
        "them, and it takes longer"
        + (f"; with OMP_NUM_THREADS={free} it may be faster (which changes the last bits)" if free < threads else "")
    )
