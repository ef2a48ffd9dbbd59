"""A run made again and compared bit for bit: `python -m tasks.reproduce RUN_ID [--ingest]`.

The run's commit in a temporary Git worktree, its parameters, its data (from DVC's cache or, with --ingest
or where the cache lacks it, from the source once more), and then every stage by force. All that this writes is
in the worktree: a stage finds stores, locks and checkpoints under DVC_ROOT, which is the worktree
there, and DVC commits nothing to the cache that it reads from.

Exits with 0 for identical, 1 for different, 2 where the run can not be made again.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML

from tasks import PROJECT, overlay, workspace
from tasks.cli import differences
from tasks.cli.differences import Difference
from tasks.processes import entry
from tasks.processes.lock import hold
from tasks.processes.owner import owned_dvc
from tasks.tracking import lineage, store
from vae.config import loading
from vae.config.errors import InputError
from vae.models import saved

DATA = (str(workspace.IMAGES), str(workspace.MANIFEST))
AFTER_DATA = "validate"  # the first stage that does not make the data
IDENTICAL, DIFFERENT = 0, 1

# Set for the run at hand, they would lead the repeated one to the user's own stores and servers.
_OF_THIS_PLACE = ("DVC_", "GIT_", "MLFLOW_", "PREFECT_", "VAE_TRAIN_")
_CHATTER = ("> ", "Use `dvc push`", "Updating lock file", "promotion", "report: ")


@dataclass(frozen=True)
class Recorded:
    """What a run left behind that it takes to make it again, and what to compare with.

    Attributes:
        changed: files that differed from the commit.
        parameters, lock: the texts of params.yaml and dvc.lock, the lock None where there was none.
        files: bytes of history.csv and metrics.json, as far as the run came.
    """

    run: Run
    commit: str
    changed: list[str]
    parameters: str
    lock: str | None
    files: dict[Path, bytes]

    @property
    def tags(self) -> dict[str, str]:
        return self.run.data.tags


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tasks.reproduce", description=__doc__)
    parser.add_argument("run_id", metavar="RUN_ID", help="of MLflow")
    parser.add_argument(
        "--ingest", action="store_true", help="read the source again, though DVC has the data"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the worktree goes, whatever ends this
    sys.exit(reproduce(options.run_id, options.ingest))


def reproduce(run_id: str, ingest: bool = False) -> int:
    """Makes a run again, prints how it compares; returns IDENTICAL or DIFFERENT.

    Raises:
        InputError: it can not be made again, and why.
    """
    recorded = read(run_id)
    root = workspace.root()
    with hold(root / ".run" / "reproduce.lock", "a reproduction"), worktree(root, recorded.commit) as tree:
        print(f"run        {recorded.run.info.run_name} ({run_id})")
        print(f"commit     {recorded.commit[:12]}" + _told(recorded, tree), flush=True)
        (tree / workspace.PARAMS).write_text(recorded.parameters, encoding="utf-8")
        find_beside(root, tree, "train.initial_weights")
        settle(root, tree)
        if ingest or not data_from_cache(recorded, tree):
            print(f"data       ingested again from {find_beside(root, tree, 'data.path')}", flush=True)
            run_again(recorded, tree)
        else:
            print("data       from DVC's cache", flush=True)
            run_again(recorded, tree, "--downstream", AFTER_DATA)
        found = compare(recorded, tree)
        conditions = differences.conditions(recorded.tags, repeated_tags(tree))
    print("\n".join(differences.told(found, conditions)), flush=True)
    return DIFFERENT if any(not one.same for one in found) else IDENTICAL


def read(run_id: str) -> Recorded:
    """Raises: InputError: there is no such run, or it lacks what it takes to make it again."""
    client, _ = store.connect()
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise InputError(f"MLflow has no run {run_id!r} in {client.tracking_uri}") from None
    tags = run.data.tags
    if parent := tags.get("mlflow.parentRunId"):
        raise InputError(f"{run_id} is one attempt of a training; reproduce the whole of it: {parent}")
    if store.WEIGHTS not in tags:
        raise InputError(f"run {run_id} left no weights: it ended {run.info.status}")
    if "git.commit" not in tags:
        raise InputError(f"run {run_id} names no commit: it was made outside a Git repository")
    if tags.get("git.dirty") == "true" and "git.changed" not in tags:
        raise InputError(f"run {run_id} was made with uncommitted changes and does not say which")

    with tempfile.TemporaryDirectory() as folder:
        kept = {item.path for item in client.list_artifacts(run_id)}

        def artifact(path: Path) -> bytes | None:
            if path.name not in kept:
                return None
            return Path(client.download_artifacts(run_id, path.name, folder)).read_bytes()

        parameters, lock = artifact(workspace.PARAMS), artifact(lineage.LOCK)
        files = {path: artifact(path) for path in (workspace.HISTORY, workspace.METRICS)}
    if parameters is None:
        raise InputError(
            f"run {run_id} holds no {workspace.PARAMS}: an earlier version of this project made it"
        )
    return Recorded(
        run,
        tags["git.commit"],
        list(filter(None, tags.get("git.changed", "").split("\n"))),
        parameters.decode(),
        None if lock is None else lock.decode(),
        {path: content for path, content in files.items() if content is not None},
    )


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """A commit in a folder of its own, removed in the end; with what an earlier, killed reproduction left."""
    for left in (root / ".run").glob("reproduce-*"):
        shutil.rmtree(left)
    _git(root, "worktree", "prune")
    if _git(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode != 0:
        raise InputError(f"commit {commit} is not in the Git repository of {root}; fetch it first")
    tree = Path(tempfile.mkdtemp(prefix="reproduce-", dir=root / ".run"))
    try:
        # Hooks are the user's, and for the user's own checkouts.
        added = _git(root, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(tree), commit)
        if added.returncode != 0:
            raise InputError(f"Git could not check out {commit}: {added.stderr.strip().splitlines()[-1]}")
        yield tree
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        _git(root, "worktree", "prune")


def _told(recorded: Recorded, tree: Path) -> str:
    """What was not committed, in words.

    Raises:
        InputError: some of it shaped the results, and is not in Git.
    """
    stages = YAML(typ="safe").load(tree / "dvc.yaml")["stages"].values()
    shaping = {"dvc.yaml", "…", *(dep for stage in stages for dep in stage["deps"])}
    lost = [
        name for name in recorded.changed if name in shaping or set(map(str, Path(name).parents)) & shaping
    ]
    if lost:
        raise InputError(
            f"the run was made with uncommitted changes in {', '.join(lost)}, which are not in Git: "
            f"what ran can not be had again from commit {recorded.commit[:12]}"
        )
    if not recorded.changed:
        return ""
    others = [name for name in recorded.changed if name != str(workspace.PARAMS)]
    words = "uncommitted parameters, kept with the run" if str(workspace.PARAMS) in recorded.changed else ""
    unread = f"uncommitted changes that no stage reads: {', '.join(others)}" if others else ""
    return f", with {' and '.join(filter(None, (words, unread)))}"


def settle(root: Path, tree: Path) -> None:
    """DVC's settings in the worktree: the cache of the main workspace, everything else its own."""
    cache = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], cwd=root, capture_output=True, text=True, check=False
    )
    local = ["[core]", "no_scm = true", f"site_cache_dir = {tree / '.run' / 'dvc'}"]
    if cache.returncode == 0:
        local += ["[cache]", f"dir = {cache.stdout.strip()}"]
    (tree / ".dvc" / "config.local").write_text("\n".join(local) + "\n", encoding="utf-8")


def data_from_cache(recorded: Recorded, tree: Path) -> bool:
    """Brings the run's arrays and manifest out of DVC's cache; False where it lacks them."""
    if recorded.lock is None:
        return False
    (tree / lineage.LOCK).write_text(recorded.lock, encoding="utf-8")
    code, _ = _dvc(recorded, tree, "checkout", "--quiet", *DATA)
    return code == 0 and lineage.data(tree)["data.sha256"] == recorded.tags.get("data.sha256")


def find_beside(root: Path, tree: Path, name: str) -> str:
    """A path among the parameters that is relative and not in Git lies in the main workspace: written out.

    Raises:
        InputError: it is not there any more.
    """
    text = (tree / workspace.PARAMS).read_text(encoding="utf-8")
    value = overlay.flat(loading.read_mapping(text, str(workspace.PARAMS))).get(name)
    if not value or (tree / value).exists():
        return str(value)
    if not (root / value).exists():
        raise InputError(f"{name} = {value} is not there any more (looked for {root / value})")
    written = overlay.lay_over(text, {name: str(root / value)})
    (tree / workspace.PARAMS).write_text(written, encoding="utf-8")
    return str(value)


def run_again(recorded: Recorded, tree: Path, *which: str) -> None:
    """Every stage by force, the trainer with as many threads as the run had; what they say goes to the terminal.

    Raises:
        InputError: a stage failed.
    """
    # Without commits the run-cache is off too, so what is made here can never stand in for a result of the user's.
    code, last = _dvc(recorded, tree, "repro", "--force", "--no-commit", "--no-run-cache", *which)
    if code != 0:
        raise InputError(f"the pipeline failed at commit {recorded.commit[:12]}: {last}")


def compare(recorded: Recorded, tree: Path) -> list[Difference]:
    """Data, weights, history and metrics: of the run, and of the worktree."""
    model = workspace.MODEL / saved.WEIGHTS_FILE
    found = [
        Difference(
            str(workspace.IMAGES), recorded.tags.get("data.sha256"), lineage.data(tree)["data.sha256"]
        ),
        Difference(str(model), recorded.tags[store.WEIGHTS], workspace.sha256(tree / model)),
    ]
    return found + [
        differences.of_files(path, recorded.files.get(path), (tree / path).read_bytes())
        for path in (workspace.HISTORY, workspace.METRICS)
    ]


def repeated_tags(tree: Path) -> dict[str, str]:
    """What the repeated training recorded of itself, in the worktree's own MLflow store."""
    client = MlflowClient(f"sqlite:///{tree / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(store.EXPERIMENT)
    weights = workspace.sha256(tree / workspace.MODEL / saved.WEIGHTS_FILE)
    found: list[Any] = [] if experiment is None else client.search_runs(
        [experiment.experiment_id], f"tags.`{store.WEIGHTS}` = '{weights}'"
    )  # fmt: skip
    if not found:
        raise InputError("the repeated pipeline recorded no training, so nothing was proved")
    return dict(found[0].data.tags)


def _dvc(recorded: Recorded, tree: Path, *arguments: str) -> tuple[int, str]:
    """Runs DVC in the worktree; returns its exit code and the last error that it told.

    Under the supervisor, so that the trainer ends with this process, however this one ends.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_THIS_PLACE)}
    environment["PYTHONPATH"] = str(tree)
    environment.pop("MKL_NUM_THREADS", None)  # it would win over the next one
    if threads := recorded.tags.get("compute.threads"):
        environment["OMP_NUM_THREADS"] = threads
    last = ""
    with owned_dvc(["--cd", str(tree), *arguments], environment, PROJECT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.lower().startswith("error: "):
                last = last or line[len("error: ") :].strip()
            if line.strip() and not line.startswith(_CHATTER):
                print("  " + line.rstrip(), flush=True)
    return process.returncode, last


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    entry.run(main)
