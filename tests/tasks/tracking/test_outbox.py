"""MLflow away at the start, in the middle or at the end of a training: it goes on, and nothing is missing later."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from helpers.project import PROJECT
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks import workspace
from tasks.processes import run_notes
from tasks.tracking import outbox, training_run
from tasks.tracking import store as tracking
from vae.config import parameters
from vae.config.constants import SPLITS


@pytest.fixture
def store(new_store: bytes, empty_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The database of a store of its own. Without a pause, so that each call tries again."""
    path = empty_workspace / "mlflow.db"
    path.write_bytes(new_store)
    for split in SPLITS:
        np.save(workspace.images(split), np.zeros((4, 8, 8, 1), np.uint8))
    monkeypatch.setattr(training_run, "SILENCE", 0.0)
    yield path
    while mlflow.active_run() is not None:
        mlflow.end_run()


class Away:
    """Makes of a store's file what is no database, and puts it right again."""

    def __init__(self, database: Path) -> None:
        self.database, self.whole = database, b""

    def begin(self) -> None:
        self.whole = self.database.read_bytes()
        self.database.write_bytes(b"no database " * 1000)

    def end(self) -> None:
        self.database.write_bytes(self.whole)


def row(epoch: int) -> dict[str, float]:
    return {**dict.fromkeys(COLUMNS, 1.0), "epoch": epoch, "valid/kl": float(epoch)}


def trained(away: Away, begins: int, ends: int, remembered: Path) -> None:
    """A training of four epochs during which the store is away: from before epoch `begins` to before `ends`."""
    p = parameters.load(PROJECT / "experiments" / "default.yaml")
    images = np.zeros((4, 8, 8, 1), np.uint8)
    if begins == 0:
        away.begin()
    with training_run.training_run("a name", remembered, {"git.commit": "abc"}):
        training_run.log_inputs(p, images, images)
        for epoch in range(1, 5):
            if epoch == begins:
                away.begin()
            if epoch == ends:
                away.end()
            training_run.log_epoch(row(epoch), {"seconds": 0.5}, None)
        training_run.log_weights("f" * 64, 4, None)
    if ends > 4:
        away.end()


@pytest.mark.parametrize(("begins", "ends"), [(0, 2), (0, 9), (2, 4), (3, 9)])
def test_nothing_is_missing_once_it_answers_again(
    store: Path, tmp_path: Path, begins: int, ends: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(Away(store), begins, ends, tmp_path / "id")
    said = capsys.readouterr().out
    assert "WARNING: MLflow at " in said and "the training goes on" in said
    assert (len(list((tmp_path / ".run" / "unsent").glob("*.json"))) == 1) is (ends > 4)
    client, experiment = tracking.connect()
    (run,) = client.search_runs([experiment])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a name")
    assert run.data.tags["git.commit"] == "abc" and run.data.tags[tracking.WEIGHTS] == "f" * 64
    assert run.data.tags["ended"] == "FINISHED" and run.data.params["train.epochs"] == "60"
    history = client.get_metric_history(run.info.run_id, "valid/kl")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (e, float(e)) for e in (1, 2, 3, 4)
    ]
    assert list((tmp_path / ".run" / "unsent").glob("*.json")) == [], "what was kept is sent once"
    assert tracking.run_of("f" * 64).info.run_id == run.info.run_id


def test_it_is_not_asked_again_for_a_while(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_run, "SILENCE", 60.0)
    begin = time.monotonic()
    trained(Away(store), 2, 9, tmp_path / "id")
    assert capsys.readouterr().out.count("WARNING: MLflow at ") <= 2 and time.monotonic() - begin < 30


def test_what_was_asked_wrongly_is_an_error_and_not_told_as_an_outage(store: Path) -> None:
    with pytest.raises(MlflowException), tracking.away("the work goes on"):
        MlflowClient().get_run("no such run")
    with tracking.away("the work goes on"):
        raise ConnectionRefusedError("nobody is there")
    assert not outbox.is_away(ValueError("a bug"))


def test_the_run_of_a_dead_process_is_ended_by_the_next_that_comes(
    store: Path, empty_workspace: Path
) -> None:
    client, experiment = tracking.connect()
    run = client.create_run(experiment)
    folder = empty_workspace / ".run" / "mlflow_runs"
    folder.mkdir(parents=True, exist_ok=True)
    with run_notes.noted(folder, run.info.run_id, {}):
        tracking.connect()
        assert client.get_run(run.info.run_id).info.status == "RUNNING", "its process lives"
    (folder / f"{run.info.run_id}.json").write_text("{}")  # as a killed process leaves it
    tracking.connect()
    ended = client.get_run(run.info.run_id)
    assert (ended.info.status, ended.data.tags["ended"]) == ("KILLED", "KILLED")


def test_what_was_kept_for_another_store_waits_for_it_and_a_deleted_run_is_made_anew(
    store: Path, tmp_path: Path
) -> None:
    client, experiment = tracking.connect()
    mine, others = (
        outbox.Record("a name", {"git.commit": "abc"}, uri, "0" * 32, status="FINISHED")
        for uri in (client.tracking_uri, "http://127.0.0.1:9")
    )
    paths = outbox.keep(mine), tmp_path / ".run" / "unsent" / "others.json"
    workspace.write_json(paths[1], dataclasses.asdict(others))
    tracking.connect()
    assert [path.exists() for path in paths] == [False, True]
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status, run.data.tags["git.commit"]) == ("a name", "FINISHED", "abc")


def test_an_attempt_that_began_unheard_is_told_in_its_own_run(store: Path, tmp_path: Path) -> None:
    away = Away(store)
    with training_run.training_run("outer", tmp_path / "outer", {}):
        training_run.log_epoch(row(9), {}, None)
        away.begin()
        with training_run.training_run(
            "attempt 1", tmp_path / "inner", {"attempt": "1"}, nested=True
        ) as inner:
            assert inner is None
            training_run.log_epoch(row(1), {}, None)
            away.end()
            training_run.log_epoch(row(2), {}, None)
        training_run.log_weights("f" * 64, 2, None)
    client, experiment = tracking.connect()
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"outer", "attempt 1"}, "no run is made by itself"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    epochs = {
        name: sorted(m.step for m in client.get_metric_history(run.info.run_id, "valid/kl"))
        for name, run in runs.items()
    }
    assert epochs == {"outer": [9], "attempt 1": [1, 2]}
    assert runs["attempt 1"].data.tags["mlflow.parentRunId"] == runs["outer"].info.run_id
    assert runs["outer"].data.tags[tracking.WEIGHTS] == "f" * 64


def test_a_training_that_diverged_unheard_is_kept(store: Path, tmp_path: Path) -> None:
    away = Away(store)
    away.begin()
    with pytest.raises(KeyboardInterrupt), training_run.training_run("n", tmp_path / "id", {}):
        training_run.log_epoch({**row(1), "valid/elbo": float("nan")}, {}, None)
        raise KeyboardInterrupt
    away.end()
    client, experiment = tracking.connect()
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED" and math.isnan(run.data.metrics["valid/elbo"])


def test_a_kept_file_that_can_not_be_read_is_set_aside(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ".run" / "unsent"
    folder.mkdir(parents=True)
    for name, content in {"empty": "", "other": '{"format": 2}', "list": "[]"}.items():
        (folder / f"{name}.json").write_text(content)
    tracking.connect()
    assert capsys.readouterr().out.count("is set aside") == 3
    assert sorted(path.name for path in folder.iterdir()) == [
        "empty.unreadable",
        "list.unreadable",
        "other.unreadable",
    ]


def test_a_killed_evaluation_leaves_its_run_as_the_training_ended(store: Path, tmp_path: Path) -> None:
    with training_run.training_run("n", tmp_path / "id", {}) as run:
        pass
    assert run is not None
    client, _ = tracking.connect()
    client.update_run(run.info.run_id, status="RUNNING")  # as MLflow does where a run is opened again
    (tracking.running() / f"{run.info.run_id}.json").write_text("{}")  # and its process is killed
    tracking.connect()
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
