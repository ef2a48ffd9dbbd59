"""The store itself: created once, tidied after dead processes, and asked for the run of a model."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.commands import write_model
from helpers.project import PROJECT
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks import workspace
from tasks.processes import run_notes
from tasks.tracking import store
from vae.config.parameters import Parameters
from vae.training.history import COLUMNS


def test_two_processes_at_once_create_one_store(tmp_path: Path) -> None:
    """As a trainer and a server may."""
    folder = tmp_path / "störe"
    folder.mkdir()
    environment = {**os.environ, "DVC_ROOT": str(folder), "PYTHONPATH": str(PROJECT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    code = "from tasks.tracking import store; print(store.connect()[1])"
    place: dict[str, Any] = {"env": environment, "cwd": folder, "text": True}
    starters = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **place) for _ in range(2)]
    assert [starter.communicate(timeout=200)[0].split() for starter in starters] == [["1"]] * 2


@pytest.mark.parametrize(
    ("note", "status"), [("{}", "KILLED"), ('{"tags": {"ended": "FAILED"}}', "FAILED"), ("", "KILLED")]
)
def test_the_run_of_a_dead_process_is_ended_by_the_next_process(client: MlflowClient, note: str, status: str) -> None:
    run_id = client.create_run("1").info.run_id
    with run_notes.noted(store.notes(), run_id, {}):
        store.connect()
        assert client.get_run(run_id).info.status == "RUNNING", "its process is alive"
    (store.notes() / f"{run_id}.json").write_text(note)  # as a killed process leaves it
    store.connect()
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["ended"]) == (status, status)
    assert not list(store.notes().glob("*.json"))


def test_a_note_for_another_store_waits_for_it(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    (tmp_path / "other.db").write_bytes((tmp_path / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    store.leave_note("unknown", {"ended": "FINISHED", "git.commit": "abc"})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store.connect()
    assert not client.search_runs(["1"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    client, experiment = store.connect()
    (run,) = client.search_runs([experiment])
    assert (run.info.status, run.data.tags["git.commit"]) == ("FINISHED", "abc")


def test_a_wrong_request_is_an_error_and_not_an_outage(client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MlflowException), store.away("the work continues"):
        client.get_run("no such run")
    with store.away("the work continues"):
        raise ConnectionRefusedError("nobody is there")
    assert "nobody is there; the work continues" in caplog.text
    assert not store.is_away(ValueError("a bug"))


def test_a_run_is_found_by_its_weights_or_created(client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    workspace.REPORTS.mkdir(exist_ok=True)
    history = pd.DataFrame([{**dict.fromkeys(COLUMNS, 0.5), "epoch": epoch} for epoch in range(1, 4)])
    history.to_csv(workspace.HISTORY, index=False)
    unknown = write_model(seed=3)
    with caplog.at_level(logging.INFO, "tasks"):
        run = store.run_here()
    assert "created run" in caplog.text
    tags = run.data.tags
    assert (run.info.status, tags["ended"], tags["made_from_files"]) == ("FINISHED", "FINISHED", "true")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "valid/elbo")] == [1, 2, 3]
    assert run.data.params["train.epochs"] == str(Parameters().train.epochs)
    assert store.run_of(unknown.sha256).info.run_id == run.info.run_id
    assert store.run_of(write_model(seed=4).sha256).info.run_id != run.info.run_id
