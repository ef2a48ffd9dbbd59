"""Kills runs at random moments and compares their results, bit for bit, with those of an undisturbed run.

Each run starts from scratch, by `dvc repro` or by the flow, is killed several times (SIGKILL: everything at
once, as a power cut does; the stage alone; DVC alone; the flow alone) and restarted by the same command.
Further runs are killed at the n-th fsync or rename, before it or after it. `make chaos` prints the tally.
"""

import contextlib
import hashlib
import itertools
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

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
    """What happened to one run.

    Attributes:
        victims: what was killed, in this order.
        seconds: the longest that a process survived a kill.
        differ: files that differ from the undisturbed run's; the promise is that there are none.
        errors: why a run failed by itself after a kill.
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
    """Removes everything of a run but the MLflow store, which all runs share."""
    for name in _MADE:
        path = place.folder / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    subprocess.run(["git", "checkout", "--quiet", "dvc.lock"], cwd=place.folder, check=True)


def start(place: Workspace, way: str, **environment: str) -> Running:
    if way == "flow":
        return place.start("-m", "flows.vae_train", **environment)
    return place.start_dvc("repro", **environment)


def kill(place: Workspace, chance: random.Random) -> str:
    """Kills all at once, or one part; returns which."""
    parts = place.workers()
    if not parts:
        return ""
    which = chance.choice(["everything", "everything", *sorted(parts)])
    stage = "between stages"
    for process in parts.get("stage", []):
        with contextlib.suppress(psutil.Error):
            stage = next((w for w in process.cmdline() if w.startswith("tasks.")), stage)
    for victim in itertools.chain(*parts.values()) if which == "everything" else parts[which]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    return f"{which} in {stage.removeprefix('tasks.')}"


def gone(place: Workspace) -> float:
    """Seconds until no process works for a run any more."""
    begin = time.monotonic()
    while place.workers() and time.monotonic() - begin < 60:
        time.sleep(0.1)
    return time.monotonic() - begin


def disturbed(place: Workspace, way: str, chance: random.Random, seconds: float) -> Tally:
    """A run from nothing that is killed at random moments, then left to finish."""
    tally = Tally(way)
    clean(place)
    planned = chance.randint(*KILLS)
    running = start(place, way)
    while len(tally.victims) < planned:
        time.sleep(chance.uniform(0.2, 2 * seconds / planned))
        victim = "" if running.process.poll() is not None else kill(place, chance)
        if not victim:
            if (done := running.ended()).code == 0:  # it was faster than the kills: once more from nothing
                clean(place)
            else:
                _read(place, way, done, tally)
            running = start(place, way)
            continue
        tally.victims.append(victim)
        if way == "flow" and not victim.startswith(("everything", "flow")):
            continue  # the flow tries a stage again by itself
        tally.seconds = max(tally.seconds, gone(place))
        running.ended(seconds=30)
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
                clean(place)  # it had fewer calls left than that: once more from nothing
            else:
                _read(place, way, done, tally)
            continue
        number, _, when = point.partition(":")
        tally.victims.append(f"{when} {counter.read_text().splitlines()[int(number) - 1][:90]}")
        tally.seconds = max(tally.seconds, gone(place))
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
    """The run completes undisturbed; a user who reads its error starts it again, twice at most."""
    for attempt in range(3):
        done = running.ended(seconds=300)
        if done.code == 0:
            return
        _read(place, way, done, tally)
        if attempt < 2:
            running = start(place, way)


def _read(place: Workspace, way: str, done: Done, tally: Tally) -> None:
    """Keeps what a run that failed by itself said; what that and the README advise is done."""
    lines = [line for line in done.output.splitlines() if line.strip()]
    if way == "dvc" and any(word in done.output for word in ("'./dvc.lock'", "RWLock-file")):
        mended = place.python("-m", "tasks.cli.app", "doctor", "--mend").output.splitlines()
        line = next((line for line in mended if "half written" in line or "rwlock" in line), "?")
        tally.errors.append(f"`vae doctor --mend`: {line}")
    else:
        tally.errors.append(" | ".join(lines[-3:])[-400:])


def main(runs: int = 16, failpoint_runs: int = 4, seed: int = 0) -> None:
    chance, tallies = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        place = copy_project(Path(temporary) / "vae-train")
        edit(place, {"train.epochs": EPOCHS})
        try:
            place.up()
            expected, seconds = undisturbed(place, "dvc")
            found, _ = undisturbed(place, "flow", **_failpoints(place, "0"))
            same = found == expected
            calls = len((place.folder / ".run" / "failpoint-calls").read_text().splitlines())
            print(f"{'the same bits' if same else 'OTHER BITS'}; {calls} fsyncs and renames", flush=True)
            for number in range(runs + failpoint_runs):
                way = ("dvc", "flow")[number % 2]
                if number < runs:
                    tally = disturbed(place, way, chance, seconds)
                else:
                    tally = at_failpoints(place, way, chance, calls)
                found = hashes(place)
                tally.differ = [name for name in FILES if found[name] != expected[name]]
                tallies.append(tally)
                print(line(number + 1, tally), flush=True)
            print(f"\nMLflow runs by status: {dict(Counter(place.mlflow_statuses()))}")
        finally:
            place.kill()
    print(summary(tallies))
    if not same or any(tally.differ for tally in tallies):
        raise typer.Exit(1)


def undisturbed(place: Workspace, way: str, **environment: str) -> tuple[dict[str, str], float]:
    """The hashes of a run from nothing, and its seconds."""
    clean(place)
    begin = time.monotonic()
    done = start(place, way, **environment).ended()
    assert done.code == 0, done.output
    seconds = time.monotonic() - begin
    print(f"undisturbed: {seconds:.0f} s by {way}", flush=True)
    return hashes(place), seconds


def line(number: int, tally: Tally) -> str:
    result = f"DIFFERS: {', '.join(tally.differ)}" if tally.differ else "identical"
    first = (
        f"run {number} ({tally.way}): {len(tally.victims)} kills ({'; '.join(tally.victims)}), gone within "
        f"{tally.seconds:.1f} s, {result}"
    )
    return "\n".join([first, *(f"    failed, and continued when started again: {e}" for e in tally.errors)])


def summary(tallies: list[Tally]) -> str:
    """The tally as Markdown: what was killed, how often, and what was lost."""
    rows = [
        "| way | runs | kills | identical | failed by itself after a kill | longest-lived process |",
        "| --- |" + " --- |" * 5,
    ]
    for way in sorted({tally.way for tally in tallies}):
        mine = [tally for tally in tallies if tally.way == way]
        rows.append(
            f"| {way} | {len(mine)} | {sum(len(t.victims) for t in mine)} | {sum(not t.differ for t in mine)} | "
            f"{sum(len(t.errors) for t in mine)} | {max(t.seconds for t in mine):.1f} s |"
        )
    at_random = [v.split(" in ") for t in tallies if "failpoints" not in t.way for v in t.victims]
    kinds, places = (dict(Counter(victim[part] for victim in at_random)) for part in (0, 1))
    slow = sum(tally.seconds > PROMISED_SECONDS for tally in tallies)
    rows += [
        f"\nkilled: {kinds}; where: {places}",
        f"{sum(len(t.victims) for t in tallies)} kills, {sum(not t.differ for t in tallies)} of {len(tallies)} "
        f"runs identical to the undisturbed one; {slow} left a process for more than {PROMISED_SECONDS} s",
    ]
    return "\n".join(["", *rows])


if __name__ == "__main__":
    typer.run(main)
