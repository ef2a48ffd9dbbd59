"""The script for a GPU, on the CPU: its time limits, what it keeps, and each part on tiny work."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from helpers.project import PROJECT

from benchmarks import gpu, speed
from benchmarks.gpu import Session
from tasks import workspace
from vae.config.errors import InputError

TINY = speed.Case(16, 1, (8, 16), 4, 16, 320, 3)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(str(tmp_path), "cpu", quick=True, mnist=None, ends=time.time() + 100)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SIZES", {"32": TINY})


def test_a_command_ends_at_its_limit_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    found = gpu.bounded([sys.executable, "-c", child], 3, tmp_path / "log.txt")
    assert found["outcome"] == "stopped after 3 s" and found["seconds"] < 20
    pid = int((tmp_path / "log.txt").read_text())
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(20)  # raises where it still runs


def test_an_outcome_is_noted_whatever_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert gpu.bounded([sys.executable, "-c", "pass"], 60, log)["outcome"] == "done"
    assert gpu.bounded([sys.executable, "-c", "exit(3)"], 60, log)["outcome"] == "failed with exit code 3; see log.txt"
    assert gpu.bounded([sys.executable, "-c", "pass"], 0.5, log) == {"outcome": "no time left"}


def test_a_failing_part_does_not_keep_the_next_one_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[str] = []

    def bounded(command: list[str], limit: float, log: Path) -> dict[str, Any]:
        part, given = command[-2], Session(**json.loads(command[-1]))
        commands.append(part)
        assert limit <= gpu.PARTS[part][1] and given.ends <= time.time() + limit
        return {"outcome": "failed with exit code 1" if part == "bits" else "done", "seconds": 1.0}

    monkeypatch.setattr(gpu, "bounded", bounded)
    gpu.main(out=tmp_path, device="cpu", minutes=8)
    assert commands == list(gpu.PARTS)
    assert "failed with exit code 1" in (tmp_path / "results.md").read_text()
    commands.clear()
    gpu.main(out=tmp_path, device="cpu", minutes=8)
    assert commands == ["bits"]  # the others are done


def test_the_limits_leave_time_for_the_last_part() -> None:
    *first, last = (seconds for _, seconds in gpu.PARTS.values())
    assert sum(first) < 8 * 60 < last


def test_a_note_is_on_the_disk_at_once_and_an_error_is_one(session: Session) -> None:
    session.note("speeds", size="32", images_per_second=1.0)
    with session.attempt("speeds", size="64"):
        raise RuntimeError("no kernel")
    assert session.has("speeds", size="32") and not session.has("speeds", size="64")
    table = "\n".join(gpu.markdown(gpu.read(session.results)))
    assert "| 32 | 1 |  |" in table and "| 64 |  | RuntimeError: no kernel |" in table


def test_speeds_are_of_the_epochs_after_the_first(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TRAINERS", (speed.OURS, "plain loop"))
    torch.use_deterministic_algorithms(True)  # as an earlier training on a GPU leaves it
    gpu.speeds(session)
    assert not torch.are_deterministic_algorithms_enabled()
    rows = gpu.read(session.results)
    assert [row["trainer"] for row in rows] == [speed.OURS, "plain loop"]
    assert all(row["images_per_second"] > 0 and row["first_epoch"] > 0 for row in rows)
    gpu.speeds(session)
    assert gpu.read(session.results) == rows  # an earlier call has them


def test_costs_compare_one_change_each(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    usual = torch.compile

    def images_per_second(p: Any, case: Any, trainer: str) -> dict[str, float]:
        asked.append((trainer, p.train.optimizer, p.train.deterministic, torch.compile is usual))
        return {"images_per_second": 1.0}

    monkeypatch.setattr(gpu, "images_per_second", images_per_second)
    gpu.costs(session)
    assert asked == [
        (speed.EAGER, "adamw", True, True),
        (speed.EAGER, "muon", True, True),
        (speed.EAGER, "adamw", False, True),
        (speed.COMPILED, "adamw", True, True),
        (speed.COMPILED, "adamw", True, False),
    ]
    assert torch.compile is usual


def test_a_killed_training_resumes_to_the_same_hash(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    once, killed = tmp_path / "once", tmp_path / "killed"
    for place in (once, killed):
        place.mkdir()
    gpu.hash_of_training(session, "fp32", once, None)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "kill", kill)
        gpu.hash_of_training(session, "fp32", killed, 2)
    assert not (killed / "sha256").exists()
    gpu.hash_of_training(session, "fp32", killed, None)
    assert (once / "sha256").read_text() == (killed / "sha256").read_text()


def test_a_row_of_a_paper_continues_where_time_ran_out(session: Session, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 300), ("valid", 50), ("test", 40)):
        path = tmp_path / workspace.images(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, random.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8) // 255 * 255)
    late = Session(session.out, "cpu", True, None, ends=0.0)
    gpu.paper(late, "gated MLP", tmp_path)
    gpu.paper(session, "gated MLP", tmp_path)
    first, *finished = gpu.read(session.results)
    assert (first["epoch"], first["samples"]) == ("1 of 2", gpu.FEW_SAMPLES)
    assert [(row["epoch"], row["samples"]) for row in finished] == [("2 of 2", gpu.FEW_SAMPLES), ("2 of 2", 5)]
    assert all(row["test_nll"] > 0 for row in finished)


def test_papers_without_mnist_say_so(session: Session) -> None:
    gpu.papers(session)
    assert "give --mnist PATH" in gpu.read(session.results)[0]["error"]


def test_it_needs_neither_prefect_nor_mlflow_nor_dvc() -> None:
    absent = ("prefect", "mlflow", "dvc", "pandera", "fastapi", "sqlalchemy", "lightning", "pythae", "configobj")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import benchmarks.gpu, tasks.ingest"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="there is no GPU here"):
        gpu.main(out=tmp_path, device="cuda")
