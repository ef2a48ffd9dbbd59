"""What of the user's shell reaches the programs of this project, and the servers, DVC and stages that they start.

Applied by `tasks/__init__.py`, before any library is loaded; child processes inherit what is left. Imports no
library.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from vae import limits

Environment = MutableMapping[str, str]


@dataclass(frozen=True)
class Ignored:
    """Variables that are dropped: they are about something else that this shell is used for.

    Attributes:
        names: patterns, separated by blanks.
        why: completes `NAMES ignored: `; empty where it makes no difference to the user.
    """

    names: str
    why: str

    def matches(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.names.split())


# Git sets them for its hooks, and lists them itself: `git rev-parse --local-env-vars`. Variables that carry settings,
# such as safe.directory by GIT_CONFIG_COUNT, are none of them.
OF_ANOTHER_REPOSITORY = (
    "GIT_DIR GIT_WORK_TREE GIT_COMMON_DIR GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES "
    "GIT_NAMESPACE GIT_PREFIX GIT_SHALLOW_FILE GIT_GRAFT_FILE GIT_IMPLICIT_WORK_TREE GIT_REPLACE_REF_BASE "
    "GIT_QUARANTINE_PATH"
)

IGNORED = (
    # Another Prefect's home, profile, database, ports, results.
    Ignored(
        "PREFECT_HOME PREFECT_PROFILE PREFECT_PROFILES_PATH PREFECT_*DATABASE* PREFECT_SERVER_API_HOST "
        "PREFECT_SERVER_API_PORT PREFECT_SERVER_API_BASE_PATH PREFECT_SERVER_EPHEMERAL_* PREFECT_*RESULTS_* "
        "PREFECT_*STORAGE* PREFECT_MEMO_STORE_PATH PREFECT_LOGGING_SETTINGS_PATH PREFECT_LOGGING_CONFIG_PATH "
        "PREFECT_UI_SERVE_BASE PREFECT_SERVER_UI_* PREFECT_TEST_MODE",
        "prefect.toml configures this folder's Prefect",
    ),
    Ignored("MLFLOW_REGISTRY_URI", "models are registered where the runs are (MLFLOW_TRACKING_URI)"),
    Ignored(
        "MLFLOW_EXPERIMENT_* MLFLOW_RUN_* MLFLOW_ACTIVE_MODEL_ID MLFLOW_ENABLE_ASYNC_LOGGING",
        "each training has a run of its own, in the experiment vae-train",
    ),
    # Options of `mlflow server`: the one of `make up` gets its own on the command line.
    Ignored(
        "MLFLOW_HOST MLFLOW_PORT MLFLOW_WORKERS MLFLOW_*STORE_URI MLFLOW_DEFAULT_ARTIFACT_ROOT MLFLOW_ARTIFACTS_ONLY "
        "MLFLOW_ARTIFACTS_DESTINATION MLFLOW_SERVE_ARTIFACTS MLFLOW_STATIC_PREFIX MLFLOW_GUNICORN_OPTS "
        "MLFLOW_UVICORN_OPTS MLFLOW_EXPOSE_PROMETHEUS MLFLOW_AUTH_* MLFLOW_SERVER_* MLFLOW_ENABLE_WORKSPACES "
        "MLFLOW_TRACE_ARCHIVAL_CONFIG",
        "the MLflow server of `make up` serves this folder's store",
    ),
    Ignored(OF_ANOTHER_REPOSITORY, "Git and DVC work on the repository of this folder"),
    Ignored("GIT_*_PATHSPECS", ""),  # they change what `git add :/` means
    # Of the interpreter. Warnings as errors, or no docstrings, stop libraries while they are loaded.
    Ignored("PYTHONWARNINGS PYTHONOPTIMIZE PYTHONIOENCODING PYTHONINSPECT PYTHONSAFEPATH", ""),
)

SET_OR_EMPTY = ("PREFECT_", "MLFLOW_")

SET = {
    "MPLBACKEND": "agg",  # a notebook's shell names a backend that only its kernel has
    "PYTHONUTF8": "1",  # what a child writes is read as UTF-8
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Give up on a server within seconds, not minutes; what it misses is sent later.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Seconds between two samples of processor, memory, disk, network and (with nvidia-ml-py) GPU.
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "10",
}

# Kept in the project, where libraries would use the home folder and /var/tmp.
FOLDERS = {"MPLCONFIGDIR": ".run/matplotlib", "HF_HOME": ".run/huggingface", "DVC_SITE_CACHE_DIR": ".run/dvc"}

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy", "socks_proxy")  # in any case
LOOPBACK = ("127.0.0.1", "localhost", "::1")

PROGRAMS = ("tasks.", "flows.", "benchmarks.")  # their modules, run by `python -m`

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PREFECT_API_SSL_CERT_FILE")

changes: list[str] = []  # what the user may want to know of what `apply` did, a sentence each


def apply(root: Path, environment: Environment = os.environ) -> list[str]:
    """Brings the environment into the state that the tables above describe, and this process with it.

    Args:
        root: the folder of the stores and locks.

    Returns:
        What was ignored of that which the user may care about, a sentence each. Nothing the second time.
    """
    _start_again_in_utf8()
    _lift_strictness(environment)
    changed = [*_ignore(environment), *_proxies(environment), *_certificates(environment), *_port(environment)]
    environment.update(SET)
    for name, value in {**DEFAULTS, **{name: str(root / folder) for name, folder in FOLDERS.items()}}.items():
        environment.setdefault(name, value)
    if limits.cores() < len(limits.affinity()) and not environment.get("OMP_NUM_THREADS"):
        environment["OMP_NUM_THREADS"] = str(limits.cores())  # the libraries do not know of a container's quota
    return changed


def _start_again_in_utf8() -> None:
    """A program of this project, under a locale without UTF-8, starts again in Python's UTF-8 mode.

    Otherwise a path with an é would be another text here than in the child processes, in databases and in URLs. What
    is printed stays in the user's encoding.
    """
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv[:-1] else ""
    ours = module.startswith(PROGRAMS) or Path(sys.argv[0]).name == "vae"
    if not ours or sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _ignore(environment: Environment) -> Iterator[str]:
    for name in [name for name in environment if name.startswith(SET_OR_EMPTY) and not environment[name].strip()]:
        del environment[name]  # to the libraries, an empty address is one
    for rule in IGNORED:
        names = sorted(filter(rule.matches, environment))
        for name in names:
            del environment[name]
        if names and rule.why:
            yield f"{', '.join(names)} ignored: {rule.why}"


def _proxies(environment: Environment) -> Iterator[str]:
    """Proxies that no library here can use are dropped: HTTPX refuses every request for them, also past a proxy.

    The servers of this machine are reached without one.
    """
    named = [name for name in environment if name.lower() in PROXIES and environment[name]]
    for name in named:
        if reason := _unusable(environment[name]):
            del environment[name]
            yield f"{name} ignored: {reason}"
    if any(name in environment for name in named):
        direct = environment.get("no_proxy") or environment.get("NO_PROXY", "")
        hosts = [host for host in map(str.strip, direct.split(",")) if host]
        if "*" not in hosts:
            direct = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
        environment["no_proxy"] = environment["NO_PROXY"] = direct


def _unusable(proxy: str) -> str | None:
    """Why; without the address, which may hold a password."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        return "not the address of a proxy; expected http://HOST:PORT"
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme in ("socks5", "socks5h") and find_spec("socksio") and find_spec("socks"):
        return None
    return f"a proxy of the scheme {parts.scheme}:// cannot be used here; http:// can"


def _certificates(environment: Environment) -> Iterator[str]:
    """Those that do not exist, or hold no certificate, are dropped: libraries end on them, also without TLS."""
    for name in CERTIFICATES:
        if (value := environment.get(name)) and not _holds_certificates(Path(value), name):
            del environment[name]
            yield f"{name} ignored: there are no certificates at {value}"
    keys = environment.get("SSLKEYLOGFILE")
    if keys and not os.access(keys if Path(keys).exists() else Path(keys).absolute().parent, os.W_OK):
        del environment["SSLKEYLOGFILE"]
        yield f"SSLKEYLOGFILE ignored: {keys} cannot be written"


def _holds_certificates(path: Path, name: str) -> bool:
    if name == "SSL_CERT_DIR":
        return any(Path(folder).is_dir() for folder in str(path).split(os.pathsep))
    if path.is_dir():
        return not name.endswith("_FILE")
    try:
        return b"-----BEGIN " in path.read_bytes()
    except OSError:
        return False


def _port(environment: Environment) -> Iterator[str]:
    port = environment.get("VAE_TRAIN_MLFLOW_PORT") or "5000"
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        del environment["VAE_TRAIN_MLFLOW_PORT"]
        yield f"VAE_TRAIN_MLFLOW_PORT ignored: {port!r} is not a port; 5000 is used"


def _lift_strictness(environment: Environment) -> None:
    """What the interpreter took from the environment when it started: this process would end as its children would."""
    if environment.get("PYTHONWARNINGS"):
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
    for stream in (sys.stdout, sys.stderr):  # a character that the user's encoding lacks is escaped
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or stream.encoding.lower() != "utf-8"):
            stream.reconfigure(errors="backslashreplace")
