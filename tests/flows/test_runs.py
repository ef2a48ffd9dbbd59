"""What a flow run is called and shows of its progress, and what the server does by itself."""

import logging
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.workspaces import Workspace
from hypothesis import given
from hypothesis import strategies as st

from flows import artifacts, automations, away, experiments, runs
from flows.progress import EVERY, Progress, clock


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
            "leaves-key0=0-key1=1-key2=2-key3=3-key4=4-key5=5-key6=6-key7=7-key8=8-3-more",
        ),
    ],
)  # fmt: skip
def test_a_name_says_what_ran(experiment: str | None, overrides: dict[str, object], name: str) -> None:
    assert runs.called(experiment, overrides) == name


@given(
    st.text(), st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())))
)
def test_any_name_is_bounded_and_of_characters_that_git_dvc_and_files_take(
    experiment: str, overrides: dict[str, object]
) -> None:
    name = runs.called(experiment, overrides)
    assert re.fullmatch(r"[A-Za-z0-9.=-]+", name)
    assert len(name) <= runs.LONGEST + len("-999-more")
    assert experiments.unique(name, "0" * 32, set()), "and DVC has one for it"


def test_the_name_of_an_experiment_is_that_of_the_flow_run() -> None:
    name = "leaves-epochs=2-max-weight=0.5-20260131-120000"
    assert experiments.unique(name, "0" * 32, set()) == name
    subprocess.run(["git", "check-ref-format", f"refs/exps/{name}"], check=True)


def epoch(number: int, of: int = 60, attempt: str = "") -> str:
    return (
        f"{attempt}epoch {number}/{of}  valid: reconstruction -8.24  KL 26.653  active 16/16  5,594 images/s"
    )


def test_progress_tells_epochs_speed_and_the_time_that_is_left() -> None:
    progress = Progress()
    assert progress.after("training on 1439 images of 16×16×1, cpu, fp32", 0.0) is None
    assert progress.after(epoch(1), 10.0) == (100 / 60, "epoch 1 of 60, 5,594 images/s")
    assert progress.after(epoch(2), 12.0) == (200 / 60, "epoch 2 of 60, 5,594 images/s, 1:56 left")
    assert progress.after(epoch(60), 128.0) == (100.0, "epoch 60 of 60, 5,594 images/s")
    assert progress.after("kept epoch 58 of the 60 trained", 129.0) == (
        100.0,
        "kept epoch 58 of the 60 trained",
    )


def test_a_resumed_training_counts_its_speed_from_where_it_resumed_and_so_does_an_attempt() -> None:
    progress = Progress()
    progress.after(epoch(51), 0.0)
    assert progress.after(epoch(53), 8.0) == (100 * 53 / 60, "epoch 53 of 60, 5,594 images/s, 0:28 left")
    again = progress.after(epoch(1, attempt="attempt 1: "), 100.0)
    assert again == (100 / 60, "attempt 1: epoch 1 of 60, 5,594 images/s")
    again = progress.after(epoch(2, attempt="attempt 1: "), 103.0)
    assert again == (200 / 60, "attempt 1: epoch 2 of 60, 5,594 images/s, 2:54 left")


def test_progress_is_updated_once_a_second_at_most_and_always_at_the_end() -> None:
    progress = Progress()
    updates = [progress.after(epoch(number, of=1000), number * 0.01) for number in range(1, 1001)]
    shown = [update for update in updates if update is not None]
    assert len(shown) <= 10 / EVERY + 1
    assert shown[-1][0] == 100.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (750, "12:30"), (11_100, "3:05:00"), (60, "1:00")]
)
def test_a_clock_reads_as_one(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_only_a_server_that_does_not_answer_is_kept_from_the_terminal() -> None:
    def record(error: Exception) -> logging.LogRecord:
        return logging.LogRecord("prefect.flow_runs", 40, "", 0, "oh", None, (type(error), error, None))

    assert not away.worth_a_line(record(httpx.ConnectError("[Errno 111] Connection refused")))
    assert away.worth_a_line(record(ValueError("a fault of the program")))
    assert away.is_meant("Task run encountered an exception ConnectError: [Errno 111] Connection refused")
    assert not away.is_meant("train: it was killed") and not away.is_meant(None)


# With the servers of the tests


def test_the_server_has_each_automation_once_as_it_is_meant_and_leaves_it_off_where_its_owner_wants(
    served: Workspace,
) -> None:
    def standing() -> dict[str, Any]:
        found = served.ask_prefect("automations/filter")
        assert len(found) == 2, "`make up` twice makes none twice"
        return {automation["name"]: automation for automation in found}

    first, second = (automation.name for automation in automations.wanted())
    assert [action["type"] for action in standing()[first]["actions"]] == ["change-flow-run-state"]
    assert [action["type"] for action in standing()[second]["actions"]] == ["pause-deployment"]
    expected = standing()[first]["trigger"]["expect"]
    assert "prefect.flow-run.Unhealthy" in expected, "else an unhealthy run is set to Crashed"

    paused = served.python("-m", "prefect", "automation", "pause", first)
    assert paused.code == 0, paused.output
    assert served.python("-m", "flows.automations").code == 0
    assert [standing()[name]["enabled"] for name in (first, second)] == [False, True]


def test_the_deployment_describes_itself_and_has_a_schedule_that_is_off(served: Workspace) -> None:
    deployment = served.ask_prefect("deployments/filter")[0]
    assert "**preflight**" in deployment["description"] and "Args" not in deployment["description"]
    properties = deployment["parameter_openapi_schema"]["properties"]
    assert all(len(properties[name]["description"]) > 60 for name in ("experiment", "overrides"))
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]


def test_a_schedule_that_is_switched_on_makes_runs_and_switched_off_takes_them_back(
    served: Workspace,
) -> None:
    deployment = served.ask_prefect("deployments/filter")[0]
    server, (schedule,) = f"http://127.0.0.1:{served.prefect_port}/api", deployment["schedules"]
    scheduled = {"flow_runs": {"tags": {"all_": ["auto-scheduled"]}}}
    with httpx.Client(base_url=f"{server}/deployments/{deployment['id']}", timeout=20) as client:
        client.patch(f"schedules/{schedule['id']}", json={"active": True}).raise_for_status()
        client.post("schedule", json={}).raise_for_status()  # what the server itself does once a minute
        made = served.ask_prefect("flow_runs/filter", **scheduled)
        client.patch(f"schedules/{schedule['id']}", json={"active": False}).raise_for_status()
    assert made and {run["state"]["type"] for run in made} == {"SCHEDULED"}
    assert served.ask_prefect("flow_runs/filter", **scheduled) == []


def test_pictures_are_embedded_only_while_they_are_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "a.png"
    assert artifacts.data_uri(picture) is None
    picture.write_bytes(b"abc")
    assert artifacts.data_uri(picture) == "data:image/png;base64,YWJj"
    monkeypatch.setattr(artifacts, "MOST_BYTES", 2)
    assert artifacts.data_uri(picture) is None
