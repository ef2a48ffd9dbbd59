"""Whole workspaces for the tests: copies of the project with ports, stores and a DVC cache of their own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.project import PROJECT

from tasks import overlay
from tasks.processes.owner import with_interpreter

START_DEPLOYMENT = ("-m", "prefect", "deployment", "run", "vae-train/vae-train")
DEPLOYMENT = (*START_DEPLOYMENT, "--watch")

# A whole run within seconds. So short a training proves nothing about the model: no verdict fails a run.
SMALL = {
    "train.epochs": 3,
    "kl.annealing_epochs": 1,
    "evaluate.importance_samples": 5,
    "monitor.on_unhealthy": "warn",
    "preflight.pilot": False,
}

# What the person who runs the tests has set in the environment must not reach the copies.
_OF_THE_TOOLS = ("PREFECT_", "MLFLOW_", "DVC_", "VAE_TRAIN_", "GIT_", "OMP_", "MKL_", "MAKE")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser_path() -> str | None:
    """A Chromium or Chrome on this machine: VAE_TRAIN_BROWSER, or the first on the PATH."""
    return os.environ.get("VAE_TRAIN_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


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
            "OMP_NUM_THREADS": "1",  # faster for a tiny network, and the number of threads decides bits
            "MPLCONFIGDIR": str(self.folder / ".run" / "matplotlib"),
            "NO_COLOR": "1",
        }

    def start(self, *arguments: str, **additions: str) -> "Running":
        """`python ARGUMENTS…` in a session of its own."""
        return Running(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env={**self.environment, **additions},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )

    def up(self) -> None:
        """Starts the servers, where they are not up."""
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.prefect_port)) == 0:
                return
        done = self.python("-m", "flows.servers", "up")
        assert done.code == 0, done.output

    def python(self, *arguments: str) -> "Done":
        return self.start(*arguments).ended()

    def start_flow(self, settings: str = "", experiment: str = "") -> "Running":
        """What `make run` does."""
        return self.start("-m", "flows.vae_train", "--experiment", experiment, "--set", settings)

    def flow(self, settings: str = "", experiment: str = "") -> "Done":
        return self.start_flow(settings, experiment).ended()

    def start_dvc(self, *arguments: str, **additions: str) -> "Running":
        """What `dvc ARGUMENTS…` does where .venv is active; the flow alone does not need that."""
        return self.start("-m", "dvc", *arguments, **with_interpreter(additions | {"PATH": os.environ["PATH"]}))

    def dvc(self, *arguments: str) -> "Done":
        return self.start_dvc(*arguments).ended()

    def ask_prefect(self, path: str, **question: Any) -> Any:
        """A POST to the API, as the UI makes it."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.prefect_port}/api/{path}",
            data=json.dumps(question).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)

    def flow_run(self, identifier: str) -> dict[str, Any]:
        return self.ask_prefect("flow_runs/filter", flow_runs={"id": {"any_": [identifier]}})[0]

    def task_states(self, flow_run_id: str) -> dict[str, str]:
        """Stage → the name of its task's state, in the order in which they ran."""
        tasks = self.ask_prefect(
            "task_runs/filter", flow_runs={"id": {"any_": [flow_run_id]}}, sort="EXPECTED_START_TIME_ASC"
        )
        return {task["name"]: task["state"]["name"] for task in tasks}

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def processes(self) -> list[psutil.Process]:
        """Whatever runs in this folder or for it."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def workers(self) -> dict[str, list[psutil.Process]]:
        """What works for a run, by its part in it: flow, dvc, stage. The servers are none of them."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.processes():
            with suppress(psutil.Error):
                modules = [word for word in process.cmdline() if word.startswith(("flows.vae_train", "tasks.", "dvc"))]
                module = "dvc" if modules[:1] == ["tasks.processes.owned_dvc"] else "".join(modules[:1])
                part = {"flows": "flow", "tasks": "stage", "dvc": "dvc"}.get(module.partition(".")[0])
                if part:
                    found.setdefault(part, []).append(process)
        return found

    def mlflow_statuses(self, filtered: str = "") -> list[str]:
        """The status of every MLflow run, or of those that the filter finds."""
        from mlflow import MlflowClient  # takes seconds to load, and every test run loads this module

        store = MlflowClient(tracking_uri=f"sqlite:///{self.folder / 'mlflow.db'}")
        experiment: Any = store.get_experiment_by_name("vae-train")
        return [run.info.status for run in store.search_runs([experiment.experiment_id], filtered)]

    def _owns(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            places = [process.cwd(), *process.cmdline()]
            return process.status() != psutil.STATUS_ZOMBIE and any(str(self.folder) in p for p in places)
        return False

    def kill(self) -> None:
        for process in self.processes():
            process.kill()


@dataclass(frozen=True)
class Done:
    code: int
    output: str

    @property
    def flow_run(self) -> str:
        """The id in Prefect's log."""
        found = re.search(r"flow-run/([0-9a-f-]{36})", self.output)
        assert found, self.output
        return found[1]

    def states(self) -> dict[str, str]:
        """Stage → the state in which its task finished, by Prefect's log."""
        return dict(re.findall(r"Task run '(\w+)' - Finished in state (\w+)", self.output))

    def ran(self) -> list[str]:
        """The stages that ran, by DVC's log."""
        return re.findall(r"Running stage '(\w+)'", self.output)


class Running:
    """A running program, and what it has printed so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_to_say(self, pattern: str, seconds: float = 60) -> None:
        def said() -> bool:
            return re.search(pattern, self.output) is not None

        wait_for(lambda: said() or self.process.poll() is not None, seconds, f"{pattern!r} in:\n…{self.output[-3000:]}")
        assert said(), (
            f"ended with exit code {self.process.returncode} before it said {pattern!r}:\n…{self.output[-3000:]}"
        )

    def ended(self, seconds: float = 200) -> Done:
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"{self.process.args} took more than {seconds} s and said:\n…{self.output[-3000:]}")
        self.reader.join(timeout=10)
        return Done(code, self.output)


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of condition(), polled ten times a second."""
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

    prefect_port, mlflow_port = free_ports(2)
    place = Workspace(folder, prefect_port, mlflow_port)
    edit(place, overlay.defaults() | SMALL)  # the project's own params.yaml may have been edited
    settings = folder / "prefect.toml"
    settings.write_text(settings.read_text().replace("4200", str(prefect_port)))

    for arguments in (
        ["init", "--quiet"],
        ["remote", "add", "origin", "https://example.invalid/vae-train.git"],  # as a clone has
        ["add", "--all"],
        ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "commit", "--quiet", "-m", "copy"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return place


def edit(place: Workspace, values: dict[str, Any]) -> None:
    """Edits params.yaml, as a person does: nothing is checked."""
    params = place.folder / "params.yaml"
    params.write_text(overlay.lay_over(params.read_text(encoding="utf-8"), values), encoding="utf-8")


def make_pipeline(pipeline: str, option: str = "") -> None:
    """A DVC repository in the working folder; what `dvc init` leaves, without its second."""
    Path(".dvc").mkdir()
    site = f"site_cache_dir = {Path('.dvc/site').absolute()}"
    Path(".dvc/config").write_text(f"[core]\n  analytics = false\n  {site}\n  {option}\n")
    Path(".dvc/.gitignore").write_text("/tmp\n/cache\n/config.local\n/site\n")
    Path("dvc.yaml").write_text(pipeline)


@dataclass(frozen=True)
class ByDVC:
    """What plain `dvc repro` did, with small parameters and after train.epochs = 2; params.yaml is invalid since."""

    place: Workspace
    repro: Done
    lock: str
    edited: Done


@dataclass(frozen=True)
class ByFlow:
    """What the flow did with small parameters: run here, and then once more by the worker."""

    place: Workspace
    first: Done
    lock: str
    status: str  # by `dvc status`
    git_status: str
    deployment: Done


def run_by_dvc(place: Workspace) -> ByDVC:
    repro = place.dvc("repro")
    lock = (place.folder / "dvc.lock").read_text()
    edit(place, {"train.epochs": 2})
    edited = place.dvc("repro")
    edit(place, {"model.latent_dim": 0, "train.epochs": float("nan"), "train.epoch": 3})
    return ByDVC(place, repro, lock, edited)


def run_by_flow(place: Workspace) -> ByFlow:
    place.up()
    first = place.flow()
    lock = (place.folder / "dvc.lock").read_text()
    status = place.dvc("status").output
    git_status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=place.folder, capture_output=True, text=True, check=True
    ).stdout
    return ByFlow(place, first, lock, status, git_status, place.python(*DEPLOYMENT))


def stand_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """This process works in a folder, with the stores and locks there."""
    patch.chdir(folder)
    patch.setenv("DVC_ROOT", str(folder))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
