"""Settings of libraries, made before anything imports them."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

__path__.append(str(PROJECT / "tasks" / "old_names"))  # `python -m tasks.zoo` and other former names

# The same as `tasks.workspace.root`, which imports too much for this place.
_ROOT = Path(os.environ.get("DVC_ROOT") or PROJECT).resolve()

# Keep in the project what libraries would keep in the home folder.
os.environ.setdefault("MPLCONFIGDIR", str(_ROOT / ".run" / "matplotlib"))
os.environ.setdefault("HF_HOME", str(_ROOT / ".run" / "huggingface"))

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # whatever a shell has set
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# Give up on a server within seconds, not minutes; what it misses is sent later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# Seconds between two samples of processor, memory, disk, network and (with nvidia-ml-py) GPU.
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "10")
