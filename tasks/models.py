"""Which model, which run: what a person names on the command line, found on disk or in MLflow."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import workspace
from vae.errors import InputError

if TYPE_CHECKING:  # MLflow and PyTorch take seconds to import, and not every command needs them
    import torch
    from mlflow.entities import Run

    from vae.saved import Saved

_URI = re.compile(r"(models|runs|mlflow-artifacts|file|s3|gs|https?):/.+")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")


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
    from vae import saved

    if name is None:
        folder = here(workspace.MODEL)
        return Named(saved.load(folder, device), str(folder))
    if not _in_mlflow(name):
        return Named(saved.load(Path(name).expanduser(), device), name)
    uri = model_uri(name)
    with tempfile.TemporaryDirectory(prefix="vae-model-") as aside:
        return Named(saved.load(_download(uri, Path(aside)), device), uri)


def model_uri(name: str) -> str:
    """`candidate` → `models:/vae@candidate`, `3` → `models:/vae/3`, `runs:/ID` → `runs:/ID/model`; others as they are."""
    if name.startswith("runs:/"):
        return name if "/" in name.removeprefix("runs:/") else f"{name}/model"
    if _URI.fullmatch(name):
        return name
    return f"models:/{registered_name()}{'/' if name.isdecimal() else '@'}{name}"


def registered_name() -> str:
    """`evaluate.register_as` of the workspace."""
    from vae import parameters

    return parameters.load(here(workspace.PARAMS)).evaluate.register_as


def here(path: Path) -> Path:
    """A file of the workspace: in the working folder, where it is there, else in the project."""
    return path if path.exists() else workspace.root() / path


def find_run(name: str) -> "Run":
    """A run by its id or name, or the run that made a model, which is named as for `load`.

    Raises:
        InputError: there is none.
    """
    from mlflow.exceptions import MlflowException

    from tasks import tracking
    from vae import saved

    client, experiment = tracking.connect()

    def newest(condition: str) -> "Run | None":
        found = client.search_runs(
            [experiment], condition, order_by=["attributes.start_time DESC"], max_results=1
        )
        return found[0] if found else None

    bare = name.removeprefix("runs:/").split("/")[0]
    try:
        if re.fullmatch(r"[0-9a-f]{32}", bare):
            return client.get_run(bare)
        if not _in_mlflow(name):
            run = newest(f"tags.`{tracking.WEIGHTS}` = '{saved.weights_hash(_model_folder(name))}'")
            if run is None:
                raise InputError(f"MLflow has no run of the weights in {name}")
            return run
        run = newest(f"attributes.run_name = '{name}'") if _ALIAS.fullmatch(name) else None
        return run or client.get_run(version_of(name).run_id)
    except MlflowException as error:
        raise InputError(f"{name}: neither a run nor a model that MLflow knows: {_reason(error)}") from None


def version_of(name: str) -> Any:
    """The registered version behind an alias, a version number or a `models:/` URI.

    Raises:
        InputError: there is none.
    """
    from mlflow.exceptions import MlflowException

    from tasks import tracking

    client, _ = tracking.connect()
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
        raise InputError(f"{uri}: {_reason(error)}{_known(client, parts[1])}") from None


def _in_mlflow(name: str) -> bool:
    if _URI.fullmatch(name):
        return True
    return not Path(name).expanduser().exists() and _ALIAS.fullmatch(name) is not None


def _model_folder(name: str) -> Path:
    from vae import saved

    folder = Path(name).expanduser()
    if not (folder / saved.WEIGHTS).exists():
        raise InputError(f"{name} is no folder with a model: {saved.WEIGHTS} is missing")
    return folder


def _download(uri: str, aside: Path) -> Path:
    """The folder with the weights, of a model as `tasks.tracking` registers it."""
    import mlflow
    from mlflow.exceptions import MlflowException

    from tasks import tracking
    from vae import saved

    client, _ = tracking.connect()
    try:
        place = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(aside)))
    except (MlflowException, OSError) as error:
        name = re.match(r"models:/([^/@]+)", uri)
        raise InputError(f"{uri}: {_reason(error)}{_known(client, name[1]) if name else ''}") from None
    found = sorted(place.rglob(saved.WEIGHTS))
    if len(found) != 1:
        raise InputError(
            f"{uri} holds {len(found)} files {saved.WEIGHTS}; one is wanted: a model of this project"
        )
    return found[0].parent


def _known(client: Any, name: str) -> str:
    """Aliases and versions that there are, for a message."""
    found = client.search_registered_models(f"name = '{name}'")
    if not found:
        return "; no model is registered yet: a run of the pipeline registers one"
    aliases = ", ".join(f"{alias} (version {version})" for alias, version in sorted(found[0].aliases.items()))
    return f"; known aliases: {aliases or 'none'}"


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", error)).split())
