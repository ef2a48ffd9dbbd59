"""Whole workspaces for the tests: copies of the project with ports, stores and a DVC cache of their own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

PROJECT = Path(__file__).parent.parent

# A whole run within seconds. So short a training proves nothing of the model, so no verdict fails a run.
SMALL = {
    "epochs: 60": "epochs: 3",
    "annealing_epochs: 5 ": "annealing_epochs: 1 ",
    "importance_samples: 100": "importance_samples: 5",
    "on_unhealthy: fail": "on_unhealthy: warn",
}

# Nothing that the person who runs the tests has set may reach the copies, and the other way round.
_OF_THE_TOOLS = ("PREFECT_", "MLFLOW_", "DVC_", "VAE_TRAIN_", "GIT_", "OMP_", "MKL_", "MAKE")


@dataclass(frozen=True)
class Workspace:
    """A copy of the project in a Git repository of its own; programs run in it with this interpreter."""

    folder: Path
    prefect_port: int
    mlflow_port: int

    @property
    def environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(_OF_THE_TOOLS)}
        return {
            **mine,
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "VAE_TRAIN_MLFLOW_PORT": str(self.mlflow_port),
            "OMP_NUM_THREADS": "1",  # a tiny network is faster so, and threads are part of what is reproduced
            "MPLCONFIGDIR": str(self.folder / ".run" / "matplotlib"),
            "NO_COLOR": "1",
        }

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """`python ARGUMENTS…` in a session of its own; its output goes to a pipe, one for both streams."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            **{
                "cwd": self.folder,
                "env": self.environment,
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.STDOUT,
                "text": True,
                "start_new_session": True,
                **options,
            },
        )

    def python(self, *arguments: str, seconds: float = 200) -> "Done":
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"python {' '.join(arguments)} took more than {seconds} s and said:\n{output}")
        return Done(process.returncode, output)

    def flow(self, experiment: str = "", settings: str = "") -> "Done":
        """What `make run` does."""
        return self.python("-m", "flows.vae_train", "--experiment", experiment, "--set", settings)

    def dvc(self, *arguments: str) -> "Done":
        return self.python("-m", "dvc", *arguments)

    def ask_prefect(self, path: str, **question: Any) -> Any:
        """A POST to the API, as the UI makes it."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.prefect_port}/api/{path}",
            data=json.dumps(question).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)

    def last_flow_run(self) -> dict[str, Any]:
        runs = self.ask_prefect("flow_runs/filter", sort="START_TIME_DESC", limit=1)
        return runs[0]

    def task_states(self, flow_run_id: str) -> dict[str, str]:
        """Stage → the name of its task's state, in the order in which they ran."""
        tasks = self.ask_prefect(
            "task_runs/filter",
            flow_runs={"id": {"any_": [flow_run_id]}},
            sort="EXPECTED_START_TIME_ASC",
        )
        return {task["name"]: task["state"]["name"] for task in tasks}

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def processes(self) -> list[psutil.Process]:
        """Whatever runs in this folder or for it."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            places = [process.cwd(), *process.cmdline()]
            return process.status() != psutil.STATUS_ZOMBIE and any(str(self.folder) in p for p in places)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def kill(self) -> None:
        for process in self.processes():
            process.kill()


@dataclass(frozen=True)
class Done:
    code: int
    output: str

    def states(self) -> dict[str, str]:
        """Stage → how Prefect's log says that its task finished."""
        return dict(re.findall(r"Task run '(\w+)' - Finished in state (\w+)", self.output))


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of condition(), asked ten times a second."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {seconds} s for {what}")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def copy_project(folder: Path) -> Workspace:
    """A clone with what is not committed yet, small parameters and ports of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)

    # params.yaml may stand edited in the project: the defaults are what an experiment starts from.
    text = (folder / "experiments" / "default.yaml").read_text(encoding="utf-8")
    for default, small in SMALL.items():
        assert default in text, f"experiments/default.yaml has no {default!r}"
        text = text.replace(default, small)
    for name in ("params.yaml", "experiments/default.yaml"):
        (folder / name).write_text(text, encoding="utf-8")

    prefect_port, mlflow_port = free_ports(2)
    settings = folder / "prefect.toml"
    settings.write_text(settings.read_text().replace("4200", str(prefect_port)))

    for arguments in (
        ["init", "--quiet"],
        ["remote", "add", "origin", "https://example.invalid/vae-train.git"],  # as a clone has
        ["add", "--all"],
        ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "commit", "--quiet", "-m", "copy"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return Workspace(folder, prefect_port, mlflow_port)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """The workspace that most tests share, with no server up yet. Whatever runs in it at the end is ended."""
    copy = copy_project(tmp_path_factory.mktemp("project") / "vae train")
    try:
        yield copy
    finally:
        copy.kill()


@pytest.fixture
def served(place: Workspace) -> Workspace:
    """The same with its servers up: the first test that needs them starts them."""
    done = place.python("-m", "flows.servers", "up")
    assert done.code == 0, done.output
    return place
