"""Servers and worker, as `make up` and `make down` start and stop them."""

import re
import shutil
import socket
import sqlite3
from pathlib import Path

import httpx
import psutil
import pytest
from helpers.workspaces import DEPLOYMENT, START_DEPLOYMENT, Workspace, wait_for

from flows import servers
from vae.config.errors import InputError

# The first test waits for both ways to end, which is long on a busy machine.
pytestmark = pytest.mark.timeout(600)


def test_a_deployment_takes_overrides_and_without_them_the_file_before_comes_back(served: Workspace) -> None:
    done = served.python(*DEPLOYMENT, "--param", 'overrides={"evaluate.importance_samples": 7}')
    assert done.code == 0 and "Completed" in done.output.splitlines()[-1], done.output
    states = served.task_states(done.flow_run)
    assert states.pop("evaluate") == "Completed"
    assert set(states.values()) <= {"Cached", "Restored"}
    assert "importance_samples: 7" in (served.folder / "params.yaml").read_text()

    shutil.rmtree(served.folder / "models")
    done = served.flow()
    assert done.code == 0 and "Traceback" not in done.output, done.output
    assert done.states()["train"] == done.states()["evaluate"] == "Restored"
    assert (served.folder / "models/vae/weights.safetensors").exists()
    assert "importance_samples: 5" in (served.folder / "params.yaml").read_text()


def test_a_training_outlives_prefects_server_and_the_run_ends_in_one_line(served: Workspace) -> None:
    settings = "train.epochs=30 seed=105"
    running = served.start(
        *("-m", "flows.vae_train", "--set", settings), PREFECT_CLIENT_MAX_RETRIES="0", PREFECT_API_REQUEST_TIMEOUT="5"
    )
    running.wait_to_say("epoch 3/30 ", seconds=90)
    server = psutil.Process(int((served.folder / ".run" / "prefect-server.pid").read_text()))
    for process in [*server.children(recursive=True), server]:
        process.kill()
    done = running.ended()
    assert done.code == 1
    assert "epoch 30/30" in done.output and "kept epoch" in done.output, "the training came to its end"
    assert "Traceback" not in done.output, done.output
    assert re.fullmatch(r"error: Prefect's server at \S+ is gone; .*", done.output.splitlines()[-1]), done.output

    served.up()
    assert served.flow_run(done.flow_run)["state"]["type"] == "CRASHED", "the next start has swept it"


def test_up_twice_and_down_in_mid_training_leaves_no_process(served: Workspace) -> None:
    up = served.python("-m", "flows.servers", "up")
    assert up.code == 0 and up.output.count("was up already") == 3, up.output

    started = served.python(*START_DEPLOYMENT, "--param", 'overrides={"train.epochs": 5000, "seed": 104}')
    assert started.code == 0, started.output
    wait_for(lambda: served.mlflow_statuses("params.seed = '104'"), 90, "the worker to train")
    down = served.python("-m", "flows.servers", "down")
    assert down.code == 0 and "Traceback" not in down.output, down.output
    assert down.output.count("is down") == 3, down.output
    wait_for(lambda: not served.processes(), 5, f"no process in {served.folder}")
    assert not list((served.folder / ".run").glob("*.pid"))
    assert served.mlflow_statuses("params.seed = '104'") == ["KILLED"]

    with sqlite3.connect(served.folder / ".prefect" / "prefect.db") as database:
        states = dict(database.execute("select replace(id, '-', ''), state_type from flow_run"))
    assert states[started.flow_run.replace("-", "")] in ("CANCELLED", "CRASHED")


def test_a_taken_port_is_named_and_so_is_a_log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"mlflow-server: another program answers at 127\.0\.0\.1:{port} \(process .*; stop it"
        ):
            servers.start("mlflow-server", "mlflow", url=httpx.URL(f"http://127.0.0.1:{port}/health"))
    with pytest.raises(InputError, match=r"prefect-worker ended with exit code 2; see .*prefect-worker\.log"):
        servers.start("prefect-worker", "timeit", "--no-such-option")
    assert "--no-such-option" in (tmp_path / ".run" / "prefect-worker.log").read_text()
    assert not servers.stop("prefect-worker")
