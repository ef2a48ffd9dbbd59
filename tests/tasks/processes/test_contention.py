import sys
import time

import psutil
import pytest

from tasks.processes import contention


@pytest.mark.parametrize(
    ("taken", "threads", "advice"),
    [
        (None, 4, None),  # too short a time to say
        (0.0, 4, None),
        (0.7, 4, None),  # many idle programs
        (1.0, 4, "OMP_NUM_THREADS=3"),
        (1.0, 3, None),  # a core is left for it
        (4.0, 4, "OMP_NUM_THREADS=1"),
        (4.0, 1, "Wait until they have ended"),
    ],
)
def test_it_warns_where_threads_find_no_core(
    taken: float | None, threads: int, advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contention, "_cores", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(contention, "cores_taken", lambda since: taken)
    said = contention.warning(contention.mark(), threads)
    assert said is None if advice is None else said is not None and advice in said
    assert threads > 1 or "OMP_NUM_THREADS" not in str(said), "there is no smaller number"


def test_a_program_beside_is_counted_and_this_one_is_not() -> None:
    """Shares of a core, whatever else this machine does meanwhile."""
    this, other = psutil.Process(), psutil.Popen([sys.executable, "-c", "while True: sum(range(10000))"])
    try:
        began, before = contention.mark(), [cpu_seconds(process) for process in (this, other)]
        assert contention.cores_taken(began) is None, "a moment is too short to say"
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
