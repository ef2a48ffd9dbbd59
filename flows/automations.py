"""What the Prefect server does by itself, without any account: `python -m flows.automations`, and `make up`.

Prefect Cloud watches over runs; a self-hosted server needs automations for that. One that is missing is created, one
that exists is updated; whether it is enabled stays as its owner left it.
"""

from datetime import timedelta

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, PauseDeployment, Posture
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.settings import get_current_settings

from tasks.processes import entry

Matched = dict[str, str | list[str]]

FLOW_RUNS: Matched = {"prefect.resource.id": "prefect.flow-run.*"}
FLOW: Matched = {"prefect.resource.role": "flow", "prefect.resource.name": "vae-train"}
# If a run follows its scheduling within five minutes, the server holds this event back for a quarter of an hour:
# it waits for one that its scheduler never sends.
SCHEDULED: Matched = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.auto-scheduled"}
HEARTBEATS_MISSED = 3

# States by name: without Unhealthy here, such a run would be set to Crashed.
ENDS = ("Completed", "Failed", "Unhealthy", "Cancelled", "Crashed", "Paused", "Suspended")


def automations() -> list[AutomationCore]:
    heartbeat = get_current_settings().flows.heartbeat_frequency or 180
    silence = timedelta(seconds=HEARTBEATS_MISSED * heartbeat)
    return [
        AutomationCore(
            name="vae-train: a run without heartbeats has crashed",
            description=f"A flow run without a heartbeat for {silence} is set to Crashed: its process was killed "
            "or its machine is off. Otherwise it would stay Running, and the deployment's next run would wait forever.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in ENDS)},
                match=FLOW_RUNS,
                match_related=FLOW,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=silence,
            ),
            # The client omits what is not set; without its type the server takes an action for another one.
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
            description="When a scheduled run ends Unhealthy, Failed or Crashed, the schedules are paused: the next "
            "run would most likely end the same way. Look at its verdict, then enable the deployment again. Runs "
            "that were started by hand neither trigger this nor are stopped by it.",
            trigger=EventTrigger(
                expect={f"prefect.flow-run.{name}" for name in ("Unhealthy", "Failed", "Crashed")},
                match=FLOW_RUNS,
                match_related=[FLOW, SCHEDULED],
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[PauseDeployment(type="pause-deployment", source="inferred", deployment_id=None)],
        ),
    ]


def create() -> None:
    """Creates or updates the automations, as often as one likes."""
    with get_client(sync_client=True) as client:
        for automation in automations():
            existing = client.read_automations_by_name(automation.name)
            if not existing:
                client.create_automation(automation)
            for one in existing:
                client.update_automation(one.id, automation.model_copy(update={"enabled": one.enabled}))


if __name__ == "__main__":
    entry.run(create)
