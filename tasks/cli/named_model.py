"""A model as a person names it on the command line: a folder, an MLflow URI, an alias or a version."""

import re
from pathlib import Path

import torch

from tasks import workspace
from vae.config import loading
from vae.models import saved
from vae.models.saved import Saved

_URI = re.compile(r"(models|runs|mlflow-artifacts|file|s3|gs|https?):/.+")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")


def load(name: str | None, device: torch.device) -> tuple[Saved, str]:
    """The model of that name (None: `models/vae`), and its folder or URI.

    Raises:
        InputError: there is none.
    """
    if name is not None and in_mlflow(name):
        from tasks.tracking import registry  # MLflow takes seconds to import, and a folder needs none of it

        return registry.load(uri_of(name), device), uri_of(name)
    folder = here(workspace.MODEL) if name is None else Path(name).expanduser()
    return saved.load(folder, device), str(folder)


def in_mlflow(name: str) -> bool:
    """Whether it is a URI, or a single word that is not a file here."""
    is_word = _ALIAS.fullmatch(name) is not None
    return _URI.fullmatch(name) is not None or (is_word and not Path(name).expanduser().exists())


def uri_of(name: str) -> str:
    """`candidate` → `models:/vae@candidate`, `3` → `models:/vae/3`, `runs:/ID` → `runs:/ID/model`; URIs stay."""
    if name.startswith("runs:/"):
        return name if "/" in name.removeprefix("runs:/") else f"{name}/model"
    if _URI.fullmatch(name):
        return name
    return f"models:/{registered_name()}{'/' if name.isdecimal() else '@'}{name}"


def registered_name() -> str:
    """`evaluate.register_as` of the workspace."""
    return loading.load(here(workspace.PARAMS)).evaluate.register_as


def here(path: Path) -> Path:
    """A file of the workspace: in the working folder if it is there, else in the project."""
    return path if path.exists() else workspace.root() / path
