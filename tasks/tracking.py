"""MLflow: one run for one trained model, found again by the hash of its weights."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks import lineage, workspace
from tasks.lock import hold
from tasks.promotion import Champion, decide
from vae import saved as saved_files
from vae.parameters import Parameters
from vae.saved import Saved

EXPERIMENT = "vae-train"
_SERVED_WITH = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "ruamel.yaml", "safetensors", "torch")
WEIGHTS, PRIOR = "weights.sha256", "prior.sha256"
VERDICT = "verdict"
CANDIDATE, CHAMPION = "candidate", "champion"


def connect() -> tuple[MlflowClient, str]:
    """The store: MLFLOW_TRACKING_URI where it is set, else the SQLite file of the workspace.

    The first use creates or migrates the database, which two processes may not do at once.

    Returns:
        A client, and the id of the experiment.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    root = workspace.root()
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}")
    with hold(root / ".run" / "mlflow.lock", "the set-up of MLflow's database", seconds=60):
        client = MlflowClient()  # makes the database already
        if client.get_experiment_by_name(EXPERIMENT) is None:
            # A server may own the artifacts; otherwise they lie beside the database, wherever it is opened from.
            remote = mlflow.get_tracking_uri().startswith("http")
            client.create_experiment(
                EXPERIMENT,
                None if remote else (root / "mlruns").as_uri(),
                tags={"mlflow.experimentKind": "custom_model_development"},  # the UI's pages for training
            )
    return client, mlflow.set_experiment(EXPERIMENT).experiment_id


@contextmanager
def training_run(
    name: str | None, remembered: Path, tags: Mapping[str, str], nested: bool = False
) -> Iterator[Run]:
    """A run that ends FINISHED, FAILED, or KILLED where a signal ended the training.

    Args:
        remembered: a file with the id of the run, which an interrupted training goes on with.
        nested: within the run that is active: an attempt of a training that may be remedied.
    """
    client, _ = connect()
    resume = remembered.read_text() if remembered.exists() else None
    known = resume is not None and _exists(client, resume)
    run = mlflow.start_run(run_id=resume if known else None, run_name=None if known else name, nested=nested)
    remembered.parent.mkdir(parents=True, exist_ok=True)
    remembered.write_text(run.info.run_id)
    status = "FAILED"
    try:
        mlflow.set_tags({**tags, "resumed": str(known).lower()})
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        mlflow.set_tag("ended", status)
        mlflow.end_run(status)


def log_inputs(p: Parameters, train_images: np.ndarray, valid_images: np.ndarray) -> None:
    """Parameters as the user wrote them, and the data sets by name, digest and size: what a run lacks of them."""
    run = mlflow.active_run()
    known = {} if run is None else run.data.params
    flat = {
        f"{section}.{key}": value
        for section, values in p.model_dump().items()
        if isinstance(values, dict)
        for key, value in values.items()
    } | {"seed": p.seed}
    mlflow.log_params({name: value for name, value in flat.items() if name not in known})
    for split, images in (("train", train_images), ("valid", valid_images)):
        digest = workspace.sha256(workspace.images(split))[:36]
        mlflow.log_input(
            mlflow.data.from_numpy(  # type: ignore[attr-defined]  # made at import, unseen by mypy
                images[:1], name=f"{p.data.source}-{split}", digest=digest
            ),
            context=split,
        )


def log_missing(history: list[dict[str, float]]) -> None:
    """Epochs that an interrupted training had no time to log."""
    run = mlflow.active_run()
    known = (
        set()
        if run is None
        else {m.step for m in MlflowClient().get_metric_history(run.info.run_id, "valid/kl")}
    )
    for row in history:
        if int(row["epoch"]) not in known:
            log_epoch(row, {}, None)


def log_attempt(run_id: str, verdict: str, reasons: list[str], changes: list[str]) -> None:
    """What an attempt changed of the parameters and how it ended, into the run of that attempt."""
    client = MlflowClient()
    tags = {VERDICT: verdict, "reasons": "; ".join(reasons), "changes": "; ".join(changes) or "none"}
    for name, value in tags.items():
        client.set_tag(run_id, name, value)


def log_remedy(verdict: str, changes: str, attempts: int) -> None:
    """How the kept attempt ended and what it changed, into the run of the training."""
    mlflow.set_tags({VERDICT: verdict, "remedy": changes, "attempts": str(attempts)})


def log_weights(sha256: str, kept_epoch: int, stopped: str | None) -> None:
    mlflow.set_tags({WEIGHTS: sha256, "kept_epoch": str(kept_epoch), "stopped": stopped or "no"})


def log_epoch(row: Mapping[str, float], timing: Mapping[str, float], grid: np.ndarray | None) -> None:
    """The history's row, the timing, and a grid of reconstructions (H, W, 3) uint8 as a step image."""
    step = int(row["epoch"])
    metrics = {name: value for name, value in {**row, **timing}.items() if name != "epoch"}
    mlflow.log_metrics(metrics, step=step)
    if grid is not None:
        mlflow.log_image(grid, key="reconstructions", step=step)


def run_of(weights_sha256: str) -> Run:
    """The run that made these weights; where the store has none, one is made from the files and says so."""
    client, experiment_id = connect()
    found = client.search_runs(
        [experiment_id],
        f"tags.`{WEIGHTS}` = '{weights_sha256}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return found[0] if found else _run_from_files(client, experiment_id, weights_sha256)


def log_evaluation(
    saved: Saved,
    metrics: Mapping[str, Mapping[str, float | None]],
    monitor: Mapping[str, Any],
    plots: Path,
    make_report: Callable[[list[tuple[str, str]]], str],
    p: Parameters,
) -> str:
    """Metrics, plots, report and model into the run of these weights; returns the model's URI.

    make_report gives the report as HTML with links added, which the tracked one can not have.
    """
    run = run_of(saved.sha256)
    client, run_id = MlflowClient(), run.info.run_id
    for name, value in {**lineage.stage("train"), VERDICT: monitor["verdict"]}.items():
        client.set_tag(run_id, name, value)
    numbers = {
        f"{split}/{name}": value
        for split, values in metrics.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }
    # Validation's curves keep their epochs; a final number stands under a name of its own.
    with mlflow.start_run(run_id=run_id):
        mlflow.log_metrics({name.replace("valid/", "final_valid/"): value for name, value in numbers.items()})
        mlflow.log_artifacts(str(plots), "plots")
        for report in (
            workspace.METRICS,
            workspace.MONITOR,
            workspace.PREFLIGHT,
            workspace.VALIDATION,
            workspace.HISTORY,
            workspace.KL_PER_LATENT,
        ):
            if report.exists():
                mlflow.log_artifact(str(report))
        version_uri = _register(client, saved, run_id, p.evaluate.register_as, monitor["verdict"])
        if p.promote.mode == "dry_run":
            sentence = _promotion(
                client, run, p.evaluate.register_as, monitor["verdict"], metrics["test"]["elbo"]
            )
            mlflow.set_tag("promotion", sentence)
            print(f"promotion (dry run): {sentence}")
        mlflow.log_text(make_report(links(MlflowClient().get_run(run_id))), "report.html")
    client.set_terminated(run_id, run.info.status)
    return version_uri


def point_candidate(weights_sha256: str, name: str) -> None:
    """Moves the alias `candidate` to the version with these weights, where the registry has one."""
    client, _ = connect()
    number = _version_of(client, name, weights_sha256, prior_hash())
    if number is not None:
        client.set_registered_model_alias(name, CANDIDATE, number)


def links(run: Run) -> list[tuple[str, str]]:
    """(label, URL) of all that a run came from, where it is known."""
    found = [("MLflow run " + run.info.run_name, run_url(run))]
    url = run.data.tags.get("prefect.flow_run_url")
    if url:
        found.append((f"Prefect flow run {run.data.tags.get('prefect.flow_run_name', '')}".rstrip(), url))
    return found


def run_url(run: Run) -> str:
    return f"{workspace.mlflow_url()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def _register(client: MlflowClient, saved: Saved, run_id: str, name: str, verdict: str) -> str:
    """Logs the model, registers it and moves the alias `candidate`; the same weights are registered once."""
    prior = prior_hash()
    number = _version_of(client, name, saved.sha256, prior)
    if number is None:
        height, width = saved.image_shape[1:]
        example = np.zeros((2, height, width, saved.image_shape[0]), np.uint8)
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"vae": str(workspace.MODEL)},
            code_paths=[str(Path(__file__).parent.parent / "vae")],
            signature=_signature(),
            input_example=(example, {"task": "encode"}),
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in _SERVED_WITH],
        )
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"models:/{logged.model_id}"
        number = client.create_model_version(name, source, run_id, model_id=logged.model_id).version
        client.set_model_version_tag(name, number, WEIGHTS, saved.sha256)
        client.set_model_version_tag(name, number, PRIOR, prior)
        client.set_model_version_tag(name, number, "run_id", run_id)
    client.set_model_version_tag(name, number, VERDICT, verdict)
    client.set_registered_model_alias(name, CANDIDATE, number)
    return f"models:/{name}/{number}"


def prior_hash() -> str:
    """Of the fitted prior beside the weights, which makes another model of the same ones; `none` without one."""
    path = workspace.MODEL / saved_files.PRIOR
    return workspace.sha256(path) if path.exists() else "none"


def _version_of(client: MlflowClient, name: str, weights_sha256: str, prior: str) -> str | None:
    """The registered version with these weights; a name that is not registered yet has none."""
    versions = client.search_model_versions(f"name = '{name}'")
    wanted = (weights_sha256, prior)
    return next(
        (v.version for v in versions if (v.tags.get(WEIGHTS), v.tags.get(PRIOR, "none")) == wanted), None
    )


def gate(client: MlflowClient, version: ModelVersion) -> str:
    """What `tasks.promotion` says of a registered version, from its run."""
    run = client.get_run(version.run_id or "")
    verdict = version.tags.get(VERDICT, "unknown")
    return _promotion(client, run, version.name, verdict, run.data.metrics.get("test/elbo"))


def _promotion(client: MlflowClient, run: Run, name: str, verdict: str, test_elbo: float | None) -> str:
    champion = None
    if CHAMPION in client.get_registered_model(name).aliases:
        version = client.get_model_version_by_alias(name, CHAMPION)
        its_run = client.get_run(version.run_id or "")
        champion = Champion(
            version.version, its_run.data.metrics.get("test/elbo"), its_run.data.tags.get("data.sha256")
        )
    return decide(verdict, test_elbo, run.data.tags.get("data.sha256"), champion)


def _signature() -> Any:
    """Of the parameters alone: images come as arrays of any size or as base64 strings, for which MLflow has no type."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import DataType, ParamSchema, ParamSpec

    return ModelSignature(params=ParamSchema([ParamSpec("task", DataType.string, "encode")]))


def _run_from_files(client: MlflowClient, experiment_id: str, weights_sha256: str) -> Run:
    run = client.create_run(
        experiment_id,
        tags={
            WEIGHTS: weights_sha256,
            "made_from_files": "true",
            **lineage.git(),
            **lineage.flow(),
            **lineage.data(),
        },
    )
    run_id = run.info.run_id
    print(f"the MLflow store has no run of these weights; made run {run.info.run_name} from the files")
    if workspace.HISTORY.exists():
        metrics = [
            Metric(str(name), float(value), 0, int(row["epoch"]))
            for row in pd.read_csv(workspace.HISTORY).to_dict("records")
            for name, value in row.items()
            if name != "epoch"
        ]
        for start in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics[start : start + 1000])
    client.set_terminated(run_id)
    return client.get_run(run_id)


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False
