"""The flow `vae-train`: the stages of dvc.yaml, one by one, each a Prefect task.

    ingest → validate → preflight → train → monitor → evaluate

`python -m flows.vae_train` runs it here and now; the deployment `vae-train/vae-train` runs it on a worker.
"""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
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

from flows import artifacts, experiments, runs, stage
from tasks import lineage, overlay, source, workspace
from tasks.lock import free_dvc, hold
from vae import parameters
from vae.errors import InputError

STAGES = ("ingest", "validate", "preflight", "train", "monitor", "evaluate")
UNHEALTHY = "Unhealthy"
_EPOCH = re.compile(r"^(?:attempt \d+: )?epoch (\d+)/(\d+)  ")


@flow(name="vae-train", flow_run_name=runs.name, description=__doc__, validate_parameters=True)
def vae_train(experiment: str | None = None, overrides: dict[str, Any] | None = None) -> State:
    """Turns a folder of images into a tracked, versioned, judged VAE.

    Args:
        experiment: the name of a file in experiments/, laid over the defaults.
        overrides: single parameters, such as {"train.epochs": 2}.
    """
    log = get_run_logger()
    try:
        with hold(workspace.root() / ".run" / "workspace.lock", f"flow run {flow_run.name}"), runs.recorded():
            free_dvc(workspace.root())
            for change in overlay.apply(experiment, overrides, check=lambda p: source.check(p.data)):
                log.info(change)
            p = parameters.load(workspace.PARAMS)
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
    """One stage of dvc.yaml. A retry of `train` resumes from its last checkpoint."""
    log = get_run_logger()
    say = _progress(log) if name == "train" else log.info
    try:
        outcome = stage.run(name, say, _lineage())
    except stage.StageFailed as failure:
        if failure.may_be_retried:
            raise
        return Failed(message=str(failure))
    finally:
        if name == "validate":
            artifacts.validation(create_table_artifact)
    if name == "monitor":
        artifacts.verdict(create_table_artifact)
    return Completed(name=outcome, message=f"{name}: {outcome.lower()}")


def finish(p: parameters.Parameters, something_ran: bool) -> State:
    """The results kept as an experiment; the verdict as an artifact, and as the state of the flow run."""
    monitor = workspace.read_json(workspace.MONITOR)
    artifacts.point_candidate(p.evaluate.register_as)
    get_run_logger().info(experiments.keep(str(flow_run.name), str(flow_run.id), something_ran))
    artifacts.origin(create_link_artifact)
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


def _progress(log: "logging.Logger | logging.LoggerAdapter[logging.Logger]") -> Callable[[str], None]:
    """Logs each line, and keeps a progress artifact at the share of epochs that is done."""
    artifact: UUID | None = None  # made by the first line of a training, so that a cached one leaves none

    def say(line: str) -> None:
        nonlocal artifact
        log.info(line)
        if artifact is None:
            made = create_progress_artifact(0.0, key="training", description="Share of the epochs")
            artifact = cast(UUID, made)
        if epoch := _EPOCH.match(line):
            update_progress_artifact(artifact, 100 * int(epoch[1]) / int(epoch[2]))
        elif line.startswith("kept epoch"):
            update_progress_artifact(artifact, 100.0)

    return say


def main(experiment: str = "", settings: str = "") -> int:
    """Runs the flow in this process; returns the exit code: 3 for an unhealthy model."""
    from flows import servers

    try:
        overrides = overlay.parse_settings(settings)
        with servers.prefect_server():
            state: State = vae_train(experiment or None, overrides or None, return_state=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return workspace.INPUT_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    if state.is_completed() or state.name == UNHEALTHY:
        print(artifacts.closing(Path.cwd(), experiment, settings))
    if state.name == UNHEALTHY:
        return 3
    if not state.is_completed():
        lost = "; Prefect's server is gone, and what was finished is kept: run the same command again"
        away = "connection attempts failed" in (state.message or "")
        print(f"error: {state.message}{lost if away else ''}", file=sys.stderr)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    import typer

    def command(experiment: str = "", set: str = "") -> None:
        raise typer.Exit(main(experiment, set))

    typer.run(command)
