"""What libraries are told before anything imports them."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# As `tasks.workspace.root`, which imports too much to be asked here.
_ROOT = Path(os.environ.get("DVC_ROOT") or PROJECT).resolve()

# What libraries would otherwise keep in the home folder stays in the project.
os.environ.setdefault("MPLCONFIGDIR", str(_ROOT / ".run" / "matplotlib"))
os.environ.setdefault("HF_HOME", str(_ROOT / ".run" / "huggingface"))

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # whatever a shell has set
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A server that is down is given up within seconds, not minutes: what it misses is sent later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# Seconds between two looks at processor, memory, disk, network and, where nvidia-ml-py is there, GPU.
os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "10")
