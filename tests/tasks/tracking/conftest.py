"""A workspace with a store of its own."""

from pathlib import Path

import pytest
from helpers.commands import write_images
from mlflow import MlflowClient

from tasks import workspace
from tasks.tracking import lineage, store


@pytest.fixture
def client(new_store: bytes, empty_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The client of an empty store, and images to be judged on."""
    for name in (lineage.FLOW_RUN_ID, lineage.FLOW_RUN_NAME, lineage.FLOW_RUN_URL, lineage.EXPERIMENT_NAME):
        monkeypatch.delenv(name, raising=False)
    (empty_workspace / "mlflow.db").write_bytes(new_store)
    write_images()
    workspace.PARAMS.write_text("seed: 0\n")  # all others have their defaults
    return store.connect()[0]
