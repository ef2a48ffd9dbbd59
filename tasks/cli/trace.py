"""Where a model came from: from an MLflow run, a commit, a train stage or a flow run to the other three."""

import re

from mlflow.entities import Run

from tasks import workspace
from tasks.host import git
from tasks.tracking import lineage, store
from vae.config.errors import InputError

_MOST = 1000  # runs that one commit is searched for
_NAME = re.compile(r"\w[\w./:@^~ -]*")  # no quotes and no options: it goes into searches and to Git


def find(name: str) -> list[Run]:
    """The runs of an MLflow run or flow run (id or name), commit, DVC experiment or stage hash, the latest first.

    Raises:
        InputError: nothing has that name.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a valid name of a run, commit or experiment")
    client, experiment = store.connect()
    for condition in (
        f"attributes.run_id = '{name}'",
        f"tags.`prefect.flow_run_id` = '{name}'",
        f"tags.`prefect.flow_run_name` = '{name}'",
        f"tags.`{store.STAGE}` LIKE '{name}%'",
        f"attributes.run_name = '{name}'",
        f"tags.`dvc.experiment` = '{name}'",
        *_of_revision(name),
    ):
        if found := client.search_runs([experiment], condition, max_results=_MOST):
            parents = (run.data.tags.get("mlflow.parentRunId") for run in found)  # of which a run is one attempt
            return [client.get_run(parent) if parent else run for run, parent in zip(found, parents, strict=True)]
    unasked = f"; commits and experiments were not searched: {reason}" if (reason := git.refusal()) else ""
    raise InputError(
        f"no MLflow run found for {name!r}: it is not a known run, flow run, commit or train stage{unasked}"
    )


def _of_revision(name: str) -> list[str]:
    """The searches for a commit: for what was trained at it, and for what its dvc.lock records."""
    revision = next((ref for ref in git.experiments() if ref.endswith(f"/{name}")), name)
    commit = git.says("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if commit is None:
        return []
    stage = lineage.stage_hash(git.says("show", f"{commit}:{workspace.LOCK}") or "", "train")
    searches = [f"tags.`{store.STAGE}` = '{stage}'"] if stage else []
    trained_at = f"tags.`git.commit` = '{commit}'"
    # An experiment's commit holds results; a person's commit is one to train at.
    return [*searches, trained_at] if revision != name else [trained_at, *searches]
