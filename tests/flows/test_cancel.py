"""Whatever ends the flow ends its trainer, and the next run goes on from the last checkpoint."""

import os
import signal
from typing import Any

import psutil
import pytest
from helpers.workspaces import Done, Running, Workspace, wait_for
from mlflow import MlflowClient

pytestmark = pytest.mark.timeout(
    600
)  # the first test waits for both ways to end; on a busy machine that is long

LONG, SHORT = 2000, 30  # epochs: never finished; stopped in the middle and then finished


def workers(place: Workspace) -> list[psutil.Process]:
    """What works for a run: flow, supervisor, DVC, stage. The servers are none of them."""
    marks = ("flows.vae_train", "tasks.processes.supervisor", "dvc", "tasks.")
    found = []
    for process in place.processes():
        try:
            modules = [word for word in process.cmdline()[1:] if word.startswith(marks)]
        except psutil.NoSuchProcess:
            continue
        if modules:
            found.append(process)
    return found


def trainer(place: Workspace) -> psutil.Process:
    return next(p for p in workers(place) if "tasks.train" in p.cmdline())


def statuses(place: Workspace, seed: int) -> list[str]:
    """The status of every MLflow run of this seed."""
    store = MlflowClient(tracking_uri=f"sqlite:///{place.folder / 'mlflow.db'}")
    experiment: Any = store.get_experiment_by_name("vae-train")
    return [r.info.status for r in store.search_runs([experiment.experiment_id], f"params.seed = '{seed}'")]


@pytest.fixture
def training(served: Workspace, request: pytest.FixtureRequest) -> Running:
    """A flow run in the middle of its training; its parameter is the seed and the number of epochs."""
    seed, epochs = request.param
    running = served.start_flow(f"seed={seed} train.epochs={epochs}")
    running.wait_to_say(rf"epoch 3/{epochs} ", seconds=90)
    return running


@pytest.mark.parametrize("training", [(101, LONG)], indirect=True)
def test_a_second_run_is_refused_a_killed_trainer_is_tried_again_and_ctrl_c_ends_everything(
    served: Workspace, training: Running
) -> None:
    refused = served.flow("train.epochs=1")
    assert refused.code == 1
    name = served.flow_run(Done(0, training.output).flow_run)["name"]
    said = f"in use by flow run {name} (process {training.process.pid})"
    assert said in refused.output.splitlines()[-1], refused.output
    assert "seed: 101" in (served.folder / "params.yaml").read_text(), "nothing was written"

    trainer(served).kill()
    training.wait_to_say(rf"(?s)resumed after epoch \d+.*epoch \d+/{LONG} ", seconds=60)

    os.killpg(training.process.pid, signal.SIGINT)  # as a terminal does
    done = training.ended(seconds=30)
    assert done.code == 130, done.output
    assert "Traceback" not in done.output, done.output
    assert done.output.splitlines()[-1].startswith("interrupted; ")
    assert workers(served) == []
    assert statuses(served, 101) == ["KILLED"], "one run for one training, however often it was tried"
    assert served.flow_run(done.flow_run)["state"]["type"] in ("CRASHED", "CANCELLED")


@pytest.mark.parametrize("training", [(102, SHORT)], indirect=True)
def test_a_killed_flow_takes_its_trainer_along_and_the_next_run_resumes(
    served: Workspace, training: Running
) -> None:
    training.process.kill()
    wait_for(lambda: not workers(served), 10, "the trainer to end")
    killed = training.ended().flow_run
    assert statuses(served, 102) == ["KILLED"]
    assert served.flow_run(killed)["state"]["type"] == "RUNNING", "nobody could tell Prefect"

    resumed = served.start_flow(f"seed=102 train.epochs={SHORT}")
    resumed.wait_to_say(r"resumed after epoch \d+", seconds=60)
    assert served.flow_run(killed)["state"]["type"] == "CRASHED", "the next start has swept it"
    resumed.wait_to_say(r"Task run 'train' - Finished in state Completed", seconds=60)
    assert f"epoch {SHORT}/{SHORT}" in resumed.output and "epoch 1/" not in resumed.output
    assert statuses(served, 102) == ["FINISHED"], "one run for one training"
    os.killpg(resumed.process.pid, signal.SIGINT)  # monitor and evaluate are not the point here
    assert resumed.ended(seconds=30).code == 130
    assert workers(served) == []
