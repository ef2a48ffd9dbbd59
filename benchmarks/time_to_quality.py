"""Time to quality: the seconds that this project and its peers take to the same validation skill.

pythae and Lightning train as their users do, 100 epochs of Adam at 1e-3, and the model that they keep is judged by
its skill (`benchmarks.speed.skill`). This project trains by its default recipe, for a number of epochs that should
pass both; its time counts only where it did. Then the peers get this project's schedule: AdamW whose learning rate
rises, then falls, for the fewest epochs that reach the skill of their own 100. That separates recipe from speed.
The lengths are tried from short to long; a later repeat begins with the longest that fell short before.

A training is a process of its own, timed from its start until the kept model is there to be judged. Results:
`reports/time_to_quality.csv`, a row as each training ends; the same command continues after the last row.
"""

import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from ruamel.yaml import YAML

from benchmarks.peers import ALL_PEERS
from benchmarks.speed import (
    OURS,
    as_the_stage,
    by_peer,
    in_own_process,
    known,
    photos,
    program,
    skill,
    spent,
    usual_adam,
)
from tasks import workspace
from vae.compute import devices
from vae.compute.batches import open_images
from vae.config import loading
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, resolve
from vae.models.flops import training_flops

TABLE = workspace.REPORTS / "time_to_quality.csv"

USUAL, OUR_RECIPE, OUR_SCHEDULE = "Adam 1e-3, constant", "the default recipe", "AdamW, our schedule"
USUAL_EPOCHS = 100
# Tried after the epochs of this project's own training, until the skill is there.
SCHEDULED_EPOCHS = (10, 15, 20, 30, 50, 60)
PEERS = ("pythae", "Lightning")
TRAINING_CODE = ("tasks/train.py", "benchmarks/peers.py", "benchmarks/speed.py")

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Images and a network.

    Attributes:
        data: the parameters of ingest.
        batch: of the peers.
        epochs: of this project's training.
        own_batch: of this project's training, where docs/training.md advises another: Muon's step costs as much
            whatever the batch.
        given: whether the user gives the images, by an option of the case's name.
    """

    data: dict[str, Any]
    batch: int
    epochs: int
    model: dict[str, Any] = field(default_factory=dict)
    own_batch: int | None = None
    given: bool = False


LARGE = {"latent_dim": 256, "widths": [32, 64, 128, 256]}
GATED_MLP = {"architecture": "gated_mlp", "latent_dim": 40, "widths": [300, 300], "batch_norm": False}
PATCHES = 384  # 128×128 patches of two photos, before the splits

CASES = {
    "digits": Case({"source": "digits", "image_size": 16}, 64, 11),
    "mnist": Case({"source": "idx", "image_size": 28, "valid_fraction": 1 / 6}, 100, 17, GATED_MLP, 500, given=True),
    "leaves": Case({"source": "folder", "image_size": 64, "channels": 3}, 32, 6, LARGE, given=True),
    "patches": Case({"source": "npy", "image_size": 128, "channels": 3}, 32, 10, LARGE),
}


class Run(NamedTuple):
    """One training."""

    case: str
    trainer: str
    recipe: str
    epochs: int
    repeat: int  # the seed


def main(
    case: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(CASES)} (default: all); repeat for several")
    ] = None,
    trainer: Annotated[
        list[str] | None, typer.Option(help=f"a peer: {', '.join(ALL_PEERS)} (default: {', '.join(PEERS)})")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="repeats, each with a seed of its own")] = 3,
    epochs: Annotated[
        int | None,  # a peer's cycle has a rise, a peak and a fall, each of at least an epoch
        typer.Option(min=3, help="of this project's training (default: those of the case)"),
    ] = None,
    mnist: Annotated[Path | None, typer.Option(envvar="MNIST", help="the folder of MNIST's four idx files")] = None,
    leaves: Annotated[
        Path | None, typer.Option(envvar="LEAVES", help="a folder of photos, in folders by class")
    ] = None,
) -> None:
    """Measure how long this project and its peers train to the same skill."""
    peers = [who for who in trainer or PEERS if known(who, ALL_PEERS)]
    cases: dict[str, Case] = {name: known(name, CASES) for name in case or CASES}
    absent = [who for who in peers if who in PEERS and find_spec(who.lower()) is None]
    if absent:
        raise InputError(f"not installed: {', '.join(absent)}; `make .venv/ready-bench` installs them")
    paths = {"mnist": mnist, "leaves": leaves}
    results = Results(TABLE)
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder))
        for name, chosen in cases.items():
            if chosen.given and paths[name] is None:
                print(f"{name}: skipped; give --{name} PATH", flush=True)
                continue
            prepare(name, chosen, paths.get(name), Path(folder))
            for repeat in range(repeats):
                compare(name, epochs or chosen.epochs, peers, repeat, results, folder)
    if results.rows:
        print("\n" + "\n".join(markdown(results.rows)))


def compare(name: str, epochs: int, peers: Sequence[str], repeat: int, results: "Results", folder: str) -> None:
    """One repeat of a case, its trainings one after the other.

    epochs: of this project's training; the fewest of the others with our schedule.
    """
    usual = {who: results.of(Run(name, who, USUAL, USUAL_EPOCHS, repeat), folder) for who in peers}
    results.of(Run(name, OURS, OUR_RECIPE, epochs, repeat), folder)
    for who in peers:
        first = max(epochs + 1, _fell_short(results.rows, name, who))
        for length in (epochs, *(count for count in SCHEDULED_EPOCHS if count >= first)):
            found = results.of(Run(name, who, OUR_SCHEDULE, length, repeat), folder)
            if found["skill"] >= usual[who]["skill"]:
                break


def _fell_short(rows: list[Row], name: str, who: str) -> int:
    """The most epochs of our schedule with which a peer fell short before, where the next repeat begins; 0: none."""
    usual = {repeat: found[0]["skill"] for repeat, found in _by_repeat(rows, name, who, USUAL).items()}
    scheduled = _by_repeat(rows, name, who, OUR_SCHEDULE)
    short = [row["epochs"] for repeat, found in scheduled.items() for row in found if row["skill"] < usual[repeat]]
    return max(short, default=0)


class Results:
    """The trainings so far; the file keeps those under other conditions too, which do not count."""

    def __init__(self, path: Path) -> None:
        import pandas as pd  # as in benchmarks.speed

        self.path = path
        before = pd.read_csv(path, dtype={"conditions": str}) if path.exists() else pd.DataFrame()
        self.before: list[Row] = [dict(zip(before.columns, row, strict=True)) for row in before.itertuples(index=False)]
        self.rows: list[Row] = []  # those that were asked for

    def of(self, run: Run, folder: str) -> Row:
        """The row of a training, which runs now unless it has run before."""
        sought = {"conditions": conditions(run, Path(folder)), **run._asdict()}
        row = next((row for row in (*self.rows, *self.before) if sought.items() <= row.items()), None)
        if row is None:
            found = in_own_process("benchmarks.time_to_quality", json.dumps(run), folder, folder=folder)
            row = {**sought, **found}
            self._append(row)
            print(
                f"{run.case}, repeat {run.repeat}: {run.trainer}, {run.recipe}, {run.epochs} epochs: "
                f"skill {row['skill']:.2f} nats in {row['whole_seconds']:.1f} s",
                flush=True,
            )
        if row not in self.rows:
            self.rows.append(row)
        return row

    def _append(self, row: Row) -> None:
        import pandas as pd  # as in benchmarks.speed

        self.path.parent.mkdir(exist_ok=True)
        pd.DataFrame([row]).to_csv(self.path, mode="a", header=not self.path.exists(), index=False)


def conditions(run: Run, folder: Path) -> str:
    """A hash of images, parameters, the code of training, PyTorch's version and the number of threads."""
    project = Path(__file__).parent.parent
    code = sorted([*project.glob("vae/**/*.py"), *(project / name for name in TRAINING_CODE)])
    p = parameters_of(CASES[run.case], run.recipe, run.epochs, run.repeat)
    digest = hashlib.sha256(f"{torch.__version__} {devices.MOST_THREADS} {p.model_dump_json()}".encode())
    for file in (*code, *(folder / run.case / workspace.images(split) for split in ("train", "valid"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def make_store(folder: Path) -> None:
    """MLflow's store, which a user's project has from its first run on."""
    (folder / "store").mkdir()
    subprocess.run(
        [sys.executable, "-c", "from tasks.tracking import store; store.connect()"],
        env={**os.environ, "DVC_ROOT": str(folder / "store")}, capture_output=True, check=True,
    )  # fmt: skip


def prepare(name: str, case: Case, path: Path | None, folder: Path) -> None:
    """The case's splits, for all trainers and repeats."""
    if name == "patches":
        path = folder / "patches.npy"
        np.save(path, photos(case.data["image_size"], case.data["channels"], PATCHES))
    ingested(case.data if path is None else {**case.data, "path": str(path.absolute())}, folder / name)


def ingested(data: dict[str, Any], folder: Path) -> None:
    """Runs the stage ingest in a folder, which then holds `data/images/train.npy` and the other splits."""
    from tasks import ingest  # not in the process of a training

    folder.mkdir()
    with contextlib.chdir(folder):
        YAML().dump({"data": data}, workspace.PARAMS)
        ingest.main()


def one(run: Run, folder: Path) -> Row:
    """One training in this process: what it used, and its skill."""
    p = parameters_of(CASES[run.case], run.recipe, run.epochs, run.repeat)
    train, valid = (open_images(folder / run.case / workspace.images(split)) for split in ("train", "valid"))
    if run.trainer == OURS:
        compute = devices.choose(p.train, training_flops(p), len(train))
        model, _ = as_the_stage(p, train, valid, compute, folder / "store")
    else:
        model, _ = by_peer(p, run.trainer, train, valid)
    return {**spent(), "skill": skill(p, model, valid)}


def parameters_of(case: Case, recipe: str, epochs: int, seed: int) -> ResolvedParameters:
    """The defaults but for what the case and the recipe say; the likelihood is the default for all, of optimal σ."""
    train: dict[str, Any] = {"device": "cpu", "batch_size": case.batch, "epochs": epochs}
    if recipe == OUR_RECIPE:
        train["batch_size"] = case.own_batch or case.batch
    elif recipe == USUAL:
        train = usual_adam(**train)
    elif recipe == OUR_SCHEDULE:
        train["optimizer"] = "adamw"
    values = {"seed": seed, "data": case.data, "model": case.model, "train": train}
    return resolve(loading.parse(values, "the benchmark's parameters"), 1)


def markdown(rows: list[Row]) -> list[str]:
    """Medians, with minimum and maximum. A ratio compares trainings of the same repeat."""
    lines = [
        "| case | peer | 100 epochs of Adam 1e-3: skill | seconds | vae-train: epochs | skill | seconds | "
        "times as fast | in CPU seconds | peer with our schedule: skill at these epochs | epochs to its own skill | "
        "seconds | vae-train is times as fast |",
        "| --- | --- |" + " --- |" * 11,
    ]
    for name, who in dict.fromkeys((row["case"], row["trainer"]) for row in rows if row["recipe"] == USUAL):
        theirs = _by_repeat(rows, name, who, USUAL)
        ours = _by_repeat(rows, name, OURS, OUR_RECIPE)
        usual = {repeat: found[0] for repeat, found in theirs.items() if repeat in ours}
        if usual:
            lines.append(f"| {name} | {who} | {' | '.join(_cells(rows, name, who, usual, ours))} |")
    return lines


def _cells(rows: list[Row], name: str, who: str, usual: dict[int, Row], ours: dict[int, list[Row]]) -> list[str]:
    own = {repeat: ours[repeat][0] for repeat in usual}
    passed = [repeat for repeat in usual if own[repeat]["skill"] >= usual[repeat]["skill"]]
    scheduled = {r: found for r, found in _by_repeat(rows, name, who, OUR_SCHEDULE).items() if r in usual}
    reached = {
        repeat: next((row for row in found if row["skill"] >= usual[repeat]["skill"]), None)
        for repeat, found in scheduled.items()
    }
    there = {repeat: row for repeat, row in reached.items() if row is not None}

    def ratio(theirs: dict[int, Row], column: str, repeats: Sequence[int]) -> str:
        return _spread([theirs[r][column] / own[r][column] for r in repeats if r in theirs], ".1f", len(usual))

    return [
        _spread([row["skill"] for row in usual.values()], ".1f"),
        _spread([row["whole_seconds"] for row in usual.values()], ".0f"),
        _spread([row["epochs"] for row in own.values()], ".0f"),
        _spread([row["skill"] for row in own.values()], ".1f"),
        _spread([row["whole_seconds"] for row in own.values()], ".0f"),
        ratio(usual, "whole_seconds", passed),
        ratio(usual, "cpu_seconds", passed),
        _spread([found[0]["skill"] for found in scheduled.values()], ".1f"),
        _spread([row["epochs"] for row in there.values()], ".0f", len(usual)),
        _spread([row["whole_seconds"] for row in there.values()], ".0f", len(usual)),
        ratio(there, "whole_seconds", passed),
    ]


def _by_repeat(rows: list[Row], name: str, who: str, recipe: str) -> dict[int, list[Row]]:
    """Rows of each repeat, the fewest epochs first."""
    found: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["repeat"], row["epochs"])):
        if (row["case"], row["trainer"], row["recipe"]) == (name, who, recipe):
            found.setdefault(row["repeat"], []).append(row)
    return found


def _spread(values: Sequence[float], form: str, of: int | None = None) -> str:
    """Median (lowest–highest); of: the repeats that there were, said where a value is missing in some."""
    if not len(values):
        return "not reached" if of else "–"
    missing = f", {len(values)} of {of} repeats" if of and len(values) < of else ""
    middle, low, high = float(np.median(values)), min(values), max(values)
    if math.isclose(low, high):
        return f"{middle:{form}}{missing}"
    return f"{middle:{form}} ({low:{form}}–{high:{form}}{missing})"


if __name__ == "__main__":
    program(main, lambda described, folder: one(Run(*json.loads(described)), Path(folder)))
