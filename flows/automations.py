"""What the Prefect server does by itself, without any account: `python -m flows.automations`, and `make up`.

Prefect Cloud watches over runs; a server of one's own does so once it is told. An automation is created where
it is missing and brought up to date where it stands; whether it is switched on stays as its owner left it.
"""

from datetime import timedelta

from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    EventTrigger,
    PauseDeployment,
    Posture,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import get_current_settings

from tasks.processes import entry

FLOW: dict[str, str | list[str]] = {"prefect.resource.role": "flow", "prefect.resource.name": "vae-train"}
# Where a run follows its scheduling within five minutes, the server holds this event back for a quarter of an hour:
# it waits for one that its scheduler never sends.
SCHEDULED: dict[str, str | list[str]] = {
    "prefect.resource.role": "tag",
    "prefect.resource.id": "prefect.tag.auto-scheduled",
}
HEARTBEATS_MISSED = 3

# A state is known by its name: without Unhealthy here, such a run would be set to Crashed.
ENDS = ("Completed", "Failed", "Unhealthy", "Cancelled", "Crashed", "Paused", "Suspended")


def wanted() -> list[AutomationCore]:
    heartbeat = get_current_settings().flows.heartbeat_frequency or 180
    silence = timedelta(seconds=HEARTBEATS_MISSED * heartbeat)
    return [
        AutomationCore(
            name="vae-train: a run without heartbeats has crashed",
            description=f"A flow run that has said nothing for {silence} is set to Crashed: its process was killed "
            "or its machine is off. It would be Running for ever, and the deployment's next run would wait for it.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in ENDS)},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=FLOW,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=silence,
            ),
            # The client leaves out what is not set: without its type the server takes an action for another one.
            actions=[
                ChangeFlowRunState(
                    type="change-flow-run-state",
                    name=None,
                    state=StateType.CRASHED,
                    message=f"no heartbeat for {silence}",
                    force=False,
                )
            ],
        ),
        AutomationCore(
            name="vae-train: a schedule pauses after a bad run",
            description="Where a run that a schedule started ends Unhealthy, Failed or Crashed, the schedules are "
            "paused: the next run would most likely end so too. Look at its verdict, then switch the deployment on "
            "again. Runs started by hand are neither meant nor stopped by it.",
            trigger=EventTrigger(
                expect={f"prefect.flow-run.{name}" for name in ("Unhealthy", "Failed", "Crashed")},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=[FLOW, SCHEDULED],
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[PauseDeployment(type="pause-deployment", source="inferred", deployment_id=None)],
        ),
    ]


def create() -> None:
    """Creates the automations, or brings them up to date; as often as one likes."""
    with get_client(sync_client=True) as client:
        for automation in wanted():
            standing = client.read_automations_by_name(automation.name)
            if not standing:
                client.create_automation(automation)
            for one in standing:
                client.update_automation(one.id, automation.model_copy(update={"enabled": one.enabled}))


if __name__ == "__main__":
    entry.run(create)
