"""The servers on this machine: `python -m flows.servers up|down`. Each start and each stop is waited for."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tasks import workspace
from tasks.processes import entry
from vae.config.errors import InputError

POOL = "vae-train"
MLFLOW_HOST, MLFLOW_PORT = "127.0.0.1", workspace.MLFLOW_PORT
START_SECONDS, STOP_SECONDS = 120, 10


@dataclass(frozen=True)
class Service:
    """A process of ours: started in a session of its own, with a log and a note of its process id."""

    name: str
    arguments: tuple[str, ...]
    url: str | None = None  # answers when it is ready

    @property
    def log(self) -> Path:
        return workspace.root() / ".run" / f"{self.name}.log"

    @property
    def note(self) -> Path:
        return workspace.root() / ".run" / f"{self.name}.pid"

    def process(self) -> psutil.Process | None:
        """The running process; None where the note is stale."""
        try:
            process = psutil.Process(int(self.note.read_text()))
            # By its command line and not by when it started: a clock that is moved moves that too.
            return process if process.cmdline()[1:] == list(self.arguments) else None
        except (OSError, ValueError, psutil.Error):
            return None

    def start(self) -> bool:
        """Starts it and waits until it answers; False where it runs already.

        Raises:
            InputError: its port is taken by another program, or it ended at once.
        """
        if self.process() is not None:
            return False
        if self.url is not None and _port_taken(self.url):
            raise InputError(
                f"{self.name}: another program answers at {urlsplit(self.url).netloc}; stop it, or choose another port "
                "(prefect.toml for Prefect, VAE_TRAIN_MLFLOW_PORT for MLflow)"
            )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
                    "PATH": os.pathsep.join(
                        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
                    ),
                },
            )
        self.note.write_text(str(child.pid))
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            if child.poll() is not None:
                raise InputError(f"{self.name} ended with exit code {child.returncode}; see {self.log}")
            if time.monotonic() > deadline:
                self.stop()
                raise InputError(f"{self.name} did not answer within {START_SECONDS} s; see {self.log}")
            time.sleep(0.2)
        return True

    def stop(self) -> bool:
        """Ends the whole session: asked first, killed after ten seconds. False where it did not run."""
        process = self.process()
        self.note.unlink(missing_ok=True)
        if process is None:
            return False
        family = [process, *process.children(recursive=True)]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for member in family:
                if member.is_running():
                    member.send_signal(number)
            _, family = psutil.wait_procs(family, timeout=STOP_SECONDS)
            if not family:
                break
        return True


def prefect_service() -> Service:
    from prefect.settings import get_current_settings

    api = get_current_settings().api.url
    if not api:
        raise InputError("Prefect knows no server; run this from the project's folder, where prefect.toml is")
    address = urlsplit(api)
    host, port = address.hostname or "127.0.0.1", address.port or 4200
    arguments = ("-m", "prefect", "server", "start", "--host", host, "--port", str(port))
    return Service("prefect-server", arguments, f"{api}/health")


def mlflow_service() -> Service:
    root = workspace.root()
    arguments = (
        "-m", "mlflow", "server", "--host", MLFLOW_HOST, "--port", str(MLFLOW_PORT), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}",
        "--no-serve-artifacts", "--default-artifact-root", (root / "mlruns").as_uri(),
    )  # fmt: skip
    return Service("mlflow-server", arguments, f"http://{MLFLOW_HOST}:{MLFLOW_PORT}/health")


def worker_service() -> Service:
    return Service(
        "prefect-worker", ("-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process")
    )


@contextmanager
def prefect_server() -> Iterator[None]:
    """A Prefect server for as long as it is needed: one that is up already is used, and left up."""
    from prefect.logging.handlers import APILogHandler

    from flows import runs

    service = prefect_service()
    if service.process() is None:
        print(
            "starting Prefect …: its pages answer while this runs, and again after `make up`",
            flush=True,
        )
    ours = service.start()
    try:
        runs.sweep()
        yield
    finally:
        if ours and not _kept().exists():
            APILogHandler().flush()  # what the flow said last is still on its way
            service.stop()


def up() -> None:
    from flows import automations, runs
    from tasks.tracking import store

    store.connect()  # the database is made once, before several processes find it missing
    _kept().touch()
    prefect, mlflow = prefect_service(), mlflow_service()
    for service in (prefect, mlflow):
        started = service.start()
        print(
            f"{service.name} {'is up' if started else 'was up already'}: http://{urlsplit(service.url or '').netloc}"
        )
    for name in runs.sweep():
        print(f"flow run {name} had lost its process; it is set to Crashed")
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect("--no-prompt", "deploy", "--name", "vae-train")
    automations.create()
    print("prefect-worker is up" if worker_service().start() else "prefect-worker was up already")
    print(f"runs and their images: {workspace.mlflow_url()}/#/experiments/1/runs")
    print("start a run with: prefect deployment run vae-train/vae-train")


def down() -> None:
    """Cancels what runs, then stops worker, MLflow and Prefect, each waited for."""
    _kept().unlink(missing_ok=True)
    if prefect_service().process() is not None:
        _cancel_runs()
    for service in (worker_service(), mlflow_service(), prefect_service()):
        print(f"{service.name} {'is down' if service.stop() else 'was not up'}", flush=True)


def _cancel_runs() -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled, Cancelling

    from flows import runs

    def wait() -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while runs.running() and time.monotonic() < deadline:
            time.sleep(0.2)

    running = runs.running()
    with get_client(sync_client=True) as client:
        for run in running:
            client.set_flow_run_state(run, Cancelling(message="make down"), force=True)
        wait()
        for pid in runs.running().values():  # a `make run` in a terminal: no worker tells it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        wait()
        for run in running:
            state = client.read_flow_run(run).state
            if state is None or not state.is_final():  # the worker is stopped before it can say so
                client.set_flow_run_state(run, Cancelled(message="make down"), force=True)
    runs.sweep()


def _kept() -> Path:
    """There while the servers are to stay: a `make run` that began before `make up` leaves its Prefect server up."""
    return workspace.root() / ".run" / "servers.keep"


def _prefect(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise InputError(f"`prefect {' '.join(arguments)}` failed: {reason[0]}")


def _answers(url: str | None) -> bool:
    if url is None:
        time.sleep(1)  # a worker has no address: that it lives after a moment has to do
        return True
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _port_taken(url: str) -> bool:
    address = urlsplit(url)
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address.hostname or "127.0.0.1", address.port or 80)) == 0


if __name__ == "__main__":
    verbs = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit("usage: python -m flows.servers up|down")
    entry.run(verbs[sys.argv[1]])
