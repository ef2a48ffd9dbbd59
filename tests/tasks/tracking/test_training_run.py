"""The run of a training, also where the store is away at the start, in between, at the end or for good."""

import math
import re
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers.commands import evaluate, write_model
from helpers.workspaces import wait_for
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks import workspace
from tasks.tracking import store
from tasks.tracking import training_run as module
from tasks.tracking.training_run import TrainingRun, training_run
from vae.config.parameters import Parameters
from vae.training.history import COLUMNS

TIMING = {"seconds": 0.5}
IMAGES, EPOCHS = np.zeros((4, 8, 12, 3), np.uint8), str(Parameters().train.epochs)


class Backend:
    """A store that is away while its file is not a database."""

    def __init__(self, client: MlflowClient, folder: Path) -> None:
        self.client, self.database = client, folder / "mlflow.db"

    def leave(self) -> None:
        self.content = self.database.read_bytes()
        self.database.write_bytes(b"no database " * 1000)

    def come_back(self) -> None:
        self.database.write_bytes(self.content)

    def runs(self) -> dict[str, Run]:
        return {str(run.info.run_name): run for run in self.client.search_runs(["1"])}

    def epochs(self, run: Run) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(run.info.run_id, "valid/kl")
        return sorted((metric.step, metric.value) for metric in history)


@pytest.fixture
def backend(client: MlflowClient, empty_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    monkeypatch.setattr(module, "SILENCE", 0.0)  # each request tries again
    return Backend(client, empty_workspace)


@pytest.fixture
def remembered(tmp_path: Path) -> Path:
    """Where a training's run is remembered; its folder is created when there is something to remember."""
    return tmp_path / "checkpoints" / "mlflow_run_id"


def row(epoch: int, **values: float) -> dict[str, float]:
    return {**dict.fromkeys(COLUMNS, 1.0), "epoch": epoch, "valid/kl": float(epoch), **values}


def train(run: TrainingRun, epochs: range) -> None:
    run.log_inputs(Parameters(), IMAGES, IMAGES)
    for epoch in epochs:
        run.log_epoch(row(epoch), TIMING, None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_ends_as_its_training_ended(
    backend: Backend, remembered: Path, error: type[BaseException] | None, expected: str
) -> None:
    outcome = suppress(RuntimeError, KeyboardInterrupt, SystemExit)
    with outcome, training_run("a name", remembered, {"git.commit": "abc"}):
        if error:
            raise error
    run = backend.runs()["a name"]
    assert (run.info.status, run.data.tags["ended"]) == (expected, expected)
    assert (run.data.tags["git.commit"], run.data.tags["resumed"]) == ("abc", "false")
    assert mlflow.active_run() is None
    assert not list(store.notes().iterdir())


def test_a_resumed_training_continues_in_its_run_and_logs_parameters_once(backend: Backend, remembered: Path) -> None:
    with pytest.raises(KeyboardInterrupt), training_run("n", remembered, {}) as first:
        first.log_inputs(Parameters(), IMAGES, IMAGES)
        first.log_epoch(row(1), TIMING, np.zeros((4, 4, 3), np.uint8))
        raise KeyboardInterrupt
    assert remembered.read_text() == first.run_id
    with training_run("another name", remembered, {}) as second:
        second.log_inputs(Parameters(), IMAGES, IMAGES)
        second.log_history([row(1), row(2)])  # the second epoch is in the checkpoint and was not logged
        second.log_epoch(row(3), TIMING, None)
    (run,) = backend.runs().values()
    assert second.run_id == run.info.run_id == first.run_id
    assert (run.info.status, run.info.run_name, run.data.tags["ended"]) == ("FINISHED", "n", "FINISHED")
    assert run.data.tags["resumed"] == "true"
    assert (run.data.params["train.epochs"], run.data.params["train.ema"]) == (EPOCHS, "None")
    assert backend.epochs(run) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert len(backend.client.get_metric_history(run.info.run_id, "seconds")) == 2
    assert "epoch" not in run.data.metrics
    assert backend.client.list_artifacts(run.info.run_id, "images")


def test_a_run_that_is_gone_is_not_resumed(backend: Backend, remembered: Path) -> None:
    with training_run("n", remembered, {}) as deleted:
        pass
    backend.client.delete_run(str(deleted.run_id))
    for gone in (str(deleted.run_id), "0" * 32):
        remembered.write_text(gone)
        with training_run("n", remembered, {}) as run:
            pass
        assert run.run_id not in (gone, deleted.run_id) and remembered.read_text() == run.run_id
        assert backend.client.get_run(str(run.run_id)).data.tags["resumed"] == "false"


def test_a_run_records_its_data_and_its_name_says_what_is_trained(backend: Backend, remembered: Path) -> None:
    with training_run(None, remembered, {}) as run:
        run.log_inputs(Parameters(), np.load(workspace.images("train")), IMAGES)
    (found,) = backend.runs().values()
    assert re.fullmatch(r"digits-conv-16-\d{8}-\d{6}", str(found.info.run_name))
    assert (found.data.tags["data.source"], found.data.tags["architecture"]) == ("digits", "conv")
    inputs = {entry.dataset.name: entry.dataset for entry in found.inputs.dataset_inputs}
    assert inputs["digits-train"].digest == workspace.sha256(workspace.images("train"))[:36]
    assert "[40, 8, 12, 3]" in inputs["digits-train"].profile


def test_attempts_have_no_system_metrics(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    metric = "system/cpu_utilization_percentage"
    with (
        training_run("n", tmp_path / "id", {}) as outer,
        training_run("attempt", tmp_path / "0" / "id", {}, parent=outer),
    ):
        wait_for(lambda: metric in backend.runs()["n"].data.metrics, 20, "a system metric")
    assert not [name for name in backend.runs()["attempt"].data.metrics if name.startswith("system/")]


@pytest.mark.parametrize(("leaves", "returns"), [(0, 2), (0, 9), (2, 4), (3, 9)])
def test_nothing_is_missing_in_the_end(
    backend: Backend, remembered: Path, leaves: int, returns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is away from before one epoch of four until before another, or until the training has ended."""
    model = write_model()
    if leaves == 0:
        backend.leave()
    with training_run("a name", remembered, {"git.commit": "abc"}) as run:
        run.log_inputs(Parameters(), IMAGES, IMAGES)
        for epoch in range(1, 5):
            if epoch == leaves:
                backend.leave()
            if epoch == returns:
                backend.come_back()
            run.log_epoch(row(epoch), TIMING, None)
        run.tag({store.WEIGHTS: model.sha256})
    if returns > 4:
        backend.come_back()
        assert len(list(store.notes().glob("*.json"))) == 1
    assert "MLflow at " in caplog.text and "the training continues" in caplog.text
    workspace.REPORTS.mkdir(exist_ok=True)
    pd.DataFrame([row(epoch) for epoch in range(1, 5)]).to_csv(workspace.HISTORY, index=False)
    evaluate(model, {"elbo": 5.0}, np.zeros(40))
    (found,) = backend.runs().values()
    assert (found.info.status, found.info.run_name) == ("FINISHED", "a name-healthy")
    tags = found.data.tags
    assert (tags["git.commit"], tags["ended"], tags[store.WEIGHTS]) == ("abc", "FINISHED", model.sha256)
    assert tags["machine.cpu"] and found.data.params["train.epochs"] == EPOCHS
    assert backend.epochs(found) == [(epoch, float(epoch)) for epoch in range(1, 5)]
    assert "params.yaml" in {item.path for item in backend.client.list_artifacts(found.info.run_id)}
    assert bool(found.inputs.dataset_inputs) == (returns < 9 or leaves > 0)
    assert not list(store.notes().glob("*.json")), "what was noted is applied once"


def test_a_silent_store_is_not_asked_again_for_a_while(
    backend: Backend, remembered: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SILENCE", 60.0)
    backend.leave()
    with training_run("n", remembered, {}) as run:
        train(run, range(1, 5))
    assert caplog.text.count("MLflow at ") == 1


def test_an_attempt_that_began_during_an_outage_belongs_to_its_training(backend: Backend, tmp_path: Path) -> None:
    backend.leave()
    with training_run("outer", tmp_path / "outer", {}) as outer:
        with training_run("attempt 1", tmp_path / "inner", {"attempt": "1"}, parent=outer) as inner:
            inner.log_epoch(row(1), {}, None)
            backend.come_back()
            inner.log_epoch(row(2), {}, None)
        outer.tag({store.WEIGHTS: "f" * 64})
    runs = backend.runs()
    assert {name: run.info.status for name, run in runs.items()} == {"outer": "FINISHED", "attempt 1": "FINISHED"}
    assert backend.epochs(runs["attempt 1"]) == [(1, 1.0), (2, 2.0)]
    assert runs["attempt 1"].data.tags["mlflow.parentRunId"] == runs["outer"].info.run_id
    assert runs["outer"].data.tags[store.WEIGHTS] == "f" * 64


def test_a_training_that_was_killed_during_an_outage_is_killed_in_the_store(backend: Backend, remembered: Path) -> None:
    with pytest.raises(KeyboardInterrupt), training_run("n", remembered, {}) as run:
        run.log_epoch(row(1, **{"valid/elbo": math.nan}), {}, None)
        backend.leave()
        run.tag({"verdict": "diverged"})
        raise KeyboardInterrupt
    backend.come_back()
    store.connect()
    found = backend.runs()["n"]
    assert (found.info.status, found.data.tags["verdict"]) == ("KILLED", "diverged")
    assert math.isnan(found.data.metrics["valid/elbo"])


def test_an_interrupted_training_unknown_to_the_store_leaves_no_run(backend: Backend, remembered: Path) -> None:
    backend.leave()
    with pytest.raises(KeyboardInterrupt), training_run("n", remembered, {}):
        raise KeyboardInterrupt
    backend.come_back()
    store.connect()
    assert backend.runs() == {} and not remembered.exists()
