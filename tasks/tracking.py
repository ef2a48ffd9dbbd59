"""MLflow: one run for one trained model, found again by the hash of its weights."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # whatever a shell has set
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A server that is down is given up within seconds, not minutes: what it misses is sent later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks import alive, lineage, unsent, workspace
from tasks.lock import hold
from tasks.promotion import Champion, decide
from vae import saved as saved_files
from vae.facts import Origin
from vae.parameters import Parameters
from vae.saved import Saved

EXPERIMENT = "vae-train"
_SERVED_WITH = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "ruamel.yaml", "safetensors", "torch")
WEIGHTS, PRIOR, INITIAL_WEIGHTS = "weights.sha256", "prior.sha256", "initial_weights.sha256"
EVALUATED = "evaluated."  # the commit whose code made the final metrics, which may be a later one
VERDICT = "verdict"
CANDIDATE, CHAMPION = "candidate", "champion"
SILENCE = 60  # seconds without another try, where the store did not answer

_open: list[unsent.Training] = []  # the trainings that are told of, the innermost last
_silent_until = 0.0


def connect() -> tuple[MlflowClient, str]:
    """The store: MLFLOW_TRACKING_URI where it is set, else the SQLite file of the workspace.

    The first use creates or migrates the database, which two processes may not do at once. What an earlier
    training could not tell is sent, and the runs of dead processes are ended.

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
        experiment_id = mlflow.set_experiment(EXPERIMENT).experiment_id
        for run_id in unsent.send_kept(client, experiment_id):
            print(f"MLflow answers again: what it missed of run {run_id} is sent")
        for run_id in alive.left_behind(_running()):
            if _exists(client, run_id) and client.get_run(run_id).info.status == "RUNNING":
                client.set_tag(run_id, "ended", "KILLED")
                client.set_terminated(run_id, "KILLED")
    return client, experiment_id


@contextmanager
def away(what: str) -> Iterator[None]:
    """Where the store does not answer, that is told and the work goes on; it is not asked again for a minute."""
    global _silent_until
    try:
        yield
    except Exception as error:
        if not unsent.is_away(error):
            raise
        _silent_until = time.monotonic() + SILENCE
        if _open:
            _open[-1].behind = True
        reason = str(error).strip().splitlines()[0][:200]
        print(f"WARNING: MLflow at {mlflow.get_tracking_uri()}: {reason}; {what}", flush=True)


def _answers() -> bool:
    """Whether the open training's run has all that was told so far; where the store was away, it is sent now."""
    training = _open[-1]
    if training.behind and time.monotonic() >= _silent_until:
        with away(_GOES_ON):
            unsent.send(*connect(), training)
            if mlflow.active_run() is None:
                mlflow.start_run(training.run_id)
            print("MLflow answers again: what it missed is sent", flush=True)
    return not training.behind


_GOES_ON = "the training goes on; what it missed is sent when it answers again"


@contextmanager
def training_run(
    name: str | None, remembered: Path, tags: Mapping[str, str], nested: bool = False
) -> Iterator[Run | None]:
    """A run that ends FINISHED, FAILED, or KILLED where a signal ended the training; None where MLflow is away.

    Args:
        remembered: a file with the id of the run, which an interrupted training goes on with.
        nested: within the run that is active: an attempt of a training that may be remedied.
    """
    resume = remembered.read_text() if remembered.exists() else None
    name = name or os.environ.get(lineage.EXPERIMENT_NAME)
    training, run = unsent.Training(name, dict(tags), resume), None
    _open.append(training)
    with ExitStack() as stack:
        with away(_GOES_ON):
            client, _ = connect()
            known = resume is not None and _exists(client, resume)
            run = mlflow.start_run(
                run_id=resume if known else None, run_name=None if known else name, nested=nested
            )
            training.run_id = run.info.run_id
            training.tags["resumed"] = str(known).lower()
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text(training.run_id)
            stack.enter_context(alive.noted(_running(), training.run_id, {"pid": os.getpid()}))
            mlflow.set_tags(training.tags)
        training.status = "FAILED"
        try:
            yield run
            training.status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            training.status = "KILLED"
            raise
        finally:
            _end(training)


def _end(training: unsent.Training) -> None:
    """Closes the innermost run; keeps what the store could not be told."""
    training.tags["ended"] = training.status
    if time.monotonic() >= _silent_until:
        with away(_GOES_ON):
            if training.behind:
                unsent.send(*connect(), training)
            elif training.run_id:
                MlflowClient().set_tag(training.run_id, "ended", training.status)
    _open.pop()
    if mlflow.active_run() is not None:
        with away("its run is ended when it answers again"):
            mlflow.end_run(training.status)
    if training.behind:
        kept = unsent.keep(training)
        print(f"WARNING: MLflow does not answer: {kept} holds what it missed, and the next run sends it")


def log_inputs(p: Parameters, train_images: np.ndarray, valid_images: np.ndarray) -> None:
    """Parameters as the user wrote them, the machine, and the data sets by name and digest: what a run lacks of them.

    `params.yaml` and `dvc.lock` go in as they stand, so that `tasks.reproduce` can put them back.
    """
    flat = {
        f"{section}.{key}": value
        for section, values in p.model_dump().items()
        if isinstance(values, dict)
        for key, value in values.items()
    } | {"seed": p.seed}
    tags = lineage.machine()
    if p.train.initial_weights:
        tags[INITIAL_WEIGHTS] = workspace.sha256(Path(p.train.initial_weights))
    _open[-1].parameters.update(flat)
    _tag(tags)
    if not _answers():
        return
    with away(_GOES_ON):
        run = mlflow.active_run()
        known = {} if run is None else run.data.params
        mlflow.log_params({name: value for name, value in flat.items() if name not in known})
        for path in (workspace.PARAMS, lineage.LOCK):
            if path.exists():
                mlflow.log_artifact(str(path))
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
    _open[-1].history |= {int(row["epoch"]): row for row in history}
    _open[-1].behind = True
    _answers()


def log_attempt(run_id: str | None, verdict: str, reasons: list[str], changes: list[str]) -> None:
    """What an attempt changed of the parameters and how it ended, into the run of that attempt."""
    if run_id is None:
        return
    client = MlflowClient()
    tags = {VERDICT: verdict, "reasons": "; ".join(reasons), "changes": "; ".join(changes) or "none"}
    with away("the verdict of an attempt is not in its run"):
        for name, value in tags.items():
            client.set_tag(run_id, name, value)


def log_remedy(verdict: str, changes: str, attempts: int) -> None:
    """How the kept attempt ended and what it changed, into the run of the training."""
    _tag({VERDICT: verdict, "remedy": changes, "attempts": str(attempts)})


def log_weights(sha256: str, kept_epoch: int, stopped: str | None) -> None:
    _tag({WEIGHTS: sha256, "kept_epoch": str(kept_epoch), "stopped": stopped or "no"})


def _tag(tags: dict[str, str]) -> None:
    _open[-1].tags |= tags
    if _answers():
        with away(_GOES_ON):
            mlflow.set_tags(tags)


def log_epoch(row: Mapping[str, float], timing: Mapping[str, float], grid: np.ndarray | None) -> None:
    """The history's row, the timing, and a grid of reconstructions (H, W, 3) uint8 as a step image."""
    step = int(row["epoch"])
    told = _answers()
    _open[-1].history[step] = {**row, **timing}
    if not told:
        return
    with away(_GOES_ON):
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
    make_report: Callable[[Origin], str],
    p: Parameters,
) -> str:
    """Metrics, plots, report and model into the run of these weights; returns the model's URI.

    make_report gives the report as HTML with what the tracked one can not have: links, and the champion.
    """
    run = run_of(saved.sha256)
    client, run_id = MlflowClient(), run.info.run_id
    evaluated = {EVALUATED + name: value for name, value in lineage.git().items()}
    for name, value in {**lineage.stage("train"), **evaluated, VERDICT: monitor["verdict"]}.items():
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
            workspace.SUMMARY,
            workspace.LATENTS,
            workspace.MONITOR,
            workspace.PREFLIGHT,
            workspace.VALIDATION,
            workspace.HISTORY,
            workspace.KL_PER_LATENT,
            workspace.PARAMS,
            lineage.LOCK,
        ):
            if report.exists():
                mlflow.log_artifact(str(report))
        version_uri = _register(client, saved, run_id, p.evaluate.register_as, monitor["verdict"])
        champion = champion_of(client, p.evaluate.register_as)
        sentence = None
        if p.promote.mode == "dry_run":
            sentence = _promotion(run, champion, monitor["verdict"], metrics["test"]["elbo"])
            mlflow.set_tag("promotion", sentence)
            print(f"promotion (dry run): {sentence}")
        mlflow.log_text(make_report(origin(client.get_run(run_id), sentence, champion)), "report.html")
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
    if url and url.startswith(("http://", "https://")):  # a tag is anyone's who reaches the store
        found.append((f"Prefect flow run {run.data.tags.get('prefect.flow_run_name', '')}".rstrip(), url))
    return found


def origin(run: Run, promotion: str | None, champion: tuple[str, Run] | None) -> Origin:
    """Where a run comes from, with links, and the champion that it stands against."""
    tags = run.data.tags
    rows: list[tuple[str, str, str | None]] = [("MLflow run", run.info.run_name, run_url(run))]
    if commit := tags.get("git.commit"):
        changed = ", with changes that were not committed" if tags.get("git.dirty") == "true" else ""
        rows.append(("Git commit", commit[:12] + changed, lineage.commit_url(commit)))
    if url := tags.get("prefect.flow_run_url"):
        rows.append(("Prefect flow run", tags.get("prefect.flow_run_name", url), url))
    if stage := tags.get("dvc.train"):
        rows.append(("Entry of train in dvc.lock", f"SHA-256 {stage[:12]}…", None))
    if champion is None:
        return Origin(rows, promotion)
    version, its_run = champion
    if its_run.info.run_id == run.info.run_id:
        return Origin([*rows, ("Champion", f"this model, version {version}", None)], promotion)
    metrics = {
        name.removeprefix("test/"): value
        for name, value in its_run.data.metrics.items()
        if name.startswith("test/")
    }
    same_data = its_run.data.tags.get("data.sha256") == tags.get("data.sha256")
    name = f"the champion, version {version}" + ("" if same_data else ", which was tested on other data")
    return Origin(rows, promotion, (name, metrics))


def champion_of(client: MlflowClient, name: str) -> tuple[str, Run] | None:
    """The version that bears the alias `champion`, and the run that made it."""
    if CHAMPION not in client.get_registered_model(name).aliases:
        return None
    version = client.get_model_version_by_alias(name, CHAMPION)
    return version.version, client.get_run(version.run_id or "")


def run_url(run: Run) -> str:
    return f"{workspace.mlflow_url()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def artifact_url(run: Run, path: str) -> str:
    """Where a browser gets a file of the run's artifacts."""
    return f"{workspace.mlflow_url()}/get-artifact?{urlencode({'path': path, 'run_uuid': run.info.run_id})}"


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
    return _promotion(run, champion_of(client, version.name), verdict, run.data.metrics.get("test/elbo"))


def _promotion(run: Run, champion: tuple[str, Run] | None, verdict: str, test_elbo: float | None) -> str:
    its = None
    if champion is not None:
        version, its_run = champion
        its = Champion(version, its_run.data.metrics.get("test/elbo"), its_run.data.tags.get("data.sha256"))
    return decide(verdict, test_elbo, run.data.tags.get("data.sha256"), its)


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


def _running() -> Path:
    """Notes of the runs that processes of this workspace work for."""
    return workspace.root() / ".run" / "mlflow_runs"


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False
