"""MLflow's registry: one version per model, with the aliases `candidate` and `champion`."""

import re
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types.schema import DataType, ParamSchema, ParamSpec

from tasks import PROJECT, workspace
from tasks.tracking import pages, store
from tasks.tracking.store import VERDICT, WEIGHTS
from vae.config.errors import InputError
from vae.models.files import PRIOR_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    import torch

    from vae.models.saved import Saved

CANDIDATE, CHAMPION = "candidate", "champion"
# Tags of a version, besides those of `store`. RUN is the latest run that evaluated it, not always the one that made it.
PRIOR, RUN, LIKELIHOOD, IMAGE = "prior.sha256", "run_id", "likelihood", "image"

_SERVED_WITH = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "ruamel.yaml", "safetensors", "torch", "zuko")
# Of the parameters alone: images come as arrays of any size or as base64 strings, for which MLflow has no type.
_SIGNATURE = ModelSignature(
    params=ParamSchema(
        [
            ParamSpec("task", DataType.string, "encode"),
            ParamSpec("count", DataType.long, 16),
            ParamSpec("prior", DataType.string, "fitted"),
            ParamSpec("seed", DataType.long, 0),
        ]
    )
)


def register(client: MlflowClient, saved: "Saved", run_id: str, name: str, verdict: str) -> ModelVersion:
    """Logs the model into the run and registers it as the candidate; the same model is registered once."""
    number = version_with(client, name, saved.sha256, prior_hash())
    if number is None:
        logged = _log(saved, run_id)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=pages.render("model", name=name))
        source = f"models:/{logged.model_id}"
        number = client.create_model_version(name, source, run_id, model_id=logged.model_id).version
    channels, height, width = saved.config.image_shape
    tags = {
        WEIGHTS: saved.sha256,
        PRIOR: prior_hash(),
        VERDICT: verdict,
        RUN: run_id,
        LIKELIHOOD: saved.likelihood.kind,
        IMAGE: f"{height}×{width}×{channels}",
    }
    for tag, value in tags.items():
        client.set_model_version_tag(name, number, tag, value)
    client.set_registered_model_alias(name, CANDIDATE, number)
    return client.get_model_version(name, number)


def _log(saved: "Saved", run_id: str) -> ModelInfo:
    channels, height, width = saved.config.image_shape
    example = np.zeros((2, height, width, channels), np.uint8)
    with tempfile.TemporaryDirectory(prefix="vae-model-") as folder:
        # MLflow refuses links out of the folder, such as those into DVC's cache (`cache.type = symlink`).
        files = shutil.copytree(workspace.MODEL, Path(folder).resolve() / workspace.MODEL.name)
        return Model.log(  # unlike `mlflow.pyfunc.log_model`, it needs no active run, whose end would change the status
            artifact_path=None,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"vae": str(files)},
            code_paths=[str(PROJECT / "vae")],
            signature=_SIGNATURE,
            input_example=(example, {"task": "encode"}),
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in _SERVED_WITH],
        )


def prior_hash() -> str:
    """SHA-256 of the fitted prior, with which the same weights are another model; `none` without one."""
    path = workspace.MODEL / PRIOR_FILE
    return workspace.sha256(path) if path.exists() else "none"


def version_with(client: MlflowClient, name: str, weights_sha256: str, prior: str) -> str | None:
    """The registered version with these weights and this prior; a name that is not registered yet has none."""
    for one in client.search_model_versions(f"name = '{name}'"):
        if (one.tags.get(WEIGHTS), one.tags.get(PRIOR, "none")) == (weights_sha256, prior):
            return one.version
    return None


def point_candidate(weights_sha256: str, name: str) -> None:
    """Moves the alias `candidate` to the version with these weights, if they are registered."""
    client, _ = store.connect()
    number = version_with(client, name, weights_sha256, prior_hash())
    if number is not None:
        client.set_registered_model_alias(name, CANDIDATE, number)


def version_at(uri: str) -> ModelVersion:
    """The version behind `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.

    Raises:
        InputError: there is none.
    """
    client, _ = store.connect()
    parts = re.fullmatch(r"models:/([^/@]+)(?:@(.+)|/(\d+))", uri)
    if parts is None:
        raise InputError(f"{uri} is not a registered model; examples: candidate, 3, models:/vae@champion")
    name, alias, number = parts.groups()
    try:
        return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        raise InputError(f"{uri}: {store.reason_of(error)}{_known(client, name)}") from None


def load(uri: str, device: "torch.device | None" = None) -> "Saved":
    """A model of this project, by any URI that MLflow downloads from.

    Raises:
        InputError: there is none.
    """
    from vae.models import saved  # loads PyTorch, which takes seconds

    client, _ = store.connect()
    with tempfile.TemporaryDirectory(prefix="vae-model-") as folder:
        try:
            place = Path(download_artifacts(artifact_uri=uri, dst_path=folder))
        except (MlflowException, OSError) as error:
            name = re.match(r"models:/([^/@]+)", uri)
            known = _known(client, name[1]) if name else ""
            raise InputError(f"{uri}: {store.reason_of(error)}{known}") from None
        found = sorted(place.rglob(WEIGHTS_FILE))
        if len(found) != 1:
            raise InputError(f"{uri} holds {len(found)} files {WEIGHTS_FILE}; a model of this project has one")
        return saved.load(found[0].parent, device)


def _known(client: MlflowClient, name: str) -> str:
    """The aliases in use, for a message."""
    found = client.search_registered_models(f"name = '{name}'")
    if not found:
        return "; no model is registered yet: a run of the pipeline registers one"
    aliases = ", ".join(f"{alias} (version {version})" for alias, version in sorted(found[0].aliases.items()))
    return f"; known aliases: {aliases or 'none'}"


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version with the alias `champion`."""
    return store.if_there(client.get_model_version_by_alias, name, CHAMPION)


def run_behind(client: MlflowClient, version: ModelVersion) -> Run | None:
    """The run that evaluated a version last; None where it was removed."""
    return store.if_there(client.get_run, version.tags.get(RUN) or version.run_id or "")


def test_metrics(run: Run) -> dict[str, float]:
    """The metrics of the test split, by their names without the split."""
    found = run.data.metrics.items()
    return {name.removeprefix("test/"): value for name, value in found if name.startswith("test/")}
