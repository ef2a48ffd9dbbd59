"""A training beside other programs, and under a quota of CPU time: `python -m benchmarks.contention`.

The training's threads and how they wait are as the stage has them, or plain: a thread for each core, which waits as
PyTorch's OpenMP does. A competitor is an endless loop, in this session or in one of its own: with autogroups, Linux
first divides the cores among sessions. A quota is that of a control group, which root may make.

A share compares the speed with that of the same training alone, times the cores of its fair share, over its threads.
Results: `reports/contention.csv`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks.speed import in_own_process, known, photos, program
from benchmarks.time_to_quality import CASES, OUR_RECIPE, parameters_of
from tasks import workspace
from tasks.processes import contention
from vae import limits
from vae.compute import devices
from vae.models.flops import training_flops
from vae.training import loop

TABLE = workspace.REPORTS / "contention.csv"
UNTIMED = 4.0  # seconds, in which other programs are noticed
BATCHES = 32  # of an epoch
COMPETITOR = [sys.executable, "-c", "while True: pass"]
PERIOD = 100_000  # microseconds, the kernel's default

Row = dict[str, Any]

TRAINERS = ("vae-train", "plain")


@dataclass(frozen=True)
class Condition:
    """What a training has beside it.

    Attributes:
        quota: of CPU time, in cores.
    """

    competitors: int = 0
    another_session: bool = False
    quota: float | None = None

    def fair(self, threads: int) -> float:
        """The cores that so many threads get where competing programs share them evenly."""
        cores = len(limits.affinity())
        share = max(cores - self.competitors, cores / (self.competitors + 1))
        return min(threads, share, self.quota or share)


CONDITIONS = {
    "alone": Condition(),
    "1 program": Condition(1),
    "1 program, another session": Condition(1, another_session=True),
    "2 programs": Condition(2),
    "2 programs, other sessions": Condition(2, another_session=True),
    "quota of 0.5 cores": Condition(quota=0.5),
    "quota of 1 core": Condition(quota=1.0),
    "quota of 1.5 cores": Condition(quota=1.5),
}


def main(
    case: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(CASES)} (default: all); repeat for several")
    ] = None,
    condition: Annotated[
        list[str] | None, typer.Option(help=f"{' | '.join(CONDITIONS)} (default: all); repeat for several")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="timed seconds of a training")] = 5.0,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Train beside other programs and under quotas; compare with the fair share."""
    import pandas as pd  # as in benchmarks.speed

    conditions = {name: known(name, CONDITIONS) for name in ["alone", *(condition or CONDITIONS)]}
    if any(chosen.quota for chosen in conditions.values()) and not can_limit():
        print("quotas: skipped; only root may make a control group", flush=True)
        conditions = {name: chosen for name, chosen in conditions.items() if chosen.quota is None}
    names = [name for name in case or CASES if known(name, CASES)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, repeat, described, trainer in product(names, range(repeats), conditions, TRAINERS):
            with competing(conditions[described]), limited(conditions[described].quota):
                found = in_own_process("benchmarks.contention", name, trainer, str(seconds), folder=folder)
            rows.append({"case": name, "condition": described, "trainer": trainer, "repeat": repeat, **found})
            print(f"{name}, {described}, {trainer}: {found['images_per_second']:,.0f} images/s", flush=True)
    workspace.REPORTS.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(TABLE, index=False)
    print("\n" + "\n".join(markdown(rows)))


@contextmanager
def competing(condition: Condition) -> Iterator[None]:
    others = [
        subprocess.Popen(COMPETITOR, start_new_session=condition.another_session) for _ in range(condition.competitors)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextmanager
def limited(cores: float | None) -> Iterator[None]:
    """A control group of this quota, of either version, which this process and its children are in meanwhile."""
    if cores is None:
        yield
        return
    root = limits.GROUPS / "cpu" if (limits.GROUPS / "cpu").exists() else limits.GROUPS
    own = next((group for group in limits.groups("cpu") if (group / "cgroup.procs").exists()), root)
    group = root / f"vae-train-{os.getpid()}"
    group.mkdir()
    try:
        quota = str(int(cores * PERIOD))
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{quota} {PERIOD}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(quota)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (own / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


def can_limit() -> bool:
    with suppress(OSError), limited(1.0):
        return True
    return False


def one(name: str, trainer: str, seconds: float) -> dict[str, Any]:
    """The speed of one training in this process, which then ends."""
    case = CASES[name]
    side, channels = case.data["image_size"], case.data.get("channels", 1)
    p = parameters_of(case, OUR_RECIPE, 1_000_000, seed=0)
    images = photos(side, channels, p.train.batch_size * BATCHES)
    compute = devices.choose(p.train, training_flops(p), len(images))
    plain = trainer == "plain"
    if plain:
        compute = replace(compute, threads=len(limits.affinity()))
    clock = Clock(seconds)
    with nullcontext() if plain else contention.coped_with(compute), suppress(Enough):
        loop.train(p, images, images[:2], compute, on_step=clock)
    return {"threads": torch.get_num_threads(), "images_per_second": clock.steps_per_second * p.train.batch_size}


class Enough(Exception):
    """The time is over."""


class Clock:
    """Counts the steps of some seconds, then ends the training."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, time.perf_counter()
        self.first: tuple[int, float] | None = None

    def __call__(self, step: int) -> None:
        now = time.perf_counter()
        if self.first is None:
            if now - self.started > UNTIMED:
                self.first = step, now
        elif now - self.first[1] > self.seconds:
            self.steps_per_second = (step - self.first[0]) / (now - self.first[1])
            raise Enough


def markdown(rows: list[Row]) -> list[str]:
    """Medians; a share is of the same repeat's training alone."""
    alone = {_key(row): row for row in rows if row["condition"] == "alone"}

    def cells(case: str, condition: str, trainer: str) -> str:
        found = [row for row in rows if (row["case"], row["condition"], row["trainer"]) == (case, condition, trainer)]
        shares = [row["images_per_second"] / expected(alone[_key(row)], CONDITIONS[condition]) for row in found]
        speed = median(row["images_per_second"] for row in found)
        return f"{found[0]['threads']} | {speed:,.0f} | {median(shares):.2f}"

    return [
        "| case | condition | threads | images/s | of the fair share | plain: threads | images/s | of the fair share |",
        "| --- | --- |" + " --- |" * 6,
        *(
            f"| {case} | {condition} | {' | '.join(cells(case, condition, trainer) for trainer in TRAINERS)} |"
            for case, condition in dict.fromkeys((row["case"], row["condition"]) for row in rows)
        ),
    ]


def expected(alone: Row, condition: Condition) -> float:
    """Images per second: the speed alone, times the share of the cores that it then has."""
    speed: float = alone["images_per_second"]
    return speed * condition.fair(alone["threads"]) / alone["threads"]


def _key(row: Row) -> tuple[str, str, int]:
    return row["case"], row["trainer"], row["repeat"]


if __name__ == "__main__":
    program(main, lambda name, trainer, seconds: one(name, trainer, float(seconds)))
