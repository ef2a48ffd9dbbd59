"""What measures growth and costs measures the work and not its preparation; the figures themselves are no test's."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks import costs, growth, workspace
from tasks.bench import Case


def test_a_watch_sees_the_memory_of_its_block() -> None:
    with growth.Watch() as before:
        time.sleep(0.1)
    with growth.Watch() as watch:
        held = np.ones(25_000_000)  # 200 MB
        time.sleep(0.2)
    assert watch.seconds > 0.2 and 150 < watch.most - before.most < 400 and held[0] == 1


def test_files_are_ingested_and_counted(empty_workspace: Path) -> None:
    count, watch = growth.files(40)
    assert count == 40 and watch.seconds > 0
    assert sum(len(np.load(workspace.images(split))) for split in workspace.SPLITS) == 40


def test_an_epoch_counts_what_it_trained_on() -> None:
    array = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 1), np.uint8)
    count, watch = growth._train(Case(16, 1, (8,), 4, 16, len(array), 1), array)
    assert count == 64 and watch.seconds > 0


def test_the_table_and_the_plot_have_every_point() -> None:
    rows = [
        {"of": what, "size": size, "seconds": 1.0, "microseconds_each": 2.5, "peak_megabytes": 100.0}
        for what in growth.POINTS
        for size in growth.POINTS[what]
    ]
    table = pd.DataFrame(rows)
    assert len(growth.markdown(table)) == len(rows) + 2
    assert len(growth.plot(table).axes) == 2 * len(growth.POINTS)


def test_repeats_are_taken_in_turn_and_the_first_is_not_counted() -> None:
    calls: list[str] = []

    def slow_at_first() -> None:
        time.sleep(0.05 if "a" in calls else 0.5)
        calls.append("a")

    first, second = costs._interleaved(slow_at_first, lambda: calls.append("b"))
    assert calls == ["a", "b"] * (costs.REPEATS + 1)
    assert 0.05 <= first < 0.3 and second < 0.05


def test_calls_are_timed_and_the_function_comes_back() -> None:
    class Module:
        @staticmethod
        def work(seconds: float) -> float:
            time.sleep(seconds)
            return seconds

    before, seconds = Module.work, list[float]()
    with costs._timed(Module, "work", seconds):
        assert Module.work(0.05) == 0.05
    assert Module.work is before and len(seconds) == 1 and seconds[0] >= 0.05


def test_a_command_that_fails_is_no_measurement() -> None:
    import sys

    from vae.errors import InputError

    with pytest.raises(InputError, match="exit code 7"):
        costs._seconds([sys.executable, "-c", "raise SystemExit(7)"])
