"""MLflow's registry: a version for each model, with the aliases `candidate` and `champion`."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks import PROJECT, workspace
from tasks.tracking import pages
from tasks.tracking.store import VERDICT, WEIGHTS
from vae.models import saved as saved_files
from vae.models.saved import Saved

CANDIDATE, CHAMPION = "candidate", "champion"
# Tags of a version, beside those of `store`. Its run is the latest that evaluated it, not always the one that made it.
PRIOR, RUN = "prior.sha256", "run_id"
LIKELIHOOD, IMAGE = "likelihood", "image"

_SERVED_WITH = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "ruamel.yaml", "safetensors", "torch")


def register(client: MlflowClient, saved: Saved, run_id: str, name: str, verdict: str) -> ModelVersion:
    """Logs the model into the active run and registers it as the candidate; the same model is registered once."""
    number = version_with(client, name, saved.sha256, prior_hash())
    if number is None:
        logged = _log(saved)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=pages.of_name(name))
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


def _log(saved: Saved) -> Any:
    channels, height, width = saved.config.image_shape
    example = np.zeros((2, height, width, channels), np.uint8)
    return mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"vae": str(workspace.MODEL)},
        code_paths=[str(PROJECT / "vae")],
        signature=_signature(),
        input_example=(example, {"task": "encode"}),
        pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in _SERVED_WITH],
    )


def _signature() -> Any:
    """Of the parameters alone: images come as arrays of any size or as base64 strings, for which MLflow has no type."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import DataType, ParamSchema, ParamSpec

    return ModelSignature(params=ParamSchema([ParamSpec("task", DataType.string, "encode")]))


def prior_hash() -> str:
    """Of the fitted prior beside the weights, which makes another model of the same ones; `none` without one."""
    path = workspace.MODEL / saved_files.PRIOR_FILE
    return workspace.sha256(path) if path.exists() else "none"


def version_with(client: MlflowClient, name: str, weights_sha256: str, prior: str) -> str | None:
    """The registered version with these weights; a name that is not registered yet has none."""
    versions = client.search_model_versions(f"name = '{name}'")
    wanted = (weights_sha256, prior)
    return next(
        (v.version for v in versions if (v.tags.get(WEIGHTS), v.tags.get(PRIOR, "none")) == wanted), None
    )


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that bears the alias `champion`."""
    if CHAMPION not in client.get_registered_model(name).aliases:
        return None
    return client.get_model_version_by_alias(name, CHAMPION)


def run_behind(client: MlflowClient, version: ModelVersion) -> Run | None:
    """The run that evaluated a version last; None where it was removed."""
    try:
        return client.get_run(version.tags.get(RUN) or version.run_id or "")
    except MlflowException as error:
        if error.get_http_status_code() >= 500:
            raise
        return None


def test_metrics(run: Run) -> dict[str, float]:
    """The metrics of the test split, by their names without the split."""
    found = run.data.metrics.items()
    return {name.removeprefix("test/"): value for name, value in found if name.startswith("test/")}
