"""A workspace to ingest into."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a workspace with these data parameters the working folder."""
    monkeypatch.chdir(tmp_path)

    def make(**data: Any) -> Path:
        (tmp_path / "params.yaml").write_text(json.dumps({"data": data}))  # JSON is YAML
        return tmp_path

    return make
