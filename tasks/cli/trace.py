"""Who made this: `python -m tasks.trace [ANY]`, from any one of four to the other three.

ANY is an MLflow run (id or name), a Git commit or DVC experiment, the hash of the train stage in dvc.lock,
or a Prefect flow run (id or name); without it, the model that stands in this workspace.
"""

import re
import sys

from mlflow import MlflowClient
from mlflow.entities import Run

from tasks.processes import entry, git
from tasks.tracking import lineage, store
from vae.config.errors import InputError

STAGE = "dvc.train"
_MOST = 1000  # runs that one commit is searched for
_SAFE = re.compile(r"\w[\w./:@^~ -]*")


def main() -> None:
    if len(sys.argv) > 2 or sys.argv[1:2] in (["-h"], ["--help"]):
        raise InputError("usage: python -m tasks.trace [RUN | COMMIT | EXPERIMENT | STAGE HASH | FLOW RUN]")
    runs = find(sys.argv[1]) if sys.argv[1:] else [store.run_here()]
    for run in runs:
        print("\n".join(f"{what:<12}{value}" for what, value in described(run)), end="\n\n")


def find(what: str) -> list[Run]:
    """The runs that belong to it, the latest first.

    Raises:
        InputError: nothing is known by that name.
    """
    if not _SAFE.fullmatch(what):
        raise InputError(f"{what!r} is the name of no run, commit or experiment")
    client, experiment = store.connect()
    for condition in (
        f"attributes.run_id = '{what}'",
        f"tags.`prefect.flow_run_id` = '{what}'",
        f"tags.`prefect.flow_run_name` = '{what}'",
        f"tags.`{STAGE}` LIKE '{what}%'",
        f"attributes.run_name = '{what}'",
        f"tags.`dvc.experiment` = '{what}'",
        *_of_revision(what),
    ):
        if found := list(client.search_runs([experiment], condition, max_results=_MOST)):
            return [_whole(client, run) for run in found]
    raise InputError(
        f"{what!r} leads to no MLflow run: no run, flow run, commit or train stage of that name is known"
    )


def described(run: Run) -> list[tuple[str, str]]:
    """(what, value): the run, its commit, its train stage and its flow run, as far as they are known."""
    tags = run.data.tags
    changed = ", ".join(filter(None, tags.get("git.changed", "").split("\n")))
    dirty = f", dirty: {changed or 'it does not say what'}" if tags.get("git.dirty") == "true" else ", clean"
    flow = "none: it was run by dvc"
    if "prefect.flow_run_id" in tags:
        name, url = (tags.get(f"prefect.flow_run_{part}", "") for part in ("name", "url"))
        flow = f"{name} ({tags['prefect.flow_run_id']}) {url}"
    return [
        ("MLflow run", f"{run.info.run_name} ({run.info.run_id}) {store.run_url(run)}"),
        ("commit", tags["git.commit"] + dirty if "git.commit" in tags else "not known"),
        (STAGE, tags.get(STAGE, "not known: the run was not evaluated")),
        ("flow run", flow),
        ("weights", tags.get(store.WEIGHTS, "none")),
    ]


def _of_revision(what: str) -> list[str]:
    """The searches for a commit: what was trained at it, and what its dvc.lock records."""
    revision = next((ref for ref in git.experiments() if ref.endswith(f"/{what}")), what)
    commit = git.says("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if commit is None:
        return []
    hashed = lineage.stage_hash(git.says("show", f"{commit}:{lineage.LOCK}") or "", "train")
    searches = [f"tags.`{STAGE}` = '{hashed}'"] if hashed else []
    trained_at = f"tags.`git.commit` = '{commit}'"
    # An experiment's commit holds results; a person's commit is one to train at.
    return [*searches, trained_at] if revision != what else [trained_at, *searches]


def _whole(client: MlflowClient, run: Run) -> Run:
    """The training that a run is one attempt of."""
    parent = run.data.tags.get("mlflow.parentRunId")
    return client.get_run(parent) if parent else run


if __name__ == "__main__":
    entry.run(main)
