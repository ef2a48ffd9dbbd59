import sys
import time
from typing import Any

import psutil
import pytest

from tasks.processes import contention


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four cores on which all programs have computed for `total` seconds, and this one for `own`."""

    def machine(seconds: float, total: float, own: float) -> contention.Mark:
        monkeypatch.setattr(contention, "_cores", lambda: {0, 1, 2, 3})
        monkeypatch.setattr(contention, "mark", lambda: contention.Mark(100 + seconds, 50 + total, 7 + own))
        return contention.Mark(100, 50, 7)

    return machine


@pytest.mark.parametrize(
    ("total", "own", "threads", "advice"),
    [
        (2.0, 2.0, 4, None),  # nobody else
        (3.4, 2.0, 4, None),  # 0.7 of a core: many idle programs
        (4.0, 2.0, 4, "OMP_NUM_THREADS=3"),
        (4.0, 2.0, 3, None),  # a core is left for it
        (10.0, 2.0, 4, "OMP_NUM_THREADS=1"),
        (10.0, 2.0, 1, "Wait until they have ended"),
    ],
)
def test_it_warns_where_threads_find_no_core(
    machine: Any, total: float, own: float, threads: int, advice: str | None
) -> None:
    said = contention.warning(machine(2.0, total, own), threads)
    assert said is None if advice is None else said is not None and advice in said
    assert threads > 1 or "OMP_NUM_THREADS" not in str(said), "there is no smaller number"


def test_a_moment_is_too_short_to_say(machine: Any) -> None:
    assert contention.warning(machine(0.1, 0.4, 0.0), 4) is None


def test_a_program_beside_is_counted_and_this_one_is_not() -> None:
    """Shares of a core, whatever else this machine does meanwhile."""
    this, other = psutil.Process(), psutil.Popen([sys.executable, "-c", "while True: sum(range(10000))"])
    try:
        began, before = contention.mark(), [cpu_seconds(process) for process in (this, other)]
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
        taken, ended = contention.cores_taken(began), contention.mark()
        seconds = ended.at - began.at
        own, beside = ((cpu_seconds(p) - was) / seconds for p, was in zip((this, other), before, strict=True))
    finally:
        other.kill()
        other.wait()
    assert taken is not None and taken > 0.9 * beside - 0.05
    assert (ended.all - began.all) / seconds - taken == pytest.approx(own, abs=0.1)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
