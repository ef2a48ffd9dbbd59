"""Which model: what a person names on the command line, found on disk or in MLflow."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import workspace
from vae.config.errors import InputError

if TYPE_CHECKING:  # MLflow and PyTorch take seconds to import, and not every command needs them
    import torch

    from vae.models.saved import Saved

_URI = re.compile(r"(models|runs|mlflow-artifacts|file|s3|gs|https?):/.+")
ALIAS = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Named:
    """A model and where it was found."""

    saved: "Saved"
    place: str

    def describe(self) -> dict[str, Any]:
        return {"place": self.place, "weights_sha256": self.saved.sha256}


def load(name: str | None, device: "torch.device | None" = None) -> Named:
    """A model by folder, MLflow URI (`models:/vae@candidate`, `runs:/…`), alias or version; None: `models/vae`.

    Raises:
        InputError: there is none.
    """
    from vae.models import saved

    if name is None:
        folder = here(workspace.MODEL)
        return Named(saved.load(folder, device), str(folder))
    if not in_mlflow(name):
        return Named(saved.load(Path(name).expanduser(), device), name)
    uri = model_uri(name)
    with tempfile.TemporaryDirectory(prefix="vae-model-") as aside:
        return Named(saved.load(_download(uri, Path(aside)), device), uri)


def model_uri(name: str) -> str:
    """`candidate` → `models:/vae@candidate`, `3` → `models:/vae/3`, `runs:/ID` → `runs:/ID/model`; URIs stay."""
    if name.startswith("runs:/"):
        return name if "/" in name.removeprefix("runs:/") else f"{name}/model"
    if _URI.fullmatch(name):
        return name
    return f"models:/{registered_name()}{'/' if name.isdecimal() else '@'}{name}"


def registered_name() -> str:
    """`evaluate.register_as` of the workspace."""
    from vae.config import loading

    return loading.load(here(workspace.PARAMS)).evaluate.register_as


def here(path: Path) -> Path:
    """A file of the workspace: in the working folder, where it is there, else in the project."""
    return path if path.exists() else workspace.root() / path


def version_of(name: str) -> Any:
    """The registered version behind an alias, a version number or a `models:/` URI.

    Raises:
        InputError: there is none.
    """
    from mlflow.exceptions import MlflowException

    from tasks.tracking import store

    client, _ = store.connect()
    uri = model_uri(name)
    parts = re.fullmatch(r"models:/([^/@]+)(?:@(.+)|/(\d+))", uri)
    if parts is None:
        raise InputError(
            f"{name} names no version of a registered model; such as candidate, 3, models:/vae@champion"
        )
    try:
        if parts[2]:
            return client.get_model_version_by_alias(parts[1], parts[2])
        return client.get_model_version(parts[1], parts[3])
    except MlflowException as error:
        raise InputError(f"{uri}: {reason_of(error)}{_known(client, parts[1])}") from None


def in_mlflow(name: str) -> bool:
    """A URI, or a bare word that is no file here."""
    if _URI.fullmatch(name):
        return True
    return not Path(name).expanduser().exists() and ALIAS.fullmatch(name) is not None


def _download(uri: str, aside: Path) -> Path:
    """The folder with the weights, of a model as `tasks.tracking.store` registers it."""
    import mlflow
    from mlflow.exceptions import MlflowException

    from tasks.tracking import store
    from vae.models import saved

    client, _ = store.connect()
    try:
        place = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(aside)))
    except (MlflowException, OSError) as error:
        name = re.match(r"models:/([^/@]+)", uri)
        raise InputError(f"{uri}: {reason_of(error)}{_known(client, name[1]) if name else ''}") from None
    found = sorted(place.rglob(saved.WEIGHTS_FILE))
    if len(found) != 1:
        raise InputError(
            f"{uri} holds {len(found)} files {saved.WEIGHTS_FILE}; one is wanted: a model of this project"
        )
    return found[0].parent


def _known(client: Any, name: str) -> str:
    """Aliases and versions that there are, for a message."""
    found = client.search_registered_models(f"name = '{name}'")
    if not found:
        return "; no model is registered yet: a run of the pipeline registers one"
    aliases = ", ".join(f"{alias} (version {version})" for alias, version in sorted(found[0].aliases.items()))
    return f"; known aliases: {aliases or 'none'}"


def reason_of(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", error)).split()).rstrip(".")
