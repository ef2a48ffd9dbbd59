"""Whatever answers is taken for ours: which server, of which folder, and what a copied or moved folder makes of it.

Tried, with stand-ins for the servers:

- two folders start a server on one port within a second: failed, the second took the first's for its own.
- a folder copied while its servers are up: failed, the copy used them, and its `make down` ended them.
- a folder moved while its servers are up: failed, they were used although their stores are at the old path.
- servers of the version before an update of the libraries: failed, they were used.
- a process id in a note that now is another folder's MLflow: failed; one that is no MLflow at all: was right.
- runs in a copy of a folder in which a run is at work: failed, they set that run to Crashed on a shared server.
- a web server that answers 200 at /health, up before ours: was refused, but not named. A program that speaks no HTTP
  (macOS's AirPlay refuses, an SSH server greets): failed in `vae doctor` (traceback).
- a process id that is nobody's, a note that is no number: were right.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest
from helpers.project import PROJECT
from helpers.workspaces import free_ports, wait_for

from flows import servers
from tasks import workspace
from tasks.cli import doctor
from tasks.processes import run_notes, services
from vae.config.errors import InputError

# `python -m timeit CODE mlflow`: a server that takes a moment to start, as real ones do.
SLOW = """
import time, http.server as h
time.sleep({seconds})
class Ok(h.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
h.HTTPServer(("127.0.0.1", {port}), Ok).serve_forever()
"""


def start(port: int, seconds: float = 0.3) -> bool:
    code = SLOW.format(port=port, seconds=seconds)
    return servers.start(
        services.MLFLOW, "timeit", "-n1", "-s", code, "mlflow", url=httpx.URL(f"http://127.0.0.1:{port}/health")
    )


def enter(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    folder.mkdir(exist_ok=True)
    patch.chdir(folder)
    patch.setenv("DVC_ROOT", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield enter(tmp_path / "p", monkeypatch)
    for note in tmp_path.glob("*/.run/*.pid"):
        with suppress(psutil.Error):
            psutil.Process(int(note.read_text())).kill()


class _Ok(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def rival(port: int) -> HTTPServer:
    """Another program that answers 200 at every path."""
    server = HTTPServer(("127.0.0.1", port), _Ok)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_the_server_that_was_faster_on_the_port_is_not_ours(folder: Path) -> None:
    (port,) = free_ports(1)
    came: list[HTTPServer] = []
    later = threading.Timer(0.5, lambda: came.append(rival(port)))
    later.start()
    with pytest.raises(
        InputError, match=rf"another program answers at 127\.0\.0\.1:{port} \(process .*; stop it, or choose"
    ) as it:
        start(port, seconds=2)
    assert f"(process {os.getpid()}, " in str(it.value) and (folder / ".run" / "mlflow-server.log").exists()
    assert services.noted_process(services.MLFLOW) is None
    came[0].shutdown()
    came[0].server_close()
    assert start(port) and not start(port), "ours is up, and was up already"
    assert services.answers(f"http://127.0.0.1:{port}/health") and servers.stop(services.MLFLOW)


def test_a_copied_folder_neither_uses_nor_stops_the_servers_of_the_original(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    assert start(port)
    workspace.write(servers._kept(), str(folder))
    (process,) = filter(None, [services.noted_process(services.MLFLOW)])

    copy = shutil.copytree(folder, folder.with_name("q"))
    enter(copy, monkeypatch)
    assert services.note(services.MLFLOW).exists() and not servers._is_kept()
    assert services.noted_process(services.MLFLOW) is None and services.outdated_process(services.MLFLOW) is None
    with pytest.raises(
        InputError, match=rf"\(process {process.pid}, mlflow-server \S+ of {folder}\); stop it, or choose"
    ):
        start(port)
    assert not servers.stop(services.MLFLOW) and process.is_running()

    enter(folder, monkeypatch)
    assert servers._is_kept() and servers.stop(services.MLFLOW)
    wait_for(lambda: not process.is_running(), 5, "the end of the server")


def test_a_moved_folder_replaces_its_servers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = free_ports(1)
    assert start(port)
    (process,) = filter(None, [services.noted_process(services.MLFLOW)])
    enter(folder.rename(folder.with_name("moved")), monkeypatch)
    assert services.noted_process(services.MLFLOW) is None and services.outdated_process(services.MLFLOW) == process
    assert any(state == "problem" and "before this folder was moved" in text for state, text in doctor.servers())

    servers._prepare()
    assert (
        "mlflow-server is stopped: it was started before this folder was moved" in caplog.text
        and not process.is_running()
    )
    assert start(port) and servers.stop(services.MLFLOW)


def test_a_reused_process_id_is_not_ours_even_if_it_is_an_mlflow(folder: Path) -> None:
    (folder / ".run").mkdir()
    code = [sys.executable, "-c", "import time; time.sleep(60)", "mlflow"]
    for shell, cwd in (({}, folder.parent), ({services.STARTED_AS: "mlflow-server 3.17.2 of /another"}, folder.parent)):
        with subprocess.Popen(code, cwd=cwd, env={**os.environ, **shell}) as other:
            services.note(services.MLFLOW).write_text(str(other.pid))
            found = services.noted_process(services.MLFLOW), services.outdated_process(services.MLFLOW)
            other.kill()
        assert found == (None, None)


def test_a_server_of_another_version_is_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / ".run").mkdir()
    code = [sys.executable, "-c", "import time; time.sleep(60)", "mlflow"]
    before = {services.STARTED_AS: f"mlflow-server 1.0 of {folder}"}
    with subprocess.Popen(code, cwd=folder, env={**os.environ, **before}) as old:
        services.note(services.MLFLOW).write_text(str(old.pid))
        assert services.noted_process(services.MLFLOW) is None
        servers._prepare()
        assert "libraries were updated" in caplog.text and not psutil.pid_exists(old.pid)


RUN = """
import sys, time
from pathlib import Path
from tasks.processes import run_notes
with run_notes.noted(Path(sys.argv[1]), "run", run_notes.this_process()):
    print("noted", flush=True)
    time.sleep(60)
"""


def test_a_server_of_another_version_is_kept_while_a_run_needs_it(folder: Path) -> None:
    (folder / ".run").mkdir()
    code = [sys.executable, "-c", "import time; time.sleep(60)", "prefect"]
    before = {services.STARTED_AS: f"prefect-worker 1.0 of {folder}"}
    run = [sys.executable, "-c", RUN.replace('"run"', f'"{uuid4()}"'), str(folder / ".run" / "flow_runs")]
    with (
        subprocess.Popen(code, cwd=folder, env={**os.environ, **before}) as worker,
        subprocess.Popen(run, cwd=PROJECT, stdout=subprocess.PIPE) as running,
    ):
        services.note(services.WORKER).write_text(str(worker.pid))
        assert running.stdout is not None and running.stdout.readline() == b"noted\n"
        with pytest.raises(InputError, match="a run is in progress"):
            servers._prepare()
        running.kill()
        running.wait()
        assert worker.poll() is None
        servers._prepare()
        assert not psutil.pid_exists(worker.pid)


def test_prefect_api_url_may_name_another_port_for_the_server_of_this_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(PROJECT / "prefect.toml", folder)
    (port,) = free_ports(1)
    monkeypatch.setenv("PREFECT_API_URL", f"http://localhost:{port}/api")
    assert services.prefect_url() == f"http://localhost:{port}/api"
    other = rival(port)
    assert services.prefect_url() == "http://127.0.0.1:4200/api"
    other.shutdown()


def test_a_run_in_the_folder_of_which_this_is_a_copy_is_not_swept(tmp_path: Path) -> None:
    notes = tmp_path / "p"
    with subprocess.Popen([sys.executable, "-c", RUN, str(notes)], cwd=PROJECT, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stdout.readline() == b"noted\n"
        copy = shutil.copytree(notes, tmp_path / "q")
        assert run_notes.living(copy) == {}, "`make down` in the copy ends nothing"
        assert list(run_notes.left_behind(copy)) == list(run_notes.left_behind(notes)) == []
        run.kill()
    for folder in (copy, notes):
        assert [name for name, _ in run_notes.left_behind(folder)] == ["run"], "once it has died, it is"


def test_a_program_that_speaks_no_http_is_named_and_no_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    listening.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

        threading.Thread(target=greet, daemon=True).start()
        port = listening.getsockname()[1]
        assert not services.answers(f"http://127.0.0.1:{port}/health")
        monkeypatch.setattr(services, "MLFLOW_HEALTH", f"http://127.0.0.1:{port}/health")
        assert ("note", "mlflow-server is not up") in list(doctor.servers())
        with pytest.raises(InputError, match=rf"another program answers at .* \(process {os.getpid()}, .*; stop it"):
            start(port)


def test_a_deleted_folders_server_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    assert start(port)
    (process,) = filter(None, [services.noted_process(services.MLFLOW)])
    shutil.rmtree(folder)
    enter(folder.with_name("q"), monkeypatch)
    try:
        monkeypatch.setattr(services, "MLFLOW_HEALTH", f"http://127.0.0.1:{port}/health")
        told = f"another program answers at http://127.0.0.1:{port}/health (process {process.pid}, mlflow-server "
        assert any(told in text for _, text in doctor.servers())
    finally:
        process.kill()
