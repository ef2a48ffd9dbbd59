"""A workspace to ingest into."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.project import PROJECT
from ruamel.yaml import YAML


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a workspace with these data parameters the working folder."""
    monkeypatch.chdir(tmp_path)

    def make(**data: Any) -> Path:
        params = YAML().load(PROJECT / "params.yaml")
        params["data"].update(data)
        YAML().dump(params, tmp_path / "params.yaml")
        return tmp_path

    return make
