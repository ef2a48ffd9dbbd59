"""A run made again and compared bit for bit.

The run's commit in a temporary Git worktree, its parameters, its data (from DVC's cache, or from the source once
more), and then every stage, forced. All that this writes is in the worktree: a stage finds stores, locks and
checkpoints under DVC_ROOT, which is the worktree there, and DVC commits nothing to the cache that it reads from.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from configobj import ConfigObj
from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML

from tasks import PROJECT, overlay, workspace
from tasks.cli import differences, named_run
from tasks.cli.differences import Difference
from tasks.host import git, place
from tasks.processes.lock import hold
from tasks.processes.owner import ask_dvc, owned_dvc
from tasks.tracking import lineage, store
from tasks.workspace import HISTORY, LOCK, METRICS, PARAMS
from vae.config import loading
from vae.config.constants import EFFICIENTNET
from vae.config.errors import InputError
from vae.models import saved

WEIGHTS = workspace.MODEL / saved.WEIGHTS_FILE
AFTER_DATA = "validate"  # the first stage after the data
IDENTICAL, DIFFERENT = 0, 1  # exit codes

Tags: TypeAlias = Mapping[str, str]

# Set in the environment, they would lead the repeated run to the user's own stores and servers.
_OF_THIS_PLACE = ("DVC_", "GIT_", "MLFLOW_", "PREFECT_", "VAE_TRAIN_")
_CHATTER = ("> ", "Use `dvc push`", "Updating lock file", "promotion", "report: ")


def reproduce(name: str, ingest: bool = False) -> int:
    """Makes a run again, prints how it compares, and returns IDENTICAL or DIFFERENT.

    Raises:
        InputError: it cannot be made again, and why.
    """
    run, root = named_run.find(name), workspace.root()
    files = read(run)
    tags, commit = run.data.tags, run.data.tags["git.commit"]
    with hold(root / ".run" / "reproduce.lock", "a reproduction"), worktree(root, commit) as tree:
        print(f"run        {run.info.run_name} ({run.info.run_id})")
        print(f"commit     {commit[:12]}{uncommitted(tags, tree)}", flush=True)
        text = parameters(files[PARAMS].decode(), tags)
        (tree / PARAMS).write_text(text, encoding="utf-8")
        locate(root, tree, "train.initial_weights")
        asked = overlay.flat(loading.read_mapping(text, str(PARAMS)))
        if asked.get("objective.align") or asked.get("objective.perceptual"):
            locate(root, tree, "objective.features")
        configure(root, tree)
        cached = not ingest and data_from_cache(tags, files.get(LOCK), tree)
        origin = "from DVC's cache" if cached else f"ingested again from {locate(root, tree, 'data.path')}"
        print(f"data       {origin}", flush=True)
        which = ("--downstream", AFTER_DATA) if cached else ()
        # Without commits the run-cache is off too, so no result of this can stand in for one of the user's.
        code, last = run_dvc(tags, tree, "repro", "--force", "--no-commit", "--no-run-cache", *which)
        if code != 0:
            raise InputError(f"the pipeline failed at commit {commit[:12]}: {last}")
        found, conditions = compare(tags, files, tree)
    print("\n".join(differences.report(found, conditions)), flush=True)
    return IDENTICAL if all(one.same for one in found) else DIFFERENT


def read(run: Run) -> dict[Path, bytes]:
    """The artifacts that it takes to make a run again and to compare.

    Raises:
        InputError: the run lacks what it takes.
    """
    run_id, tags = run.info.run_id, run.data.tags
    if parent := tags.get("mlflow.parentRunId"):
        raise InputError(f"{run_id} is one attempt of a training; reproduce the whole training: {parent}")
    if store.WEIGHTS not in tags:
        raise InputError(f"run {run_id} left no weights: it ended {run.info.status}")
    if "git.commit" not in tags:
        reason = tags.get("git.unavailable", "it was made outside a Git repository")
        raise InputError(f"run {run_id} names no commit: {reason}")
    if tags.get("git.dirty") == "true" and "git.changed" not in tags:
        raise InputError(f"run {run_id} was made with uncommitted changes and does not say which")
    client, _ = store.connect()
    kept = {item.path for item in client.list_artifacts(run_id)}
    with tempfile.TemporaryDirectory() as folder:
        files = {
            path: Path(client.download_artifacts(run_id, path.name, folder)).read_bytes()
            for path in (PARAMS, LOCK, HISTORY, METRICS)
            if path.name in kept
        }
    if PARAMS not in files:
        raise InputError(f"run {run_id} has no {PARAMS}: it was made by an earlier version of this project")
    return files


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """A commit in a temporary folder. What an earlier, killed reproduction left is removed first."""
    if reason := git.refusal(root):
        raise InputError(f"a run is repeated from its commit, but {reason}")
    for left in (root / ".run").glob("reproduce-*"):
        shutil.rmtree(left)
    git.run("worktree", "prune", folder=root)
    if git.says("cat-file", "-e", f"{commit}^{{commit}}", folder=root) is None:
        raise InputError(f"commit {commit} is not in the Git repository of {root}; fetch it first")
    tree = Path(tempfile.mkdtemp(prefix="reproduce-", dir=root / ".run"))
    try:
        # Hooks are the user's, and for the user's own checkouts.
        add = ("-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(tree), commit)
        added = git.run(*add, folder=root)
        if added.returncode != 0:
            raise InputError(f"Git could not check out {commit}: {git.words(added.stderr)}")
        yield tree
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        git.run("worktree", "prune", folder=root)


def uncommitted(tags: Tags, tree: Path) -> str:
    """What was not committed, to follow the commit.

    Raises:
        InputError: some of it affected the results, and is not in Git.
    """
    changed = list(filter(None, tags.get("git.changed", "").split("\n")))
    stages = YAML(typ="safe").load(tree / "dvc.yaml")["stages"].values()
    inputs = {"dvc.yaml", "…", *(dep for stage in stages for dep in stage["deps"])}
    lost = [name for name in changed if {name, *map(str, Path(name).parents)} & inputs]
    if lost:
        raise InputError(
            f"the run was made with uncommitted changes in {', '.join(lost)}, which are not in Git: "
            f"commit {tags['git.commit'][:12]} alone does not reproduce it"
        )
    return f", with uncommitted changes that the run stored or did not read: {', '.join(changed)}" if changed else ""


def configure(root: Path, tree: Path) -> None:
    """DVC's settings in the worktree: the cache of the main workspace, everything else its own."""
    cache = ask_dvc("cache", "dir", folder=root)
    config = ConfigObj({"core": {"no_scm": "true"}}, encoding="utf-8")
    if cache.returncode == 0:
        config["cache"] = {"dir": os.path.relpath(root / cache.stdout.rstrip("\n"), tree / ".dvc")}
    place.write_config(tree / ".dvc" / "config.local", config)


def data_from_cache(tags: Tags, lock: bytes | None, tree: Path) -> bool:
    """Restores the run's arrays and manifest from DVC's cache; False where it lacks them."""
    if lock is None:
        return False
    (tree / LOCK).write_bytes(lock)
    code, _ = run_dvc(tags, tree, "checkout", "--quiet", str(workspace.IMAGES), str(workspace.MANIFEST))
    return code == 0 and lineage.data(tree)["data.sha256"] == tags.get("data.sha256")


def parameters(text: str, tags: Tags) -> str:
    """`params.yaml` as it was; a budget as the epochs that it paid for, since seconds buy others now."""
    if lineage.BUDGET_EPOCHS not in tags:
        return text
    return overlay.lay_over(text, {"train.epochs": int(tags[lineage.BUDGET_EPOCHS]), "train.budget": None})


def locate(root: Path, tree: Path, name: str) -> str:
    """Makes a relative path among the parameters absolute where it is not in Git, and so in the main workspace only.

    Raises:
        InputError: it is no longer there.
    """
    text = (tree / PARAMS).read_text(encoding="utf-8")
    value = overlay.flat(loading.read_mapping(text, str(PARAMS))).get(name)
    if value and value != EFFICIENTNET and not (tree / value).exists():
        if not (root / value).exists():
            raise InputError(f"{name} = {value} no longer exists (looked for {root / value})")
        (tree / PARAMS).write_text(overlay.lay_over(text, {name: str(root / value)}), encoding="utf-8")
    return str(value)


def compare(tags: Tags, files: Mapping[Path, bytes], tree: Path) -> tuple[list[Difference], list[Difference]]:
    """Data, weights, history and metrics of the run and of the worktree; and the conditions that differed."""
    weights = workspace.sha256(tree / WEIGHTS)
    found = [
        Difference(str(workspace.IMAGES), tags.get("data.sha256"), lineage.data(tree)["data.sha256"]),
        Difference(str(WEIGHTS), tags[store.WEIGHTS], weights),
        *(differences.of_files(path, files.get(path), (tree / path).read_bytes()) for path in (HISTORY, METRICS)),
    ]
    client = MlflowClient(f"sqlite:///{tree / 'mlflow.db'}")  # the repeated training's own store
    experiment = client.get_experiment_by_name(store.EXPERIMENT)
    condition = f"tags.`{store.WEIGHTS}` = '{weights}'"
    repeated = experiment and store.find(client, experiment.experiment_id, condition)
    if not repeated:
        raise InputError("the repeated pipeline recorded no training, so nothing was proved")
    return found, differences.of_conditions(tags, repeated.data.tags)


def run_dvc(tags: Tags, tree: Path, *arguments: str) -> tuple[int, str]:
    """Runs DVC in the worktree, with as many threads as the run had; returns its exit code and its first error."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_THIS_PLACE)}
    environment["PYTHONPATH"] = str(tree)
    environment["DVC_SITE_CACHE_DIR"] = str(tree / ".run" / "dvc")
    environment.pop("MKL_NUM_THREADS", None)  # it would win over the next one
    # Of a run that recorded one number of threads, it was that of all stages.
    if threads := tags.get("compute.most_threads", tags.get("compute.threads")):
        environment["OMP_NUM_THREADS"] = threads
    reason = ""
    with owned_dvc(["--cd", str(tree), *arguments], environment, PROJECT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.lower().startswith("error: "):
                reason = reason or line[len("error: ") :].strip()
            if line.strip() and not line.startswith(_CHATTER):
                print("  " + line.rstrip(), flush=True)
    return process.returncode, reason
