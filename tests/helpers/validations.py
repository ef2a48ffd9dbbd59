"""What ingest and validate make of a folder or array, in this process."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks import ingest, validate, workspace
from vae.config.errors import InputError


def validated(path: str, promote: str = "dry_run", **data: Any) -> dict[str, dict[str, Any]]:
    """The rules that the source at `path` breaks, by name, as reports/validation.json has them.

    Works in the working folder; by default for the folder of images in it.
    """
    values = {"source": "folder", "image_size": 16, "path": path} | data
    parameters = {"data": values, "promote": {"mode": promote}}
    workspace.PARAMS.write_text(json.dumps(parameters), encoding="utf-8")  # JSON is YAML
    ingest.main(workers=1)
    with suppress(InputError):  # a broken rule
        validate.main()
    report = json.loads(workspace.VALIDATION.read_text(encoding="utf-8"))
    return {rule["name"]: rule for rule in report["rules"] if rule["count"]}


def pixels() -> np.ndarray:
    """(N, H, W, C): all images of the last ingest."""
    return np.concatenate([np.load(workspace.images(split)) for split in ("train", "valid", "test")])


def noted() -> dict[str, str]:
    """The note of each image that has one, by path."""
    manifest = pd.read_parquet(workspace.MANIFEST)
    return manifest.dropna(subset="note").set_index("path")["note"].to_dict()


def write(root: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)
