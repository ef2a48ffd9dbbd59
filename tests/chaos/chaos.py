"""Kills runs at random moments and compares what they leave, bit for bit, with an undisturbed one.

Each run starts from nothing, by `dvc repro` or by the flow, is killed several times (SIGKILL: everything at
once, as a power cut does; the stage alone; DVC alone; the flow alone) and started again by the same command.
A third way kills at the n-th fsync or rename, before it or after it. `make chaos` runs it and prints the tally.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import typer
from helpers.workspaces import Done, Running, Workspace, copy_project, edit

EPOCHS = 12
KILLS = (5, 8)  # a run, at least and at most
PROMISED_SECONDS = 10  # until no process of a killed run is left

FILES = (
    "data/images/train.npy", "data/images/valid.npy", "data/images/test.npy", "data/manifest.parquet",
    "models/vae/weights.safetensors", "models/vae/config.json", "reports/history.csv", "reports/kl_per_latent.csv",
    "reports/monitor.json", "reports/metrics.json", "reports/report.html", "dvc.lock",
)  # fmt: skip
_MADE = (
    "data/images",
    "data/manifest.parquet",
    "models",
    "reports",
    ".checkpoints",
    ".dvc/cache",
    ".dvc/tmp",
)


@dataclass
class Tally:
    """What one run went through.

    Attributes:
        victims: what was killed, in this order.
        seconds: the longest that a process lived on after a kill.
        differ: files that are not those of the undisturbed run; empty is what is promised.
    """

    way: str
    victims: list[str] = field(default_factory=list)
    seconds: float = 0.0
    differ: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def hashes(place: Workspace) -> dict[str, str]:
    return {
        name: hashlib.sha256((place.folder / name).read_bytes()).hexdigest()
        if (place.folder / name).exists()
        else "missing"
        for name in FILES
    }


def clean(place: Workspace) -> None:
    """Nothing of a run is left but the MLflow store, which all of them share."""
    for name in _MADE:
        path = place.folder / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    subprocess.run(["git", "checkout", "--quiet", "dvc.lock"], cwd=place.folder, check=True)


def start(place: Workspace, way: str, **environment: str) -> Running:
    if way == "flow":
        return place.start("-m", "flows.vae_train", **environment)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return place.start("-m", "dvc", "repro", PATH=path, **environment)


def workers(place: Workspace) -> dict[str, list[psutil.Process]]:
    """What works for a run, by its part in it; the servers are none of them."""
    found: dict[str, list[psutil.Process]] = {}
    for process in place.processes():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        module = next(
            (w for w in words if w.startswith(("flows.vae_train", "tasks.processes.supervisor", "tasks."))),
            "",
        )
        if module == "flows.vae_train":
            found.setdefault("flow", []).append(process)
        elif module == "tasks.processes.supervisor":
            found.setdefault("supervisor", []).append(process)
        elif module:
            found.setdefault("stage", []).append(process)
        elif "dvc" in words:
            found.setdefault("dvc", []).append(process)
    return found


def kill(place: Workspace, chance: random.Random) -> str:
    """Kills all at once, or one part; returns which."""
    parts = workers(place)
    if not parts:
        return ""
    which = chance.choice(["everything", "everything", *sorted(parts)])
    victims = [p for part in parts.values() for p in part] if which == "everything" else parts[which]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)
    stage = next(
        (w for p in parts.get("stage", []) for w in _words(p) if w.startswith("tasks.")), "between stages"
    )
    return f"{which} in {stage.removeprefix('tasks.')}"


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def end(place: Workspace, running: Running, tally: Tally, may_go_on: bool) -> None:
    """Waits until nothing of a killed run is left; one whose stage alone was killed may try it again by itself."""
    begin = time.monotonic()
    if may_go_on:
        return
    while workers(place) and time.monotonic() - begin < 60:
        time.sleep(0.1)
    tally.seconds = max(tally.seconds, time.monotonic() - begin)
    running.ended(seconds=30)


def disturbed(place: Workspace, way: str, chance: random.Random, seconds: float) -> Tally:
    """A run from nothing that is killed at random moments, then left alone."""
    tally = Tally(way)
    clean(place)
    planned = chance.randint(*KILLS)
    running = start(place, way)
    while len(tally.victims) < planned:
        time.sleep(chance.uniform(0.2, 2 * seconds / planned))
        victim = "" if running.process.poll() is not None else kill(place, chance)
        if not victim:
            if (done := running.ended()).code == 0:  # it was quicker than its killer: once more from nothing
                clean(place)
            else:
                _read(place, way, done, tally)
            running = start(place, way)
            continue
        tally.victims.append(victim)
        alone = way == "flow" and not victim.startswith(("everything", "flow"))
        end(place, running, tally, may_go_on=alone)
        if not alone:
            running = start(place, way)
    finish(place, running, way, tally)
    return tally


def at_failpoints(place: Workspace, way: str, chance: random.Random, calls: int) -> Tally:
    """A run from nothing that is killed at fsyncs and renames."""
    tally = Tally(f"{way}, at failpoints")
    clean(place)
    counter = place.folder / ".run" / "failpoint-calls"
    for _ in range(chance.randint(*KILLS)):
        counter.unlink(missing_ok=True)
        point = f"{chance.randint(1, calls)}:{chance.choice(['before', 'after'])}"
        running = start(place, way, **_failpoints(place, point))
        done = running.ended(seconds=300)
        if not _reached(counter, point):
            if done.code == 0:
                clean(place)  # it had too little left to do; once more from nothing
            else:
                _read(place, way, done, tally)
            continue
        number, _, when = point.partition(":")
        tally.victims.append(f"{when} {counter.read_text().splitlines()[int(number) - 1][:90]}")
        begin = time.monotonic()
        while workers(place) and time.monotonic() - begin < 60:
            time.sleep(0.1)
        tally.seconds = max(tally.seconds, time.monotonic() - begin)
    finish(place, start(place, way), way, tally)
    return tally


def _reached(counter: Path, point: str) -> bool:
    return counter.exists() and len(counter.read_text().splitlines()) >= int(point.partition(":")[0])


def _failpoints(place: Workspace, point: str) -> dict[str, str]:
    folder = Path(__file__).parent / "failpoints"
    return {
        "FAILPOINT": point,
        "FAILPOINT_CALLS": str(place.folder / ".run" / "failpoint-calls"),
        "PYTHONPATH": os.pathsep.join([str(folder), str(place.folder)]),
    }


def finish(place: Workspace, running: Running, way: str, tally: Tally) -> None:
    """The run goes through undisturbed; one more try is a user's who reads what it said."""
    for attempt in range(3):
        done = running.ended(seconds=300)
        if done.code == 0:
            return
        _read(place, way, done, tally)
        if attempt < 2:
            running = start(place, way)


def _read(place: Workspace, way: str, done: Done, tally: Tally) -> None:
    """A run that failed by itself says why; its user reads that, and the README, and starts it again."""
    lines = [line for line in done.output.splitlines() if line.strip()]
    if way == "dvc" and any(word in done.output for word in ("'./dvc.lock'", "RWLock-file")):
        mended = place.start("-m", "tasks.cli.app", "doctor", "--mend").ended().output
        told = next((line for line in mended.splitlines() if "half written" in line or "rwlock" in line), "?")
        tally.errors.append(f"`vae doctor --mend`: {told}")
    else:
        tally.errors.append(" | ".join(lines[-3:])[-400:])


def main(runs: int = 16, failpoint_runs: int = 4, seed: int = 0) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        place = copy_project(Path(temporary) / "vae-train")
        edit(place, train={"epochs": EPOCHS})
        try:
            place.up()
            tallies, calls = [], 0
            begin = time.monotonic()
            first = place.start_dvc("repro").ended()
            assert first.code == 0, first.output
            seconds, expected = time.monotonic() - begin, hashes(place)
            print(f"undisturbed: {seconds:.0f} s by dvc repro, weights {expected[FILES[4]][:12]}", flush=True)
            clean(place)
            begin = time.monotonic()
            counted = start(place, "flow", **_failpoints(place, "0")).ended()
            assert counted.code == 0, counted.output
            calls = len((place.folder / ".run" / "failpoint-calls").read_text().splitlines())
            same = hashes(place) == expected
            print(
                f"by the flow: {time.monotonic() - begin:.0f} s, {'the same bits' if same else 'OTHER BITS'}; "
                f"{calls} fsyncs and renames",
                flush=True,
            )
            for number in range(runs + failpoint_runs):
                way = ("dvc", "flow")[number % 2]
                if number < runs:
                    tally = disturbed(place, way, chance, seconds)
                else:
                    tally = at_failpoints(place, way, chance, calls)
                found = hashes(place)
                tally.differ = [name for name in FILES if found[name] != expected[name]]
                tallies.append(tally)
                print(told(number + 1, tally), flush=True)
            print(f"\nMLflow runs by status: {statuses(place)}")
        finally:
            place.kill()
    print(summary(tallies))
    if not same or any(tally.differ for tally in tallies):
        raise typer.Exit(1)


def statuses(place: Workspace) -> dict[str, int]:
    from mlflow import MlflowClient

    store = MlflowClient(tracking_uri=f"sqlite:///{place.folder / 'mlflow.db'}")
    experiment: Any = store.get_experiment_by_name("vae-train")
    return dict(Counter(run.info.status for run in store.search_runs([experiment.experiment_id])))


def told(number: int, tally: Tally) -> str:
    lines = [
        f"run {number} ({tally.way}): {len(tally.victims)} kills ({'; '.join(tally.victims)}), gone within "
        f"{tally.seconds:.1f} s, {'DIFFERS: ' + ', '.join(tally.differ) if tally.differ else 'identical'}"
    ]
    return "\n".join(
        [*lines, *(f"    said, and went on when started again: {error}" for error in tally.errors)]
    )


def summary(tallies: list[Tally]) -> str:
    """The tally as Markdown: what was killed, how often, and what was lost."""
    ways = sorted({tally.way for tally in tallies})
    rows = [
        "| way | runs | kills | identical | started once more than planned | longest-lived process |",
        "| --- |" + " --- |" * 5,
    ]
    for way in ways:
        mine = [tally for tally in tallies if tally.way == way]
        rows.append(
            f"| {way} | {len(mine)} | {sum(len(t.victims) for t in mine)} | {sum(not t.differ for t in mine)} | "
            f"{sum(len(t.errors) for t in mine)} | {max(t.seconds for t in mine):.1f} s |"
        )
    kinds = Counter(
        victim.split(" in ")[0] for t in tallies if "failpoints" not in t.way for victim in t.victims
    )
    places = Counter(
        victim.split(" in ")[1] for t in tallies if "failpoints" not in t.way for victim in t.victims
    )
    slow = sum(tally.seconds > PROMISED_SECONDS for tally in tallies)
    return "\n".join(
        [
            "",
            *rows,
            "",
            f"killed: {dict(kinds)}; where: {dict(places)}",
            f"{sum(len(t.victims) for t in tallies)} kills, {sum(not t.differ for t in tallies)} of {len(tallies)} "
            f"runs identical to the undisturbed one; {slow} left a process for more than {PROMISED_SECONDS} s",
        ]
    )


if __name__ == "__main__":
    typer.run(main)
