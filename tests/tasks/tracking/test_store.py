"""Tracking against a real MLflow store."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers.project import PROJECT
from helpers.registered import model
from helpers.workspaces import wait_for
from mlflow import MlflowClient

from tasks import workspace
from tasks.tracking import lineage, registry, training_run
from tasks.tracking import store as tracking
from vae.config import parameters
from vae.config.constants import SPLITS
from vae.models import mixture_prior
from vae.models.saved import Saved
from vae.report.facts import Origin

STARTERS = 2


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """A workspace whose store two processes made at once, as trainer and server may."""
    folder = tmp_path_factory.mktemp("störe")
    environment = {**os.environ, "DVC_ROOT": str(folder), "PYTHONPATH": str(PROJECT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", "from tasks.tracking import store; print(store.connect()[1])"],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(STARTERS)
    ]
    said = [starter.communicate(timeout=200)[0].split() for starter in starters]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name in (lineage.FLOW_RUN_ID, lineage.FLOW_RUN_NAME, lineage.FLOW_RUN_URL):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        client, experiment_id = tracking.connect()
        assert said == [[experiment_id]] * STARTERS
        for split in SPLITS:
            workspace.IMAGES.mkdir(parents=True, exist_ok=True)
            np.save(workspace.images(split), np.zeros((4, 8, 8, 1), np.uint8))
        yield client


@pytest.fixture
def remembered(tmp_path: Path) -> Path:
    """Where a training's run is remembered; its folder is made when there is something to remember."""
    return tmp_path / "checkpoints" / "mlflow_run_id"


def status(client: MlflowClient, run_id: str) -> tuple[str, str]:
    run = client.get_run(run_id)
    return run.info.status, run.data.tags["ended"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_ends_as_its_training_ended(
    store: MlflowClient, remembered: Path, error: type[BaseException] | None, expected: str
) -> None:
    run_id = ""
    try:
        with training_run.training_run("a name", remembered, {"git.commit": "abc"}) as run:
            run_id = run.info.run_id
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt, SystemExit):
        pass
    assert status(store, run_id) == (expected, expected)
    assert mlflow.active_run() is None
    tags = store.get_run(run_id).data.tags
    assert (tags["git.commit"], tags["resumed"], tags["mlflow.runName"]) == ("abc", "false", "a name")


def test_a_resumed_training_goes_on_in_its_run_and_logs_parameters_once(
    store: MlflowClient, remembered: Path
) -> None:
    p = parameters.load(PROJECT / "experiments" / "default.yaml")
    images = np.zeros((4, 8, 8, 1), np.uint8)
    row = dict.fromkeys(COLUMNS, 1.0)
    with pytest.raises(KeyboardInterrupt), training_run.training_run("n", remembered, {}) as first:
        training_run.log_inputs(p, images, images)
        training_run.log_epoch({**row, "epoch": 1}, {"seconds": 0.5}, np.zeros((4, 4, 3), np.uint8))
        raise KeyboardInterrupt
    run_id = first.info.run_id
    assert remembered.read_text() == run_id
    with training_run.training_run("another name", remembered, {}) as second:
        training_run.log_inputs(p, images, images)
        training_run.log_epoch({**row, "epoch": 2, "valid/kl": 2.0}, {"seconds": 0.5}, None)
    assert second.info.run_id == run_id
    assert status(store, run_id) == ("FINISHED", "FINISHED")
    run = store.get_run(run_id)
    assert (run.data.tags["resumed"], run.data.tags["mlflow.runName"]) == ("true", "n")
    assert (run.data.params["train.epochs"], run.data.params["train.ema"]) == ("60", "None")
    assert [(m.step, m.value) for m in store.get_metric_history(run_id, "valid/kl")] == [(1, 1.0), (2, 2.0)]
    assert len(store.get_metric_history(run_id, "seconds")) == 2
    assert "epoch" not in run.data.metrics
    assert len(store.list_artifacts(run_id, "images")) >= 1


def test_attempts_are_runs_within_the_run_and_end_before_it(store: MlflowClient, tmp_path: Path) -> None:
    with training_run.training_run("n", tmp_path / "id", {}) as outer:
        for number in range(2):
            with training_run.training_run(
                f"attempt {number}", tmp_path / f"{number}" / "id", {"reason": f"why {number}"}, nested=True
            ) as inner:
                training_run.log_epoch({**dict.fromkeys(COLUMNS, 1.0), "epoch": 1}, {}, None)
            assert store.get_run(inner.info.run_id).info.status == "FINISHED"
            assert store.get_run(outer.info.run_id).info.status == "RUNNING"
    found = store.search_runs(
        [outer.info.experiment_id], f"tags.`mlflow.parentRunId` = '{outer.info.run_id}'"
    )
    assert {(run.info.run_name, run.data.tags["reason"]) for run in found} == {
        ("attempt 0", "why 0"), ("attempt 1", "why 1"),
    }  # fmt: skip
    assert store.get_metric_history(outer.info.run_id, "valid/kl") == [], "each curve is in its own run"


def test_a_run_that_is_gone_is_not_resumed(store: MlflowClient, remembered: Path) -> None:
    with training_run.training_run("n", remembered, {}) as deleted:
        pass
    store.delete_run(deleted.info.run_id)
    for gone in (deleted.info.run_id, "0" * 32):
        remembered.write_text(gone)
        with training_run.training_run("n", remembered, {}) as run:
            pass
        assert run.info.run_id not in (gone, deleted.info.run_id)
        assert remembered.read_text() == run.info.run_id
        assert store.get_run(run.info.run_id).data.tags["resumed"] == "false"


def test_the_run_of_a_model_is_found_by_its_weights(store: MlflowClient, remembered: Path) -> None:
    wanted = model(1)
    with training_run.training_run("n", remembered, {}) as run:
        training_run.log_weights(wanted.sha256, 1, None)
    assert tracking.run_of(wanted.sha256).info.run_id == run.info.run_id
    assert tracking.run_of(model(2).sha256).info.run_id != run.info.run_id


def test_where_the_store_has_none_a_run_is_made_from_the_files_and_says_so(
    store: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.REPORTS.mkdir(exist_ok=True)
    history = pd.DataFrame([{**dict.fromkeys(COLUMNS, 0.5), "epoch": epoch} for epoch in range(1, 4)])
    history.to_csv(workspace.HISTORY, index=False)
    unknown = model(3)
    run = tracking.run_of(unknown.sha256)
    assert "made run" in capsys.readouterr().out
    assert (run.info.status, run.data.tags["made_from_files"]) == ("FINISHED", "true")
    assert [m.step for m in store.get_metric_history(run.info.run_id, "valid/elbo")] == [1, 2, 3]
    assert tracking.run_of(unknown.sha256).info.run_id == run.info.run_id


def evaluate(
    wanted: Saved, verdict: str = "healthy", elbo: float | None = 5.0, told: list[Origin] | None = None
) -> str:
    """Logs an evaluation; what the report would be told of the run is added to `told`."""
    plots = Path("reports/plots")
    plots.mkdir(parents=True, exist_ok=True)
    (plots / "kl.png").write_bytes(b"png")
    metrics = {"valid": {"elbo": 4.0, "nll": None}, "test": {"elbo": elbo, "kl": 2.0}}
    p = parameters.load(PROJECT / "experiments" / "default.yaml")

    def report(origin: Origin) -> str:
        if told is not None:
            told.append(origin)
        return f"<html>{origin}</html>"

    elbos = np.random.default_rng(0).normal(elbo or 0.0, 0.1, 40)
    return tracking.log_evaluation(wanted, metrics, {"verdict": verdict}, plots, report, p, elbos)


def test_the_same_weights_are_registered_once_and_the_candidate_moves(store: MlflowClient) -> None:
    first, second = evaluate(model(4)), evaluate(model(5))
    assert first != second
    assert evaluate(model(4), "overfitted") == first, "restored weights are no new version"
    candidate = store.get_model_version_by_alias("vae", tracking.CANDIDATE)
    assert first == f"models:/vae/{candidate.version}"
    assert candidate.tags[tracking.VERDICT] == "overfitted"
    assert len(store.search_model_versions("name = 'vae'")) == 2


def test_a_fitted_prior_makes_another_version_of_the_same_weights(store: MlflowClient) -> None:
    prior = mixture_prior.fit(np.random.default_rng(0).normal(size=(50, 2)), np.zeros((50, 2)), seed=0)
    plain, fitted = evaluate(model(7)), evaluate(model(7, prior))
    assert fitted != plain
    assert evaluate(model(7, prior)) == fitted and evaluate(model(7)) == plain


def test_an_evaluation_goes_into_the_run_of_the_weights_and_leaves_its_status(
    store: MlflowClient, remembered: Path
) -> None:
    wanted = model(6)
    with pytest.raises(KeyboardInterrupt), training_run.training_run("n", remembered, {}) as run:
        training_run.log_weights(wanted.sha256, 1, None)
        raise KeyboardInterrupt
    evaluate(wanted)
    found = store.get_run(run.info.run_id)
    assert found.info.status == "KILLED"
    assert (found.data.metrics["test/elbo"], found.data.metrics["final_valid/elbo"]) == (5.0, 4.0)
    assert "final_valid/nll" not in found.data.metrics, "what is null is left out"
    names = {item.path for item in store.list_artifacts(run.info.run_id)}
    assert {"plots", "report.html"} <= names
    report = Path(store.download_artifacts(run.info.run_id, "report.html")).read_text()
    assert run.info.run_id in report


def test_the_report_is_told_of_commit_and_run_and_of_the_champion_it_stands_against(
    store: MlflowClient,
) -> None:
    workspace.REPORTS.mkdir(exist_ok=True)
    told: list[Origin] = []
    champion = evaluate(model(8), elbo=3.0).rsplit("/", 1)[1]
    store.set_registered_model_alias("vae", registry.CHAMPION, champion)
    try:
        evaluate(model(9), elbo=5.0, told=told)
        evaluate(model(8), elbo=3.0, told=told)
    finally:
        store.delete_registered_model_alias("vae", registry.CHAMPION)
    evaluate(model(9), elbo=5.0, told=told)
    challenger, itself, alone = told
    run = tracking.run_of(model(9).sha256)
    assert challenger.links[0] == ("MLflow run", run.info.run_name, tracking.run_url(run))
    assert challenger.champion == (f"the champion, version {champion}", {"elbo": 3.0, "kl": 2.0})
    assert challenger.promotion and "of champion version" in challenger.promotion
    assert itself.champion is None
    assert ("Champion", f"this model, version {champion}", None) in itself.links
    assert alone.champion is None and alone.promotion and "no champion yet" in alone.promotion


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("https://user:secret@example.org/a/b.git", "https://example.org/a/b/commit/abc"),
        ("git@example.org:a/b.git", "https://example.org/a/b/commit/abc"),
        ("ssh://git@example.org:22/a/b", "https://example.org/a/b/commit/abc"),
        ("/srv/git/b.git", None),
        ("file:///srv/git/b.git", None),
    ],
)
def test_a_commit_is_linked_where_its_remote_is_on_the_web_and_no_secret_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str, url: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lineage.commit_url("abc") is None
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "remote", "add", "origin", remote], check=True)
    assert lineage.commit_url("abc") == url


def test_a_run_says_what_it_trains_and_its_name_ends_with_its_latest_verdict(
    store: MlflowClient, remembered: Path
) -> None:
    p = parameters.load(PROJECT / "experiments" / "default.yaml")
    images = np.load(workspace.images("train"))
    wanted = model(10)
    with training_run.training_run(None, remembered, {}) as run:
        training_run.log_inputs(p, images, images)
        training_run.log_weights(wanted.sha256, 1, None)
    run_id = run.info.run_id
    name = str(store.get_run(run_id).info.run_name)
    assert re.fullmatch(r"digits-conv-16-\d{8}-\d{6}", name)
    evaluate(wanted, "overfitted")
    assert store.get_run(run_id).info.run_name == f"{name}-overfitted"
    uri = evaluate(wanted, "healthy")
    found = store.get_run(run_id)
    assert found.info.run_name == f"{name}-healthy"
    tags = found.data.tags
    assert (tags["data.source"], tags["architecture"], tags["verdict"]) == ("digits", "conv", "healthy")
    assert tags[tracking.NOTE].startswith("**healthy**") and uri in tags[tracking.NOTE]
    version = store.get_model_version("vae", uri.rsplit("/", 1)[1])
    assert (
        str(version.description).startswith("**healthy**")
        and f"models:/vae/{version.version}" in version.description
    )
    inputs = {entry.dataset.name: entry.dataset for entry in found.inputs.dataset_inputs}
    assert inputs["digits-train"].digest == workspace.sha256(workspace.images("train"))[:36]
    assert "[4, 8, 8, 1]" in inputs["digits-train"].profile


def test_a_training_is_watched_by_the_system_metrics_and_its_attempts_are_not(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with (
        training_run.training_run("n", tmp_path / "id", {}) as outer,
        training_run.training_run("attempt 0", tmp_path / "0" / "id", {}, nested=True) as inner,
    ):
        wait_for(
            lambda: "system/cpu_utilization_percentage" in store.get_run(outer.info.run_id).data.metrics,
            20,
            "a system metric",
        )
    assert not [name for name in store.get_run(inner.info.run_id).data.metrics if name.startswith("system/")]
