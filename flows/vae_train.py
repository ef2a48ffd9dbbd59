"""The flow `vae-train`: the stages of dvc.yaml, one by one, each a Prefect task.

`python -m flows.vae_train` runs it here and now; the deployment `vae-train/vae-train` runs it on a worker.
"""

import logging
import sys
from typing import Annotated, Any

import httpx
import typer
from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from prefect.tasks import Task
from prefect.utilities.urls import url_for

from flows import artifacts, away, experiments, progress, runs, servers, stage
from tasks import data_path, overlay, workspace
from tasks.host import addresses, place
from tasks.processes import dvc_files, entry, events
from tasks.processes.lock import hold
from tasks.processes.owner import OwnedDVC
from tasks.tracking import lineage
from vae.config import loading
from vae.config.errors import InputError
from vae.config.parameters import Parameters

STAGES = ("ingest", "validate", "preflight", "train", "monitor", "evaluate")
UNHEALTHY = "Unhealthy"

_loading: OwnedDVC | None = None  # by `main`, while Prefect starts

DESCRIPTION = """Turns a folder of images into a tracked, versioned, judged variational autoencoder.
Each task is a stage of `dvc.yaml`:

1. **ingest** decodes, resizes and splits the images; unusable files are quarantined with the reason
2. **validate** checks files, labels, splits and leakage; a broken rule stops the run
3. **preflight** predicts the KL at this KL weight, and warns if posterior collapse is ahead
4. **train** trains, and resumes an interrupted training after its last epoch
5. **monitor** measures the saved model again and gives the verdict
6. **evaluate** uses the test split: ELBO, pictures, report, registered model

A stage that a changed parameter does not affect is `Cached` (its outputs are here already) or `Restored` (DVC
brought them back). A run ends `Completed`, `Failed`, or `Unhealthy`: there is a model, and the verdict says
what is wrong with it and what to change. The artifact `verdict` has the details.
"""


@flow(name="vae-train", flow_run_name=runs.name, description=DESCRIPTION, validate_parameters=True)
def vae_train(experiment: str | None = None, overrides: dict[str, Any] | None = None) -> State:
    """Runs the stages, keeps the results as a DVC experiment, and ends as the verdict says.

    Args:
        experiment: The name of a file in experiments/ without its ending, such as leaves, laid over the defaults.
            Without one, params.yaml is used as it is.
        overrides: Single parameters of params.yaml, such as {"train.epochs": 2, "data.path": "photos"}. They are
            written into params.yaml.
    """
    log = get_run_logger()
    try:
        with (
            hold(workspace.root() / ".run" / "workspace.lock", f"flow run {flow_run.name}"),
            runs.recorded(),
            freed_dvc() as dvc,
        ):
            addresses.tracking_uri()
            if wrong := place.configure_dvc():
                log.info("%s; changed in .dvc/config.local", wrong)
            for change in overlay.apply(experiment, overrides, check=check_inputs):
                log.info(change)
            p = loading.load(workspace.PARAMS)
            runs.tag(f"data:{p.data.source}", *([f"experiment:{experiment}"] if experiment else []))
            something_ran = False
            for name in STAGES:
                state = run_stage.with_options(name=name, task_run_name=name)(name, dvc, return_state=True)
                if not state.is_completed():
                    from flows import tracking  # takes seconds to load

                    tracking.end_dead_runs()
                    return Failed(message=state.message)
                something_ran |= state.name not in ("Cached", "Restored")
            return finish(p, something_ran, dvc)
    except InputError as error:
        log.error(str(error))
        return Failed(message=str(error))


def check_inputs(p: Parameters) -> None:
    """Before anything is written. Raises: InputError: the images or the frozen network cannot be used."""
    data_path.check(p.data)
    if p.objective.uses_features:
        from vae.features import network  # loads PyTorch

        network.file_of(p.objective.features)


def freed_dvc() -> OwnedDVC:
    """What runs the stages: it loads while the parameters are read. A lock that a killed DVC has left is removed."""
    dvc_files.free_dvc(workspace.root())
    return _loading or OwnedDVC()


def _worth_another_try(task: Task[..., Any], run: TaskRun, state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, stage.StageFailed) and error.may_be_retried


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=_worth_another_try, persist_result=False)
def run_stage(name: str, dvc: OwnedDVC) -> State:
    """One stage of dvc.yaml, in a process of its own. A retry of `train` resumes from its last checkpoint."""
    log, environment, shown = get_run_logger(), _lineage(), None
    if name == "train":
        path = workspace.root() / ".run" / "events.jsonl"
        path.unlink(missing_ok=True)  # of the training before
        environment[events.FILE], shown = str(path), progress.Artifact(path, log.warning)

    def say(line: str) -> None:
        logged(log, line)
        if shown:
            shown.update()

    try:
        outcome = stage.run(name, say, environment, dvc)
    except stage.StageFailed as failure:
        if failure.may_be_retried:
            raise
        return Failed(message=str(failure))
    finally:
        if name == "validate":
            artifacts.validation()
    if name == "preflight":
        artifacts.curve()
    if name == "monitor":
        artifacts.verdict()
    return Completed(name=outcome, message=f"{name}: {outcome.lower()}")


def finish(p: Parameters, something_ran: bool, dvc: OwnedDVC) -> State:
    """The results kept as an experiment; the verdict as an artifact, and as the state of the flow run."""
    from flows import tracking  # takes seconds to load

    monitor = workspace.read_json(workspace.MONITOR)
    tracking.point_candidate(p.evaluate.register_as)
    logged(get_run_logger(), experiments.keep(str(flow_run.name), str(flow_run.id), something_ran, dvc))
    artifacts.page(tracking.results())
    runs.tag(f"verdict:{monitor['verdict']}")
    message = f"{monitor['verdict']}: {monitor['summary']}"
    if monitor["verdict"] != "healthy" and p.monitor.on_unhealthy == "fail":
        return Failed(name=UNHEALTHY, message=message)
    return Completed(message=message)


def check_mlflow() -> None:
    """Raises: InputError: MLFLOW_TRACKING_URI leads nowhere. This folder's own store needs no server."""
    if addresses.tracking_uri():
        from flows import tracking  # takes seconds to load

        tracking.connect()


def open_store() -> None:
    """Loads MLflow, and at the first run creates its database: seconds, in which Prefect starts."""
    from flows import tracking  # takes seconds to load

    tracking.prepare()


def _lineage() -> dict[str, str]:
    return {
        lineage.FLOW_RUN_ID: str(flow_run.id),
        lineage.FLOW_RUN_NAME: str(flow_run.name),
        lineage.FLOW_RUN_URL: url_for("flow-run", obj_id=flow_run.id) or "",
        lineage.OVERLAY: flow_run.parameters.get("experiment") or "",
    }


def logged(log: "logging.Logger | logging.LoggerAdapter[logging.Logger]", line: str) -> None:
    """A line of a stage at the level that it begins with: `warning: `, `error: `, or none."""
    word, colon, text = line.partition(": ")
    level = {"warning": logging.WARNING, "error": logging.ERROR}.get(word if colon else "")
    log.log(level or logging.INFO, text if level else line)


def main(experiment: str = "", settings: Annotated[str, typer.Option("--set")] = "") -> None:
    """Runs the flow in this process. Exit codes: 0, 1, 2 for bad input, 3 for an unhealthy model, 130."""
    global _loading
    entry.log_to("stdout")
    away.quiet()
    try:
        overrides = overlay.parse_settings(settings)
        check_inputs(overlay.proposed(experiment or None, overrides))
        check_mlflow()
        with OwnedDVC() as _loading, servers.prefect_server(meanwhile=open_store):
            state: State = vae_train(experiment or None, overrides or None, return_state=True)
    except InputError as error:
        raise _failed(str(error), entry.INPUT_ERROR) from None
    except httpx.TransportError:
        runs.leave_open()
        raise _failed(away.sentence()) from None
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        raise typer.Exit(entry.INTERRUPTED) from None
    if not (state.is_completed() or state.name == UNHEALTHY):
        raise _failed(away.sentence() if away.explains(state.message) else str(state.message))
    from flows import tracking  # takes seconds to load

    run = state.state_details.flow_run_id
    page = url_for("flow-run", obj_id=run) if run else None
    print(artifacts.closing(tracking.links(), experiment, settings, page))
    raise typer.Exit(3 if state.name == UNHEALTHY else 0)


def _failed(error: str, code: int = 1) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
