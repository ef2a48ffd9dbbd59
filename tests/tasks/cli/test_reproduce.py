"""A run made again in a worktree of its own, and runs that cannot be."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.commands import vae
from helpers.workspaces import ByDVC, Workspace, stand_in
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.cli import reproduce
from tasks.cli.reproduce import IDENTICAL
from tasks.tracking import store as tracking
from vae.config.errors import InputError

pytestmark = pytest.mark.timeout(600)  # the first test waits for both workspaces

OF_THE_USER = (
    "params.yaml", "dvc.lock", "mlflow.db", "mlruns", "models", "reports", "data", ".dvc/cache", ".checkpoints",
)  # fmt: skip


@pytest.fixture
def place(by_dvc: ByDVC, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Where `dvc repro` ran with 3 epochs, then with 2 that nobody committed; params.yaml is invalid since."""
    stand_in(by_dvc.place.folder, monkeypatch)
    return by_dvc.place


@pytest.fixture
def store(place: Workspace) -> MlflowClient:
    return MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")


def run_of(store: MlflowClient, epochs: int) -> Run:
    experiment = store.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    condition = f"params.`train.epochs` = '{epochs}' and tags.ended = 'FINISHED'"
    (found,) = store.search_runs([experiment.experiment_id], condition)
    return found


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that is the user's."""
    files = [path for name in OF_THE_USER for path in [folder / name, *(folder / name).rglob("*")]]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()}


def nothing_left(folder: Path) -> bool:
    return not list((folder / ".run").glob("reproduce-*")) and not list((folder / ".git/worktrees").glob("*"))


def test_a_run_is_identical_again_and_the_workspace_untouched(place: Workspace, store: MlflowClient) -> None:
    run = run_of(store, epochs=2)
    tags = run.data.tags
    assert (tags["git.dirty"], tags["git.changed"]) == ("true", "params.yaml")
    assert tags["machine.cpu"] and tags["version.numpy"], "what decides the bits is recorded"
    before = snapshot(place.folder)
    # The store that a person has set must not be reached. The old name of the command is still accepted.
    uri = f"sqlite:///{place.folder / 'mlflow.db'}"
    done = place.start("-m", "tasks.reproduce", run.info.run_id, MLFLOW_TRACKING_URI=uri).ended()
    assert done.code == IDENTICAL, done.output
    assert "warning: `python -m tasks.reproduce` is deprecated; use `vae reproduce`" in done.output
    assert "uncommitted changes that the run stored or did not read: params.yaml" in done.output
    assert "from DVC's cache" in done.output
    assert done.ran() == ["validate", "preflight", "train", "monitor", "evaluate"]
    assert done.output.splitlines()[-1] == (
        "identical  bit for bit: data/images, models/vae/weights.safetensors, reports/history.csv, reports/metrics.json"
    )
    assert snapshot(place.folder) == before
    assert nothing_left(place.folder)


def test_an_interrupted_reproduction_leaves_nothing_behind(place: Workspace, store: MlflowClient) -> None:
    running = place.start("-m", "tasks.cli.app", "reproduce", run_of(store, epochs=3).info.run_id)
    running.wait_to_say("Running stage 'train'")
    os.killpg(running.process.pid, signal.SIGINT)
    done = running.ended(seconds=30)
    assert done.code == 130 and "Traceback" not in done.output, done.output
    assert nothing_left(place.folder)
    assert [p for p in place.processes() if p.pid != os.getpid()] == []


def refusal(run_id: str) -> str:
    with pytest.raises(InputError) as told:
        reproduce.reproduce(run_id)
    return str(told.value)


def made(store: MlflowClient, run: Run, **tags: str | None) -> str:
    """A run like another, but for some tags; None leaves one out. Tags have dots, which are `__` here."""
    changed: Mapping[str, str | None] = {name.replace("__", "."): value for name, value in tags.items()}
    kept = {**run.data.tags, **changed}
    new = store.create_run(
        run.info.experiment_id, tags={name: value for name, value in kept.items() if value is not None}
    )
    for name in ("params.yaml", "dvc.lock"):
        store.log_artifact(new.info.run_id, store.download_artifacts(run.info.run_id, name))
    store.set_terminated(new.info.run_id)
    return new.info.run_id


def test_what_cannot_be_made_again_is_refused_with_the_reason(place: Workspace, store: MlflowClient) -> None:
    run = run_of(store, epochs=2)
    before = snapshot(place.folder).keys()
    (place.folder / ".run" / "reproduce-killed" / "data").mkdir(parents=True)  # swept by the next one
    runs = []
    for tags, reason in (
        ({"weights__sha256": None}, "left no weights"),
        ({"git__commit": None}, "names no commit"),
        ({"git__commit": "0" * 40}, "is not in the Git repository"),
        ({"git__changed": None}, "does not say which"),
        (
            {"git__changed": "params.yaml\nvae/models/vae.py"},
            "uncommitted changes in vae/models/vae.py, which",
        ),
        ({"git__changed": "dvc.yaml"}, "uncommitted changes in dvc.yaml"),
        ({"mlflow__parentRunId": "abc"}, "reproduce the whole training: abc"),
    ):
        runs.append(made(store, run, **tags))
        assert reason in refusal(runs[-1])
    for run_id in runs:
        store.delete_run(run_id)
    assert "not found" in refusal("0" * 32)
    assert nothing_left(place.folder)
    assert {name for name in before if "mlruns" not in name} <= snapshot(place.folder).keys()


def test_bad_usage_ends_in_2() -> None:
    assert vae("reproduce").exit_code == 2
