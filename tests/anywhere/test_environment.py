"""The user's environment: what of it reaches the programs of this project, their servers and libraries.

Tried, each in a shell with these variables; a whole `make run` under all of them at once, in a folder with an é:

- HTTP_PROXY without NO_PROXY (a server that is up "did not answer within 120 s"), ALL_PROXY=socks://, a proxy that is
  no address (tracebacks of HTTPX): failed. HTTPS_PROXY, a NO_PROXY of the user's own: were right, and still are.
- SSL_CERT_FILE and its kin: gone, empty, a folder; SSLKEYLOGFILE in a folder that is gone: failed (traceback).
- MPLBACKEND of a notebook: failed.
- PYTHONIOENCODING=latin-1, LC_ALL=POSIX with PYTHONUTF8=0: failed at the first "…", or at a folder's é. LANG=C alone
  was right: Python itself uses UTF-8 there.
- PYTHONWARNINGS=error: failed (libraries warn while they are loaded). PYTHONOPTIMIZE=2: a page of MLflow's warnings.
  PYTHONSTARTUP, PYTHONDONTWRITEBYTECODE, PYTHONHASHSEED: were right. PYTHONHOME: Python itself does not start.
- PREFECT_HOME, _SERVER_DATABASE_CONNECTION_URL, _PROFILE, _PROFILES_PATH, _LOGGING_SETTINGS_PATH, _SERVER_API_PORT:
  failed (tables outside the folder, another port than prefect.toml's, traceback). An empty PREFECT_API_URL: failed.
- MLFLOW_TRACKING_URI = file:…, ./mlruns, databricks, a driver that is not installed, a server that is none: failed
  (three trainings, tracebacks). MLFLOW_RUN_ID, _EXPERIMENT_NAME, _REGISTRY_URI, _STATIC_PREFIX: failed.
"""

import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers.commands import vae
from helpers.project import PROJECT
from helpers.workspaces import Workspace, copy_project, stand_in
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import servers, tracking
from tasks.cli import doctor
from tasks.host import addresses, environment
from tasks.processes import services
from tasks.processes.entry import INPUT_ERROR
from vae.config.errors import InputError

GONE = "/gone/nowhere"
NOBODY = "http://127.0.0.1:9"  # the port discard, at which nothing listens


def python(*arguments: str, folder: Path = PROJECT, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`python ARGUMENTS…` in a shell in which these variables are set."""
    here = {"PATH": os.environ["PATH"], "HOME": GONE, "PYTHONPATH": str(PROJECT), **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=here, capture_output=True, encoding="utf-8", timeout=120)


class _Echo(BaseHTTPRequestHandler):
    """Answers with the address that it is asked for: a proxy gets the whole, a server the path.

    Beneath /api it is a Prefect server without flow runs.
    """

    def do_GET(self) -> None:
        self.send_response(404 if self.path.startswith("/api/csrf-token") else 200)
        self.end_headers()
        self.wfile.write(b'"3.8.8"' if self.path == "/api/admin/version" else self.path.encode())

    def do_POST(self) -> None:
        self.send_response(200 if self.path == "/api/flow_runs/filter" else 404)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """A web server of somebody else, and an HTTP proxy."""
    with HTTPServer(("127.0.0.1", 0), _Echo) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{answering.server_port}"
        answering.shutdown()


REQUESTS = """
import sys, tasks
import httpx, requests, urllib.request
ours, remote = sys.stdin.read().split()
for get in (lambda url: httpx.get(url).text, lambda url: requests.get(url).text,
            lambda url: urllib.request.urlopen(url, timeout=5).read().decode()):
    print(get(ours), get(remote) if remote != "none" else "")
"""


@pytest.mark.parametrize(
    ("variables", "through"),
    [
        ({"HTTP_PROXY": "PROXY"}, True),
        ({"http_proxy": "PROXY", "NO_PROXY": "internal.invalid", "no_proxy": "internal.invalid"}, True),
        ({"HTTP_PROXY": NOBODY, "ALL_PROXY": "socks://127.0.0.1:9"}, False),
        ({"ALL_PROXY": "socks://127.0.0.1:9", "NO_PROXY": "localhost,127.0.0.1"}, False),
        ({"HTTPS_PROXY": "http://proxy:port", "SSL_CERT_FILE": GONE}, False),
        ({"SSL_CERT_DIR": "/dev/null", "REQUESTS_CA_BUNDLE": GONE, "SSLKEYLOGFILE": f"{GONE}/keys"}, False),
        ({"SSL_CERT_FILE": "/dev/null", "CURL_CA_BUNDLE": GONE}, False),
    ],
)
def test_this_machine_is_reached_without_a_proxy_and_others_through_one(
    server: str, variables: dict[str, str], through: bool
) -> None:
    shell = {name: value.replace("PROXY", server) for name, value in variables.items()}
    asked = f"{server}/ours {'http://remote.invalid/a' if through else 'none'}"
    here = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **shell}
    command = [sys.executable, "-c", REQUESTS]
    done = subprocess.run(command, input=asked, env=here, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = "/ours http://remote.invalid/a" if through else "/ours"
    assert [line.strip() for line in done.stdout.splitlines()] == [expected] * 3


def test_a_quota_of_cpu_time_limits_the_threads_of_all_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.limits, "affinity", lambda: set(range(8)))
    for cores, given, threads in (
        (8, {}, None),
        (2, {}, "2"),
        (2, {"OMP_NUM_THREADS": ""}, "2"),
        (2, {"OMP_NUM_THREADS": "4"}, "4"),
    ):
        monkeypatch.setattr(environment.limits, "cores", lambda cores=cores: cores)
        shell = dict(given)
        environment.apply(tmp_path, shell)
        assert shell.get("OMP_NUM_THREADS") == threads


def test_what_is_ignored_is_said_once_without_passwords(tmp_path: Path) -> None:
    shell = {
        "HTTPS_PROXY": "socks4://me:secret@proxy:1",
        "http_proxy": "proxy:3128",
        "no_proxy": "a, ::1",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://me:secret@db/x",
        "PREFECT_HOME": "/x",
        "PREFECT_PROFILE": "",
        "PREFECT_API_URL": "http://far/api",
        "PREFECT_API_KEY": "k",
        "PREFECT__FLOW_RUN_ID": "1",
        "MLFLOW_RUN_ID": "1",
        "MLFLOW_TRACKING_URI": "http://far",
        "MLFLOW_TRACKING_TOKEN": "t",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true",
        "VAE_TRAIN_MLFLOW_PORT": "5000/mlflow",
        "GIT_DIR": "/x",
        "GIT_AUTHOR_NAME": "me",
        "GIT_CONFIG_GLOBAL": "/x",
    }
    changes = environment.apply(tmp_path, shell)
    assert [line.split(" ignored: ")[0] for line in changes] == [
        "PREFECT_HOME, PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "MLFLOW_RUN_ID",
        "GIT_DIR",
        "HTTPS_PROXY",
        "VAE_TRAIN_MLFLOW_PORT",
    ]
    assert "secret" not in "".join(changes)
    assert {"PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT__FLOW_RUN_ID", "MLFLOW_TRACKING_TOKEN"} < shell.keys()
    assert {"GIT_AUTHOR_NAME", "GIT_CONFIG_GLOBAL", "http_proxy"} < shell.keys() and "PREFECT_PROFILE" not in shell
    assert shell["NO_PROXY"] == shell["no_proxy"] == "a,::1,127.0.0.1,localhost"
    assert shell["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert environment.apply(tmp_path, shell) == []


def test_libraries_load_and_draw_in_a_notebooks_strict_shell(tmp_path: Path) -> None:
    shell = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONWARNINGS": "error"}
    draw = "import warnings; warnings.warn('old', DeprecationWarning); import matplotlib.pyplot as p; p.figure()"
    done = python("-c", f"import tasks; {draw}; p.savefig('a.png')", folder=tmp_path, **shell)
    assert done.returncode == 0 and (tmp_path / "a.png").exists(), done.stderr
    assert python("-c", draw, folder=tmp_path, **shell).returncode != 0, "these variables do no harm any more"


def command(shell: dict[str, str], *words: str) -> "subprocess.CompletedProcess[bytes]":
    here = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "TERM": "dumb", **shell}
    return subprocess.run([sys.executable, "-m", "tasks.cli.app", *words], env=here, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("shell", "printed"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, "\\u2212SPAN"),
        ({"PYTHONIOENCODING": "ascii:strict"}, "\\u2212SPAN"),
        ({"LC_ALL": "C"}, "−SPAN"),
    ],
)
def test_a_command_prints_in_any_encoding(shell: dict[str, str], printed: str) -> None:
    done = command(shell, "traverse", "--help")
    assert done.returncode == 0 and f"from {printed} to SPAN" in done.stdout.decode(errors="replace"), done.stderr


@pytest.mark.parametrize("shell", [{"LC_ALL": "POSIX"}, {"LANG": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_a_name_is_the_same_text_under_a_locale_without_utf_8(shell: dict[str, str]) -> None:
    """Python in UTF-8 reads the bytes of an é as one character, whatever it may print."""
    done = command({**shell, "PYTHONUTF8": "0"}, "σé")
    assert done.returncode == 2 and "No such command '\\u03c3\\xe9'" in done.stderr.decode(), done.stderr


SETTINGS = """
import flows
from prefect.settings import get_current_settings
s = get_current_settings()
print(s.home, s.api.url, s.server.api.port, s.results.persist_by_default, s.server.database.connection_url, sep="|")
"""


def test_prefects_settings_are_those_of_prefect_toml(tmp_path: Path) -> None:
    (tmp_path / "prefect.toml").write_text((PROJECT / "prefect.toml").read_text())
    outside = str(tmp_path / "outside")
    other = {
        "PREFECT_HOME": outside,
        "PREFECT_PROFILES_PATH": outside,
        "PREFECT_LOCAL_STORAGE_PATH": outside,
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{outside}.db",
        "PREFECT_PROFILE": "prod",
        "PREFECT_SERVER_API_PORT": "4999",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
        "PREFECT_LOGGING_SETTINGS_PATH": GONE,
        "PREFECT_API_URL": " ",
        "DVC_ROOT": GONE,
    }
    done = python("-c", SETTINGS, folder=tmp_path, **other)
    assert done.returncode == 0, done.stderr
    *settings, database = done.stdout.strip().split("|")
    assert settings == [".prefect", "http://127.0.0.1:4200/api", "4200", "False"] and "outside" not in database
    assert {path.name for path in tmp_path.iterdir()} <= {"prefect.toml", ".prefect"}


@pytest.mark.parametrize(
    ("uri", "store"),
    [
        *(
            (uri, False)
            for uri in ("file:./mlruns", "file:///x", "./mlruns", "databricks", "htp://a", "http://", "C:\\x")
        ),
        *((uri, False) for uri in ("postgres://me:secret@db/x", "postgresql:///", "http://a:b", "uc:http://a")),
        *(
            (uri, True)
            for uri in ("http://a:5000", "https://me:p@a/mlflow", "sqlite:///a.db", "postgresql+psycopg2://a/x")
        ),
    ],
)
def test_an_address_that_is_no_store_is_refused(uri: str, store: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    if store:
        assert addresses.tracking_uri() == uri
        return
    with pytest.raises(
        InputError, match=r"MLFLOW_TRACKING_URI = .*: not the address of an MLflow store; expected"
    ) as it:
        addresses.tracking_uri()
    assert "secret" not in str(it.value)
    assert [state for state, _ in doctor.mlflow()] == ["problem"]


def test_a_flow_and_a_command_refuse_it_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = python("-m", "flows.vae_train", MLFLOW_TRACKING_URI="file:./mlruns")
    assert done.returncode == INPUT_ERROR, done.stderr
    assert done.stderr.startswith("error: MLFLOW_TRACKING_URI = file:./mlruns: not the address"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Prefect" not in done.stdout, "it is refused before a server is started"
    stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    refused = vae("promote")
    assert refused.exit_code == INPUT_ERROR and refused.stderr.startswith("error: MLFLOW_TRACKING_URI = databricks: ")
    assert not (tmp_path / "mlruns").exists()


def test_a_store_that_is_none_is_refused_before_a_run(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for uri, reason in (
        (NOBODY, "Connection refused"),
        (server, "API request"),
        ("mysql://me:secret@a/x", "No module"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(InputError, match=rf"no usable MLflow there \(.*{reason}.*\); start it, correct") as refused:
            tracking.connect()
        assert "secret" not in str(refused.value)


def test_another_prefect_server_is_used_or_refused(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with temporary_settings({PREFECT_API_URL: f"{server}/api"}), servers.prefect_server():
        assert services.noted_process(services.PREFECT) is None, "it is not for us to start"
    for api in ("http://127.0.0.2:9/api", "nonsense", server):
        with (
            temporary_settings({PREFECT_API_URL: api}),
            pytest.raises(InputError, match=rf"PREFECT_API_URL = {api}: no usable Prefect server there \("),
        ):
            servers.start_prefect()
        monkeypatch.setenv("PREFECT_API_URL", api)
        assert next(doctor.servers())[0] == ("note" if api == server else "problem")
    assert list(tmp_path.rglob("*.pid")) == []
    assert addresses.same("http://localhost:4200/api/", "http://127.0.0.1:4200/api"), "ours by another name"


def test_a_list_of_folders_and_an_empty_port_are_right(tmp_path: Path) -> None:
    shell = {"SSL_CERT_DIR": f"{GONE}:{tmp_path}", "VAE_TRAIN_MLFLOW_PORT": "", "PREFECT_LOGGING_TO_API_ENABLED": "0"}
    assert environment.apply(tmp_path, given := dict(shell)) == [] and shell.items() <= given.items()


def test_the_doctor_lists_what_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "changes", ["PREFECT_HOME ignored: …"])
    assert ("note", "PREFECT_HOME ignored: …") in list(doctor.environment())
    monkeypatch.setenv("DVC_ROOT", GONE)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert any(state == "problem" and GONE in text for state, text in doctor.environment())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    copy = copy_project(tmp_path / "vae é")
    yield copy
    copy.kill()


def test_a_prefect_server_of_this_folder_in_a_hostile_shell(place: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shell = {
        "HTTP_PROXY": NOBODY,
        "ALL_PROXY": "socks://127.0.0.1:9",
        "SSL_CERT_FILE": GONE,
        "MPLBACKEND": "Qt5Agg",
        "PYTHONIOENCODING": "latin-1",
        "HOME": str(outside),
        "PREFECT_HOME": str(outside),
        "PREFECT_PROFILE": "prod",
        "PREFECT_SERVER_API_PORT": "9",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{outside}.db",
    }
    start = "from flows import servers; print(servers.start_prefect())"
    done = place.start("-c", start, **shell).ended()
    assert done.code == 0 and done.output.splitlines()[-1] == "True", done.output
    assert urllib.request.urlopen(f"http://127.0.0.1:{place.prefect_port}/api/health", timeout=10).status == 200
    assert (place.folder / ".prefect" / "prefect.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == [place.folder.name], "nothing is written outside"
