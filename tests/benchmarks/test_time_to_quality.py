"""Time to quality, on a case of seconds: who trains how, what is kept of an interrupted bench, and the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.parameters import parse

from benchmarks import time_to_quality as bench
from benchmarks.peers import ALL_PEERS, one_cycle
from benchmarks.speed import OURS, by_peer
from benchmarks.time_to_quality import OUR_RECIPE, OUR_SCHEDULE, USUAL, Case, Results, Run
from tasks import workspace
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, resolve
from vae.schedules.learning_rate import learning_rate

TINY = Case({"source": "digits", "image_size": 8}, 64, 3, {"latent_dim": 4, "widths": [8]})
PHOTOS = Case({"source": "folder", "image_size": 8}, 16, 2, given=True)


@pytest.fixture
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_store: bytes) -> list[Run]:
    """The bench in a folder of its own, its trainings in this process; returns the list of those that ran."""
    ran: list[Run] = []

    def run(module: str, described: str, place: str, folder: str) -> dict[str, Any]:
        run = Run(*json.loads(described))
        ran.append(run)
        return bench.one(run, Path(place))

    def make_store(folder: Path) -> None:
        (folder / "store").mkdir()
        (folder / "store" / "mlflow.db").write_bytes(new_store)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", "restored after the test")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, value in {
        "in_own_process": run, "make_store": make_store, "TABLE": tmp_path / "reports" / "table.csv",
        "CASES": {"tiny": TINY, "leaves": PHOTOS}, "USUAL_EPOCHS": 4, "SCHEDULED_EPOCHS": (2, 5, 6),
    }.items():  # fmt: skip
        monkeypatch.setattr(bench, name, value)
    return ran


def run_bench(epochs: int | None = None) -> None:
    bench.main(case=None, trainer=["plain loop"], repeats=1, epochs=epochs, mnist=None, leaves=None)


def test_each_training_runs_once_also_over_an_interruption(
    in_this_process: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench, "as_the_stage", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_bench()
    usual, ours = Run("tiny", "plain loop", USUAL, 4, 0), Run("tiny", OURS, OUR_RECIPE, 3, 0)
    assert in_this_process == [usual, ours]
    in_this_process.clear()

    run_bench()
    assert in_this_process[0] == ours and usual not in in_this_process
    scheduled = in_this_process[1:]
    assert [run.epochs for run in scheduled] == [3, 5, 6][: len(scheduled)]  # never fewer than our own
    assert all(run[1:3] == ("plain loop", OUR_SCHEDULE) for run in scheduled)

    rows = Results(bench.TABLE).before
    assert len(rows) == 1 + len(in_this_process)
    assert all(np.isfinite(row["skill"]) and row["whole_seconds"] > 0 and row["cpu_seconds"] > 0 for row in rows)
    in_this_process.clear()
    run_bench()
    assert in_this_process == []
    run_bench(epochs=2)
    assert in_this_process[0] == Run("tiny", OURS, OUR_RECIPE, 2, 0) and usual not in in_this_process
    printed = capsys.readouterr().out
    assert "leaves: skipped; give --leaves PATH" in printed and "| tiny | plain loop |" in printed


def test_rows_of_other_conditions_stay_in_the_file_and_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = tmp_path / "table.csv", Run("tiny", "pythae", USUAL, 4, 0)
    skill = iter([1.0, 2.0])
    monkeypatch.setattr(bench, "in_own_process", lambda *_, **__: {"skill": next(skill), "whole_seconds": 2.0})
    for code, expected in (("1e5", 1.0), ("2e5", 2.0), ("1e5", 1.0)):  # text, though they look like numbers
        monkeypatch.setattr(bench, "conditions", lambda *_, code=code: code)
        results = Results(path)
        assert results.of(run, "folder")["skill"] == results.of(run, "folder")["skill"] == expected
        assert [row["conditions"] for row in results.rows] == [code]
    assert len(path.read_text().splitlines()) == 3


def test_the_conditions_are_images_parameters_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CASES", {"tiny": TINY})
    images = [tmp_path / "tiny" / workspace.images(split) for split in ("train", "valid")]
    images[0].parent.mkdir(parents=True)
    for file in images:
        file.write_bytes(b"some")
    run = Run("tiny", OURS, OUR_RECIPE, 3, 0)
    found = {bench.conditions(run, tmp_path), bench.conditions(run._replace(epochs=4), tmp_path)}
    monkeypatch.setattr(bench, "CASES", {"tiny": replace(TINY, epochs=9)})
    assert bench.conditions(run, tmp_path) in found, "the epochs of this training are what counts"
    monkeypatch.setattr(bench, "CASES", {"tiny": replace(TINY, batch=32)})
    found.add(bench.conditions(run, tmp_path))
    for file in images:
        file.write_bytes(b"others")
        found.add(bench.conditions(run, tmp_path))
    assert len(found) == 5


def test_the_recipes_differ_in_the_training_alone() -> None:
    usual, ours, scheduled = (bench.parameters_of(TINY, recipe, 7, 1) for recipe in (USUAL, OUR_RECIPE, OUR_SCHEDULE))
    default = resolve(parse({"train.batch_size": 64, "train.epochs": 7}), 1).train
    assert ours.train == default.model_copy(update={"device": "cpu"})
    assert scheduled.train.optimizer == usual.train.optimizer == "adamw"
    assert (usual.train.learning_rate, usual.train.learning_rate_schedule) == (1e-3, "constant")
    assert scheduled.train.learning_rate_schedule == default.learning_rate_schedule != "constant"
    for p in (usual, scheduled):
        same = ("seed", "data", "model", "objective")
        assert [getattr(p, name) for name in same] == [getattr(ours, name) for name in same]


def rates_of_a_peer(p: ResolvedParameters, steps: int) -> list[float]:
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    cycle = one_cycle(p, steps)
    assert cycle is not None
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimiser, **cycle)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        torchs.step()
    return rates


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_peers_schedule_is_this_projects(schedule: str) -> None:
    """But in its rise: torch's begins at 1/25 of the peak, and is a cosine where the fall is one."""
    train = {"train.epochs": 10, "train.optimizer": "adamw", "train.learning_rate_schedule": schedule}
    p, steps = resolve(parse(train), 1), 400
    rates = rates_of_a_peer(p, steps)
    own = [learning_rate(p.train, 10 * step / steps) for step in range(steps)]
    peak = int(np.argmax(own))
    assert max(rates) == pytest.approx(p.train.learning_rate) and abs(int(np.argmax(rates)) - peak) <= 1
    assert np.abs(np.array(rates) - own)[peak:].max() < 0.01 * p.train.learning_rate


@pytest.mark.parametrize("steps", [3, 10, 15])
def test_a_cycle_of_few_steps_reaches_its_peak(steps: int) -> None:
    """As in pythae, which steps it once an epoch."""
    p = resolve(parse({"train.optimizer": "adamw"}), 1)
    rates = rates_of_a_peer(p, steps)
    assert max(rates) == pytest.approx(p.train.learning_rate)
    assert int(np.argmax(rates)) == 1


@pytest.mark.parametrize("trainer", list(ALL_PEERS))
@pytest.mark.parametrize("recipe", [USUAL, OUR_SCHEDULE])
def test_a_peer_trains_and_ends_with_the_model_that_it_keeps(trainer: str, recipe: str) -> None:
    if trainer in ("Lightning", "pythae"):
        pytest.importorskip(trainer.lower())
    if trainer == "plain loop, tuned":
        pytest.skip("compiles for half a minute on a CPU")
    p = bench.parameters_of(TINY, recipe, 4, 0)
    images = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 1), dtype=np.uint8)
    model, seconds = by_peer(p, trainer, images[:130], images[130:])
    assert len(seconds) == 4
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


def rows_of(usual: float, ours: float, scheduled: list[float], repeat: int = 0, speed: float = 1.0) -> list[bench.Row]:
    """Skills of a repeat; 100 epochs take 100 seconds, and ours 10."""

    def row(who: str, recipe: str, epochs: int, seconds: float, skill: float) -> bench.Row:
        run = Run("tiny", who, recipe, epochs, repeat)._asdict()
        return {**run, "whole_seconds": seconds / speed, "cpu_seconds": 2 * seconds / speed, "skill": skill}

    return [
        row("pythae", USUAL, 100, 100.0, usual),
        row(OURS, OUR_RECIPE, 10, 10.0, ours),
        *(row("pythae", OUR_SCHEDULE, 10 * (i + 1), 10.0 * (i + 1), skill) for i, skill in enumerate(scheduled)),
    ]


def cells(rows: list[bench.Row]) -> list[str]:
    return [cell.strip() for cell in bench.markdown(rows)[2].strip("| ").split("|")]


def test_a_ratio_is_of_one_repeat() -> None:
    """The machine is twice as fast in the second repeat: ratios stay what they are."""
    found = cells(rows_of(5.0, 6.0, [4.0, 5.5]) + rows_of(5.0, 6.0, [4.0, 5.5], 1, speed=2.0))
    assert found == [
        "tiny", "pythae", "5.0", "75 (50–100)", "10", "6.0", "8 (5–10)", "10.0", "10.0",
        "4.0", "20", "15 (10–20)", "2.0",
    ]  # fmt: skip


def test_a_time_counts_only_where_the_skill_was_reached() -> None:
    assert cells(rows_of(5.0, 4.9, [4.0, 4.5]))[7:] == ["not reached", "not reached", "4.0", *["not reached"] * 3]
    found = cells(rows_of(5.0, 6.0, [5.0]) + rows_of(5.0, 4.0, [1.0], 1))
    assert found[7] == "10.0, 1 of 2 repeats" and found[10] == "10, 1 of 2 repeats"


def test_a_later_repeat_begins_with_the_longest_that_fell_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Run] = []

    def train(_: str, described: str, *__: str, **___: str) -> dict[str, Any]:
        run = Run(*json.loads(described))
        ran.append(run)
        return {"skill": 100.0 if run.recipe == USUAL else 4.0 * run.epochs, "whole_seconds": 1.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(bench, "in_own_process", train)
    monkeypatch.setattr(bench, "conditions", lambda *_: "1")
    results = Results(tmp_path / "table.csv")
    for repeat in range(2):
        bench.compare("tiny", 10, ["pythae"], repeat, results, "folder")
    lengths = [[run.epochs for run in ran if run.recipe == OUR_SCHEDULE and run.repeat == r] for r in range(2)]
    assert lengths == [[10, 15, 20, 30], [10, 20, 30]]


def test_this_project_trains_in_batches_of_its_own_where_it_advises_them() -> None:
    batches = [
        bench.parameters_of(bench.CASES["mnist"], recipe, 7, 0).train.batch_size
        for recipe in (USUAL, OUR_SCHEDULE, OUR_RECIPE)
    ]
    assert batches == [100, 100, 500]


def test_an_unknown_case_or_peer_is_named() -> None:
    with pytest.raises(InputError, match="'huge' is unknown; expected one of digits, mnist, leaves, patches"):
        bench.main(case=["huge"])
    with pytest.raises(InputError, match="'vae-train' is unknown; expected one of plain loop"):
        bench.main(trainer=[OURS])


def test_a_case_is_ingested_as_the_stage_does_it(tmp_path: Path) -> None:
    bench.prepare("tiny", TINY, None, tmp_path)
    counts = {s: len(np.load(tmp_path / "tiny" / workspace.images(s))) for s in ("train", "valid", "test")}
    assert sum(counts.values()) == 1797 and counts["train"] > 1400
