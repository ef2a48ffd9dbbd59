"""What a flow run is called, and what the server does by itself."""

import logging
import re
from typing import Any
from uuid import UUID

import httpx
import pytest
from helpers.workspaces import Workspace
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.orchestration import SyncPrefectClient

from flows import automations, away, experiments, runs


@pytest.mark.parametrize(
    ("experiment", "overrides", "name"),
    [
        (None, None, "params"),
        ("leaves", {"train.epochs": 2}, "leaves-epochs=2"),
        ("collapse/photos-beta", {}, "collapse-photos-beta"),
        (None, {"data.path": "/home/me/my phötos/", "kl.max_weight": 0.5}, "params-path=my-ph-tos-max-weight=0.5"),
        (None, {"model": {"latent_dim": 4}, "model.widths": [8, 16]}, "params-model=latent-dim-4-widths=8-16"),
        (
            "leaves",
            {f"a.key{number}": number for number in range(12)},
            "leaves-key0=0-key1=1-key2=2-key3=3-key4=4-key5=5-key6=6-key7=7-key8=8-ke",
        ),
    ],
)  # fmt: skip
def test_a_name_says_what_ran(experiment: str | None, overrides: dict[str, object], name: str) -> None:
    assert runs.called(experiment, overrides) == name


@given(st.text(), st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text()))))
def test_any_name_is_bounded_and_of_characters_that_git_dvc_and_files_take(
    experiment: str, overrides: dict[str, object]
) -> None:
    name = runs.called(experiment, overrides)
    assert re.fullmatch(r"[A-Za-z0-9.=-]+", name)
    assert len(name) <= runs.LONGEST
    assert experiments.unique(name, "0" * 32, set()), "and DVC has one for it"


def test_only_a_server_that_does_not_answer_is_kept_from_the_terminal() -> None:
    def record(error: Exception) -> logging.LogRecord:
        return logging.LogRecord("prefect.flow_runs", 40, "", 0, "oh", None, (type(error), error, None))

    assert not away.worth_a_line(record(httpx.ConnectError("[Errno 111] Connection refused")))
    assert away.worth_a_line(record(ValueError("a fault of the program")))
    assert away.explains("Task run encountered an exception ConnectError: [Errno 111] Connection refused")
    assert not away.explains("train: it was killed") and not away.explains(None)


# With the servers of the tests


def test_the_server_has_each_automation_once_and_leaves_it_off_if_its_owner_has_paused_it(served: Workspace) -> None:
    def existing() -> dict[str, Any]:
        found = served.ask_prefect("automations/filter")
        assert len(found) == 2, "`make up` twice makes none twice"
        return {automation["name"]: automation for automation in found}

    first, second = (automation.name for automation in automations.automations())
    assert [action["type"] for action in existing()[first]["actions"]] == ["change-flow-run-state"]
    assert [action["type"] for action in existing()[second]["actions"]] == ["pause-deployment"]
    expected = existing()[first]["trigger"]["expect"]
    assert "prefect.flow-run.Unhealthy" in expected, "else an unhealthy run is set to Crashed"

    paused = served.python("-m", "prefect", "automation", "pause", first)
    assert paused.code == 0, paused.output
    assert served.python("-m", "flows.automations").code == 0
    assert [existing()[name]["enabled"] for name in (first, second)] == [False, True]


def test_the_deployment_describes_itself_and_has_a_schedule_that_is_off(served: Workspace) -> None:
    deployment = served.ask_prefect("deployments/filter")[0]
    assert "**preflight**" in deployment["description"] and "Args" not in deployment["description"]
    properties = deployment["parameter_openapi_schema"]["properties"]
    assert all(len(properties[name]["description"]) > 60 for name in ("experiment", "overrides"))
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]


def test_a_schedule_that_is_switched_on_makes_runs_and_switched_off_takes_them_back(served: Workspace) -> None:
    found = served.ask_prefect("deployments/filter")[0]
    deployment, schedule = UUID(found["id"]), UUID(found["schedules"][0]["id"])
    scheduled = {"flow_runs": {"tags": {"all_": ["auto-scheduled"]}}}
    # Prefect's own client tries again where the server is busy (503).
    with SyncPrefectClient(f"http://127.0.0.1:{served.prefect_port}/api") as client:
        client.update_deployment_schedule(deployment, schedule, active=True)
        # What the server itself does once a minute:
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={})
        made = served.ask_prefect("flow_runs/filter", **scheduled)
        client.update_deployment_schedule(deployment, schedule, active=False)
    assert made and {run["state"]["type"] for run in made} == {"SCHEDULED"}
    assert served.ask_prefect("flow_runs/filter", **scheduled) == []
