"""Whatever ends the flow ends its trainer, and the next run resumes from the last checkpoint."""

import os
import signal

import pytest
from helpers.workspaces import START_DEPLOYMENT, Done, Running, Workspace, wait_for

# The first test waits for both ways to end, which is long on a busy machine.
pytestmark = pytest.mark.timeout(600)

LONG, SHORT = 2000, 30  # epochs: never finished; stopped in the middle and then finished
PROMISED_SECONDS = 10  # until no process of a run is left


@pytest.fixture
def training(served: Workspace, request: pytest.FixtureRequest) -> Running:
    """A flow run in the middle of its training; its parameter is the seed and the number of epochs."""
    seed, epochs = request.param
    running = served.start_flow(f"seed={seed} train.epochs={epochs}")
    running.wait_to_say(rf"epoch 3/{epochs} ", seconds=90)
    return running


@pytest.mark.parametrize("training", [(101, LONG)], indirect=True)
def test_a_second_run_is_refused_a_killed_trainer_or_dvc_is_tried_again_and_ctrl_c_ends_everything(
    served: Workspace, training: Running
) -> None:
    refused = served.flow("train.epochs=1")
    assert refused.code == 1
    name = served.flow_run(Done(0, training.output).flow_run)["name"]
    line = f"in use by flow run {name} (process {training.process.pid})"
    assert line in refused.output.splitlines()[-1], refused.output
    assert "seed: 101" in (served.folder / "params.yaml").read_text(), "nothing was written"

    for number, victim in enumerate(("stage", "dvc"), start=1):
        for process in served.workers()[victim]:
            process.kill()
        resumed = rf"(?s)(resumed after epoch \d+.*epoch \d+/{LONG} .*){{{number}}}"
        training.wait_to_say(resumed, seconds=90)

    os.killpg(training.process.pid, signal.SIGINT)  # as a terminal does
    done = training.ended(seconds=30)
    assert done.code == 130, done.output
    assert "Traceback" not in done.output, done.output
    assert done.output.splitlines()[-1].startswith("interrupted; ")
    assert served.workers() == {}
    assert served.mlflow_statuses("params.seed = '101'") == ["KILLED"], "one run for all tries of a training"
    assert served.flow_run(done.flow_run)["state"]["type"] in ("CRASHED", "CANCELLED")


@pytest.mark.parametrize("training", [(102, SHORT)], indirect=True)
def test_a_killed_flow_takes_its_trainer_along_and_the_next_run_resumes(served: Workspace, training: Running) -> None:
    training.process.kill()
    wait_for(lambda: not served.workers(), PROMISED_SECONDS, "the trainer and DVC to end")
    killed = training.ended().flow_run
    assert served.mlflow_statuses("params.seed = '102'") == ["KILLED"]
    assert served.flow_run(killed)["state"]["type"] == "RUNNING", "nobody was left to set it"

    resumed = served.start_flow(f"seed=102 train.epochs={SHORT}")
    resumed.wait_to_say(r"resumed after epoch \d+", seconds=60)
    assert served.flow_run(killed)["state"]["type"] == "CRASHED", "the next start has swept it"
    resumed.wait_to_say(r"Task run 'train' - Finished in state Completed", seconds=60)
    assert f"epoch {SHORT}/{SHORT}" in resumed.output and "epoch 1/" not in resumed.output
    assert served.mlflow_statuses("params.seed = '102'") == ["FINISHED"], "one run for one training"
    resumed.process.terminate()  # as `docker stop` does; monitor and evaluate are not the point here
    assert resumed.ended(seconds=30).code != 0
    assert served.workers() == {}


def test_a_run_that_is_cancelled_in_prefect_ends_its_trainer(served: Workspace) -> None:
    started = served.python(*START_DEPLOYMENT, "--param", f'overrides={{"train.epochs": {LONG}, "seed": 103}}')
    assert started.code == 0, started.output
    wait_for(lambda: served.mlflow_statuses("params.seed = '103'"), 90, "the worker to train")
    cancel = served.python("-m", "prefect", "flow-run", "cancel", started.flow_run)
    assert cancel.code == 0, cancel.output
    wait_for(lambda: not served.workers(), PROMISED_SECONDS, "the trainer and DVC to end")
    assert served.mlflow_statuses("params.seed = '103'") == ["KILLED"]
    wait_for(lambda: served.flow_run(started.flow_run)["state"]["type"] == "CANCELLED", 30, "Cancelled")
