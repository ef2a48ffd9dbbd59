"""A run as a person names it on the command line: by its id or name, or by the model that it made."""

import re
import shutil
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from tasks import workspace
from tasks.cli import named_model
from tasks.tracking import registry, store
from vae.config.errors import InputError
from vae.config.files import writing, written_aside
from vae.models.files import weights_hash

_RUN_NAME = re.compile(r"[\w.=+-]+")  # such as those of flow runs: leaves-epochs=2-20260131-120000


def find(name: str) -> Run:
    """A run by its id or name, or the run that evaluated a model, which is named as for `--model`.

    Raises:
        InputError: there is none.
    """
    client, experiment = store.connect()
    path = Path(name).expanduser()
    try:
        if found := re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})(?:/.*)?", name):
            return client.get_run(found[1])
        if _RUN_NAME.fullmatch(name) and not path.exists() and (run := _of_name(client, experiment, name)):
            return run
        if not named_model.in_mlflow(name):
            if run := store.find(client, experiment, f"tags.`{store.WEIGHTS}` = '{weights_hash(path)}'"):
                return run
            raise InputError(f"MLflow has no run of the weights in {name}")
        version = registry.version_at(named_model.uri_of(name))
        if run := registry.run_behind(client, version):
            return run
        raise InputError(f"{name}: the run of version {version.version} was deleted from MLflow")
    except MlflowException as error:
        raise InputError(f"{name}: {store.reason_of(error)}") from None


def _of_name(client: MlflowClient, experiment: str, name: str) -> Run | None:
    """The latest run of that name, given with or without the verdict at its end."""
    like = f"attributes.run_name LIKE '{name}%'"
    for run in client.search_runs([experiment], like, order_by=["attributes.start_time DESC"]):
        its = str(run.info.run_name)
        if name in (its, its.removesuffix(f"-{run.data.tags.get(store.VERDICT)}")):
            return run
    return None


def report(name: str | None, to: Path | None) -> Path:
    """The report of a run, or the latest one of the workspace; or a copy of it.

    Raises:
        InputError: there is none, or it cannot be copied.
    """
    file = named_model.here(workspace.REPORT) if name is None else _downloaded(find(name))
    if not file.exists():
        raise InputError(f"{file} does not exist; `dvc repro` creates it")
    if to is None:
        return file
    with writing(to), written_aside(to) as aside:  # `to` may be a link into DVC's cache
        shutil.copyfile(file, aside)
    return to


def _downloaded(run: Run) -> Path:
    place = workspace.root() / ".run" / "reports" / run.info.run_id
    try:
        place.mkdir(parents=True, exist_ok=True)
        return Path(download_artifacts(run_id=run.info.run_id, artifact_path="report.html", dst_path=str(place)))
    except (MlflowException, OSError) as error:
        raise InputError(f"report of run {run.info.run_name} unavailable: {store.reason_of(error)}") from None
