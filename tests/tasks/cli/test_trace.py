"""From any one of MLflow run, commit, train stage and flow run to the other three, on what the flow has made."""

import subprocess
from typing import Any

import pytest
from helpers.workspaces import ByFlow, stand_in
from mlflow.entities import Run

from tasks.cli import trace
from tasks.tracking import store
from vae.config.errors import InputError

pytestmark = pytest.mark.timeout(600)  # the first test waits for both workspaces


@pytest.fixture
def run(by_flow: ByFlow, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The MLflow run of the first flow run."""
    stand_in(by_flow.place.folder, monkeypatch)
    client, experiment = store.connect()
    condition = f"tags.`prefect.flow_run_id` = '{by_flow.first.flow_run}'"
    (found,) = client.search_runs([experiment], condition)
    return found


def ids(what: str) -> list[str]:
    return [found.info.run_id for found in trace.find(what)]


def test_each_of_the_four_leads_to_the_run_and_the_run_to_all_four(by_flow: ByFlow, run: Run) -> None:
    tags: dict[str, Any] = run.data.tags
    only = [run.info.run_id]
    assert ids(run.info.run_id) == ids(by_flow.first.flow_run) == ids(tags["prefect.flow_run_name"]) == only
    assert ids(tags["dvc.train"][:12]) == only
    assert run.info.run_id in ids("HEAD"), "among what was trained at this commit"
    told = dict(store.described(run))
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert told["commit"] == f"{head.stdout.strip()}, clean"
    assert run.info.run_id in told["MLflow run"] and by_flow.first.flow_run in told["flow run"]
    assert (told["dvc.train"], told["weights"]) == (tags["dvc.train"], tags["weights.sha256"])


def test_an_experiment_leads_to_the_run_whose_results_it_holds(run: Run) -> None:
    name = run.data.tags["prefect.flow_run_name"]
    refs = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert len(refs) == 1, "the flow run is kept as an experiment"
    renamed = f"{refs[0].rpartition('/')[0]}/renamed"
    subprocess.run(["git", "update-ref", renamed, refs[0]], check=True)
    assert ids("renamed") == [run.info.run_id]


def test_an_unknown_name_is_an_error(run: Run) -> None:
    with pytest.raises(InputError, match="no MLflow run found"):
        trace.find("nonsense")
    for name in ("it's", "--all", ""):
        with pytest.raises(InputError, match="is not a valid name"):
            trace.find(name)
