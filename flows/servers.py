"""The servers on this machine: `python -m flows.servers up|down`. Each start and each stop is waited for."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection

import httpx
import typer
from prefect.client.orchestration import get_client
from prefect.logging.handlers import APILogHandler
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Cancelling

from flows import automations, runs
from tasks import workspace
from tasks.processes import entry, owner, services
from vae.config.errors import InputError

POOL = "vae-train"
START_SECONDS, STOP_SECONDS = 120, 10
SETTLED_SECONDS = 1  # a worker has no address to ask; by then it would have failed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """A process of ours: started in a session of its own, with a log and a note of its process id.

    Attributes:
        url: answers when it is ready; a worker has none.
    """

    name: str
    arguments: tuple[str, ...]
    url: httpx.URL | None = None

    def start(self) -> bool:
        """Starts it and waits until it answers; False if it is running already.

        Raises:
            InputError: its port is taken by another program, or it did not start.
        """
        if services.noted_process(self.name) is not None:
            return False
        if self.url is not None:
            with suppress(OSError), create_connection((self.url.host, self.url.port or 80), timeout=1):
                raise InputError(
                    f"{self.name}: another program answers at {self.url.netloc.decode()}; stop it, or choose another "
                    "port (prefect.toml for Prefect, VAE_TRAIN_MLFLOW_PORT for MLflow)"
                )
        path = workspace.root() / ".run" / f"{self.name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=owner.with_interpreter(os.environ) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        workspace.write(services.note(self.name), str(child.pid))
        began = time.monotonic()
        while not self._is_ready(time.monotonic() - began):
            if child.poll() is not None:
                raise InputError(f"{self.name} ended with exit code {child.returncode}; see {path}")
            if time.monotonic() - began > START_SECONDS:
                self.stop()
                raise InputError(f"{self.name} did not answer within {START_SECONDS} s; see {path}")
            time.sleep(0.2)
        return True

    def _is_ready(self, seconds: float) -> bool:
        return seconds > SETTLED_SECONDS if self.url is None else services.answers(str(self.url))

    def stop(self) -> bool:
        """Ends it and its descendants, by force in the end; False if it was not running."""
        process = services.noted_process(self.name)
        services.note(self.name).unlink(missing_ok=True)
        if process is not None:
            owner.end(process, patience=(STOP_SECONDS,) * 3)
        return process is not None


def prefect_service() -> Service:
    api = get_current_settings().api.url
    if not api:
        raise InputError("no Prefect server is configured; run this from the project's folder, where prefect.toml is")
    url = httpx.URL(f"{api}/health")
    address = ("--host", url.host, "--port", str(url.port or 4200))
    return Service(services.PREFECT, ("-m", "prefect", "server", "start", *address), url)


def mlflow_service() -> Service:
    root, url = workspace.root(), httpx.URL(services.MLFLOW_HEALTH)
    arguments = (
        "-m", "mlflow", "server", "--host", url.host, "--port", str(url.port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}",
        "--no-serve-artifacts", "--default-artifact-root", (root / "mlruns").as_uri(),
    )  # fmt: skip
    return Service(services.MLFLOW, arguments, url)


def worker_service() -> Service:
    return Service(services.WORKER, ("-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"))


@contextmanager
def prefect_server() -> Iterator[None]:
    """A Prefect server for as long as it is needed: one that is up already is used, and left up."""
    service = prefect_service()
    if services.noted_process(service.name) is None:
        log.info("starting Prefect …: its pages answer while this runs, and again after `make up`")
    ours = service.start()
    try:
        runs.sweep()
        yield
    finally:
        if ours and not _kept().exists():
            APILogHandler().flush()  # what the flow logged last is still on its way
            service.stop()


def up() -> None:
    """Starts Prefect, MLflow and the worker, and deploys the flow."""
    from tasks.tracking import store  # takes seconds to load

    store.connect()  # makes the database once, before several processes find it missing
    _kept().touch()
    _start(prefect_service())
    _start(mlflow_service())
    for name in runs.sweep():
        log.info("flow run %s had lost its process; it is set to Crashed", name)
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect("--no-prompt", "deploy", "--name", "vae-train")
    automations.create()
    _start(worker_service())
    log.info("runs and their images: %s/#/experiments/1/runs", workspace.mlflow_url())
    log.info("start a run with: prefect deployment run vae-train/vae-train")


def _start(service: Service) -> None:
    state = "is up" if service.start() else "was up already"
    where = f": http://{service.url.netloc.decode()}" if service.url else ""
    log.info("%s %s%s", service.name, state, where)


def down() -> None:
    """Cancels what runs, then stops worker, MLflow and Prefect, each waited for."""
    _kept().unlink(missing_ok=True)
    if services.noted_process(services.PREFECT) is not None:
        _cancel_runs()
    for service in (worker_service(), mlflow_service(), prefect_service()):
        log.info("%s %s", service.name, "is down" if service.stop() else "was not up")


def _cancel_runs() -> None:
    def wait() -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while runs.running() and time.monotonic() < deadline:
            time.sleep(0.2)

    running = runs.running()
    with get_client(sync_client=True) as client:
        for run in running:
            client.set_flow_run_state(run, Cancelling(message="make down"), force=True)
        wait()
        for pid in runs.running().values():  # a `make run` in a terminal has no worker that would end it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        wait()
        for run in running:
            state = client.read_flow_run(run).state
            if state is None or not state.is_final():  # the worker is stopped before it can set it
                client.set_flow_run_state(run, Cancelled(message="make down"), force=True)
    runs.sweep()


def _kept() -> Path:
    """Exists while the servers are to stay: a `make run` that began before `make up` leaves its Prefect server up."""
    return workspace.root() / ".run" / "servers.keep"


def _prefect(*arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it gave no reason"]
        raise InputError(f"`prefect {' '.join(arguments)}` failed: {reason[0]}")


if __name__ == "__main__":
    app = typer.Typer(help=__doc__, add_completion=False)
    app.command()(up)
    app.command()(down)
    entry.run(app)
