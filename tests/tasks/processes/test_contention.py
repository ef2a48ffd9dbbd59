import logging
import sys
import time
from itertools import chain, repeat

import psutil
import pytest
import torch

from tasks.processes import contention
from vae import limits
from vae.compute.devices import Compute

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("taken", "threads", "advice"),
    [
        (0.0, 4, None),
        (0.5, 4, None),  # many idle programs
        (1.0, 4, "OMP_NUM_THREADS=3"),
        (1.0, 3, None),  # a core is left for it
        (4.0, 4, "OMP_NUM_THREADS=1"),
        (4.0, 5, "OMP_NUM_THREADS=1"),
        (4.0, 16, "OMP_NUM_THREADS=1"),
    ],
)
def test_threads_without_a_core_of_their_own_wait_briefly(
    taken: float, threads: int, advice: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teams = []

    def second_team(size: int) -> contention.Event:
        assert size > 0 and threads + size - 1 > 4, "the first thread of a team is not counted"
        teams.append(contention.Event())
        return teams[-1]

    looks = chain([0.0, taken, taken, taken, *4 * [0.0], taken, taken, taken], repeat(0.0))
    monkeypatch.setattr(contention.limits, "affinity", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(contention, "cores_taken", lambda since, now: next(looks))
    monkeypatch.setattr(contention, "second_team", second_team)
    monkeypatch.setattr(contention, "SECONDS", 0.001)
    with caplog.at_level(logging.WARNING), contention.coped_with(Compute(CPU, "fp32", threads=threads)):
        time.sleep(0.2)
    said = [record.message for record in caplog.records]
    spin = threads <= 4  # more threads than cores do not
    assert len(teams) == (2 if advice and spin else 0) and all(team.is_set() for team in teams)
    assert len(said) == bool(advice), "once, however often others come and go"
    assert advice is None or advice in said[0]


def test_threads_that_never_wait_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[object] = []
    monkeypatch.setattr(contention, "_watch", lambda *arguments: watched.append(arguments))
    for compute in (Compute(CPU, "fp32", threads=1), Compute(torch.device("cuda"), "fp32", threads=8)):
        with contention.coped_with(compute):
            pass
    assert watched == []
    with contention.coped_with(Compute(CPU, "fp32", threads=2)):
        pass
    assert len(watched) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's OpenMP is another one")
@pytest.mark.skipif(len(limits.affinity()) < 2, reason="on one core, threads never spin for long")
def test_beside_a_second_team_threads_sleep_instead_of_spinning() -> None:
    """CPU seconds of 20 operations of two threads, and pauses in which one waits for the next operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = cpu_seconds_of_pauses()
        end = contention.second_team(len(limits.affinity()))
        time.sleep(0.5)
        beside = cpu_seconds_of_pauses()
        end.set()
        time.sleep(0.5)
        again = cpu_seconds_of_pauses()
    finally:
        torch.set_num_threads(before)
    assert beside < 0.3 * alone and beside < 0.3 * again


def cpu_seconds_of_pauses() -> float:
    x = torch.ones(2**17)
    began = time.process_time()
    for _ in range(20):
        x.add_(1)
        time.sleep(0.02)
    return time.process_time() - began


def test_a_program_beside_is_counted_and_this_one_is_not() -> None:
    """Shares of a core, whatever else this machine does meanwhile."""
    this, other = psutil.Process(), psutil.Popen([sys.executable, "-c", "while True: sum(range(10000))"])
    try:
        began, before = contention.mark(), [cpu_seconds(process) for process in (this, other)]
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
        ended = contention.mark()
        seconds, taken = ended.at - began.at, contention.cores_taken(began, ended)
        own, beside = ((cpu_seconds(p) - was) / seconds for p, was in zip((this, other), before, strict=True))
    finally:
        other.kill()
        other.wait()
    assert taken > 0.9 * beside - 0.05
    assert (ended.all - began.all) / seconds - taken == pytest.approx(own, abs=0.1)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
