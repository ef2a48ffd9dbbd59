"""The flow `vae-train`: the stages of dvc.yaml, one by one, each a Prefect task.

`python -m flows.vae_train` runs it here and now; the deployment `vae-train/vae-train` runs it on a worker.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, cast
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from prefect.tasks import Task
from prefect.utilities.urls import url_for

from flows import artifacts, away, experiments, runs, stage
from flows.progress import Progress
from tasks import data_path, overlay, workspace
from tasks.processes import dvc_files, entry, events
from tasks.processes.events import Follower
from tasks.processes.lock import hold
from tasks.tracking import lineage
from vae.config import loading
from vae.config.errors import InputError
from vae.config.parameters import Parameters

STAGES = ("ingest", "validate", "preflight", "train", "monitor", "evaluate")
UNHEALTHY = "Unhealthy"


DESCRIPTION = """Turns a folder of images into a tracked, versioned, judged variational autoencoder.
Each task is a stage of `dvc.yaml`:

1. **ingest** decodes, resizes and splits the images; what cannot be used is quarantined with its reason
2. **validate** checks files, labels, splits and leakage; a broken rule stops the run
3. **preflight** predicts the KL at this KL weight, and warns where posterior collapse lies ahead
4. **train** trains, and goes on from the last epoch where it was interrupted
5. **monitor** measures the saved model anew and gives the verdict
6. **evaluate** takes the test split: ELBO, pictures, report, registered model

What the change of a parameter does not touch is found `Cached` (it stands here already) or `Restored` (DVC
brought it back). A run ends `Completed`, `Failed`, or `Unhealthy`: the model is there, and its verdict says
what is wrong with it and what to change. The artifact `verdict` tells it in words, numbers and a picture.
"""


@flow(name="vae-train", flow_run_name=runs.name, description=DESCRIPTION, validate_parameters=True)
def vae_train(experiment: str | None = None, overrides: dict[str, Any] | None = None) -> State:
    """Runs the stages, keeps the results as a DVC experiment, and ends as the verdict says.

    Args:
        experiment: The name of a file in experiments/ without its ending, such as leaves, laid over the defaults.
            Without one, params.yaml stands as it is.
        overrides: Single parameters of params.yaml, such as {"train.epochs": 2, "data.path": "photos"}. They are
            written into params.yaml.
    """
    log = get_run_logger()
    try:
        with hold(workspace.root() / ".run" / "workspace.lock", f"flow run {flow_run.name}"), runs.recorded():
            dvc_files.free_dvc(workspace.root())
            for change in overlay.apply(experiment, overrides, check=lambda p: data_path.check(p.data)):
                log.info(change)
            p = loading.load(workspace.PARAMS)
            runs.tag(f"data:{p.data.source}", *([f"experiment:{experiment}"] if experiment else []))
            something_ran = False
            for name in STAGES:
                state = run_stage.with_options(name=name, task_run_name=name)(name, return_state=True)
                if not state.is_completed():
                    artifacts.end_dead_runs()
                    return Failed(message=state.message)
                something_ran |= state.name not in ("Cached", "Restored")
            return finish(p, something_ran)
    except InputError as error:
        log.error(str(error))
        return Failed(message=str(error))


def _worth_another_try(task: Task[..., Any], run: TaskRun, state: State) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, stage.StageFailed) and error.may_be_retried


@task(retries=2, retry_delay_seconds=5, retry_condition_fn=_worth_another_try, persist_result=False)
def run_stage(name: str) -> State:
    """One stage of dvc.yaml, in a process of its own. A retry of `train` resumes from its last checkpoint."""
    log = get_run_logger()
    say, environment = _logged(log), _lineage()
    if name == "train":
        path = workspace.root() / ".run" / "events" / f"{flow_run.id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of an earlier try
        say, environment[events.FILE] = _progress(log, Follower(path)), str(path)
    try:
        outcome = stage.run(name, say, environment)
    except stage.StageFailed as failure:
        if failure.may_be_retried:
            raise
        return Failed(message=str(failure))
    finally:
        if name == "validate":
            artifacts.validation(create_table_artifact)
    if name == "monitor":
        artifacts.verdict(create_table_artifact)
    if name == "evaluate":
        artifacts.reconstructions(create_image_artifact)
    return Completed(name=outcome, message=f"{name}: {outcome.lower()}")


def finish(p: Parameters, something_ran: bool) -> State:
    """The results kept as an experiment; the verdict as an artifact, and as the state of the flow run."""
    monitor = workspace.read_json(workspace.MONITOR)
    artifacts.point_candidate(p.evaluate.register_as)
    get_run_logger().info(experiments.keep(str(flow_run.name), str(flow_run.id), something_ran))
    artifacts.origin(create_link_artifact)
    runs.tag(f"verdict:{monitor['verdict']}")
    create_markdown_artifact(
        artifacts.summary(), key="verdict", description="The verdict, and where to look next"
    )
    message = f"{monitor['verdict']}: {monitor['summary']}"
    if monitor["verdict"] != "healthy" and p.monitor.on_unhealthy == "fail":
        return Failed(name=UNHEALTHY, message=message)
    return Completed(message=message)


def _lineage() -> dict[str, str]:
    return {
        lineage.FLOW_RUN_ID: str(flow_run.id),
        lineage.FLOW_RUN_NAME: str(flow_run.name),
        lineage.FLOW_RUN_URL: url_for("flow-run", obj_id=flow_run.id) or "",
        lineage.OVERLAY: flow_run.parameters.get("experiment") or "",
    }


Logger: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"


def _logged(log: Logger) -> Callable[[str], None]:
    """A stage's line, at the level that it begins with."""

    def say(line: str) -> None:
        level = logging.WARNING if line.startswith("warning: ") else logging.INFO
        log.log(level, line.removeprefix("warning: "))

    return say


def _progress(log: Logger, follower: Follower) -> Callable[[str], None]:
    """Logs each line, and keeps a progress artifact at the share of epochs that is done.

    Where the server is away the training goes on, and the artifact is tried once more at its end.
    """
    progress, logged = Progress(), _logged(log)
    artifact: UUID | None = None  # made by the first event of a training, so that a cached one leaves none
    answers = True

    def say(line: str) -> None:
        nonlocal artifact, answers
        logged(line)
        for event in follower.new():
            now = progress.after(event, time.monotonic())
            if now is None or (not answers and event["event"] != "kept"):
                continue
            try:
                if artifact is None:
                    made = create_progress_artifact(0.0, key="training", description="before the first epoch")
                    artifact = cast(UUID, made)
                update_progress_artifact(artifact, *now)
                answers = True
            except httpx.TransportError:
                if answers:
                    log.warning(
                        "Prefect's server does not answer; the training goes on, and its progress is not shown"
                    )
                answers = False

    return say


def main(experiment: str = "", settings: str = "") -> int:
    """Runs the flow in this process; returns the exit code: 3 for an unhealthy model."""
    from flows import servers

    try:
        overrides = overlay.parse_settings(settings)
        away.quiet()
        with servers.prefect_server():
            state: State = vae_train(experiment or None, overrides or None, return_state=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return entry.INPUT_ERROR
    except httpx.TransportError:
        runs.leave_open()
        print(f"error: {away.sentence()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    if state.is_completed() or state.name == UNHEALTHY:
        run = state.state_details.flow_run_id
        page = url_for("flow-run", obj_id=run) if run else None
        print(artifacts.closing(Path.cwd(), experiment, settings, page))
    if state.name == UNHEALTHY:
        return 3
    if not state.is_completed():
        gone = away.is_meant(state.message)
        print(f"error: {away.sentence() if gone else state.message}", file=sys.stderr)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    import typer

    def command(experiment: str = "", set: str = "") -> None:
        raise typer.Exit(main(experiment, set))

    typer.run(command)
