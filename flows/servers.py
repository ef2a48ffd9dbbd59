"""The servers on this machine: `python -m flows.servers up|down`. Each start and each stop is waited for."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import typer
from prefect.client.orchestration import get_client
from prefect.logging.handlers import APILogHandler
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Cancelling

from flows import automations, runs
from tasks import workspace
from tasks.host import addresses, environment
from tasks.processes import entry, owner, services
from vae.config.errors import InputError
from vae.config.text import first_line

POOL = "vae-train"
ALL = (services.WORKER, services.MLFLOW, services.PREFECT)  # in the order in which they are stopped
START_SECONDS, STOP_SECONDS = 120, 10
SETTLED_SECONDS = 1  # a worker has no address to ask; by then it would have failed

log = logging.getLogger(__name__)


def start(
    name: str, *arguments: str, url: httpx.URL | None = None, meanwhile: Callable[[], None] | None = None
) -> bool:
    """Starts `python -m ARGUMENTS…` in a session of its own and waits until it answers; False if it is up already.

    Its log and a note of its process id are in .run/.

    Args:
        url: answers when it is ready; a worker has none.
        meanwhile: called once it is starting; its error stops the server.

    Raises:
        InputError: its port is taken by another program, or it did not start.
    """
    where = f": http://{url.netloc.decode()}" if url else ""
    if services.noted_process(name) is not None:
        log.info("%s was up already%s", name, where)
        return False
    if url is not None and services.is_taken(url.host, url.port or 80):
        raise _taken(name, url)
    path = workspace.root() / ".run" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=owner.with_interpreter(os.environ)
            | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", services.STARTED_AS: services.mark(name)},
        )
    workspace.write(services.note(name), str(child.pid))
    process, began = psutil.Process(child.pid), time.monotonic()
    try:
        if meanwhile:
            meanwhile()
    except BaseException:
        stop(name)
        raise
    while not _is_ready(process, url) if url else time.monotonic() - began < SETTLED_SECONDS:
        if child.poll() is not None:
            if url is not None and services.is_taken(url.host, url.port or 80):  # by a program that was faster
                raise _taken(name, url)
            raise InputError(f"{name} ended with exit code {child.returncode}; see {path}")
        if time.monotonic() - began > START_SECONDS:
            stop(name)
            raise InputError(f"{name} did not answer within {START_SECONDS} s; see {path}")
        time.sleep(0.05)
    log.info("%s is up%s", name, where)
    return True


def _is_ready(process: psutil.Process, url: httpx.URL) -> bool:
    """Whether it is this process that answers, and not the server of another folder on the same port."""
    return services.answers(str(url)) and services.listens(process, url.port or 80)


def _taken(name: str, url: httpx.URL) -> InputError:
    return InputError(
        f"{name}: another program answers at {url.netloc.decode()}{services.listener(url.port or 80)}; stop it, or "
        f"choose another port: {services.OTHER_PORT[name]}"
    )


def stop(name: str) -> bool:
    """Ends it and its descendants, by force in the end; False if it was not running."""
    process = services.noted_process(name) or services.outdated_process(name)
    services.note(name).unlink(missing_ok=True)
    if process is not None:
        owner.end(process, patience=(STOP_SECONDS,) * 3)
    return process is not None


def start_prefect(meanwhile: Callable[[], None] | None = None) -> bool:
    """Starts this folder's server; another one, by PREFECT_API_URL, has to answer. False if it is up already."""
    api = get_current_settings().api.url
    if not api:
        raise InputError("no Prefect server is configured; run this from the project's folder, where prefect.toml is")
    if _is_elsewhere(api):
        _ask(api)
        log.info("Prefect's server at %s is used (PREFECT_API_URL)", addresses.shown(api))
        return False
    url = httpx.URL(f"{api}/health")
    address = ("--host", url.host, "--port", str(url.port or 4200))
    return start(services.PREFECT, "flows.module", "prefect", "server", "start", *address, url=url, meanwhile=meanwhile)


def _is_elsewhere(api: str | None) -> bool:
    ours = services.prefect_url()
    return bool(api and ours) and not addresses.same(str(api), str(ours))


def _ask(api: str) -> None:
    """Raises: InputError: no Prefect server answers there, or none that this version of Prefect understands."""
    try:
        with get_client(sync_client=True) as client:
            client.read_flow_runs(limit=1)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, RuntimeError) as error:
        reason = first_line(error).split(" for url ")[0]
        raise InputError(
            f"PREFECT_API_URL = {addresses.shown(api)}: no usable Prefect server there ({reason}); start it, "
            "correct the address (http://HOST:4200/api), or unset PREFECT_API_URL to use this folder's own server"
        ) from None


def start_mlflow() -> bool:
    root, url = workspace.root(), httpx.URL(services.MLFLOW_HEALTH)
    arguments = (
        "--host", url.host, "--port", str(url.port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}",
        "--no-serve-artifacts", "--default-artifact-root", (root / "mlruns").as_uri(),
    )  # fmt: skip
    return start(services.MLFLOW, "mlflow", "server", *arguments, url=url)


@contextmanager
def prefect_server(meanwhile: Callable[[], None] | None = None) -> Iterator[None]:
    """A Prefect server for as long as it is needed: one that is up already is used, and left up.

    meanwhile: called while it starts; not where it is up already.
    """
    _prepare()
    if services.noted_process(services.PREFECT) is None and not _is_elsewhere(get_current_settings().api.url):
        log.info("starting Prefect …; its pages are available during this run, and after `make up`")
    ours = start_prefect(meanwhile)
    try:
        runs.sweep()
        yield
    finally:
        if ours and not _is_kept():
            APILogHandler().flush()  # what the flow logged last is still on its way
            stop(services.PREFECT)


def _prepare() -> None:
    """Says what is ignored of the user's environment, and stops servers that are not up to date."""
    for change in environment.changes:
        log.warning(change)
    outdated = [name for name in ALL if services.outdated_process(name) is not None]
    if outdated and runs.running():
        raise InputError(
            "a run is in progress, with servers that were started before this folder was moved or its libraries were "
            "updated; wait for it to end, or `make down`"
        )
    for name in outdated:
        stop(name)
        log.warning("%s is stopped: %s; `make up` starts it again", name, services.OUTDATED)


def up() -> None:
    """Starts Prefect, MLflow and the worker, and deploys the flow."""
    from flows import tracking  # takes seconds to load

    _prepare()
    tracking.connect()  # makes the database once, before several processes find it missing
    workspace.write(_kept(), str(workspace.root()))
    start_prefect()
    start_mlflow()
    for name in runs.sweep():
        log.info("the process of flow run %s had died; the run is set to Crashed", name)
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect("--no-prompt", "deploy", "--name", "vae-train")
    automations.create()
    start(services.WORKER, "prefect", "worker", "start", "--pool", POOL, "--type", "process")
    log.info("runs and their images: %s/#/experiments/1/runs", workspace.mlflow_url())
    log.info("start a run with: prefect deployment run vae-train/vae-train")


def down() -> None:
    """Cancels what runs, then stops worker, MLflow and Prefect, each waited for."""
    _kept().unlink(missing_ok=True)
    api = get_current_settings().api.url
    if services.noted_process(services.PREFECT) or (_is_elsewhere(api) and services.answers(f"{api}/health")):
        _cancel_runs()
    for name in ALL:
        log.info("%s %s", name, "is down" if stop(name) else "was not up")


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
    """Names the folder whose servers are to stay: a `make run` that began before `make up` leaves Prefect's up."""
    return workspace.root() / ".run" / "servers.keep"


def _is_kept() -> bool:
    return _kept().exists() and _kept().read_text(encoding="utf-8") == str(workspace.root())  # else a copied folder's


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
