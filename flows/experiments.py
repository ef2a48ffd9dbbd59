"""Each flow run's results kept as a DVC experiment: `dvc exp show` lists them, `dvc exp apply NAME` restores one."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks.processes import git
from tasks.workspace import LOCK, PARAMS

SECONDS = 600  # DVC looks at every source file
_NOT_OF_A_REFERENCE = re.compile(r"(?:[^A-Za-z0-9_=.]|(?<!\d)\.|\.(?!\d))+")  # a point only between digits


def keep(flow_run_name: str, flow_run_id: str, something_ran: bool) -> str:
    """Keeps the workspace's results under the flow run's name; returns what became of them, in a sentence.

    A run that found everything cached is kept only if no experiment of this commit has its results yet. A failure
    is a sentence that begins with `warning: `; the flow does not fail because of it.
    """
    commit = git.says("rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return "not kept as a DVC experiment: that needs a Git repository with a commit"
    kept = git.experiments()
    of_this_commit = [ref for ref in kept if ref.startswith(f"refs/exps/{commit[:2]}/{commit[2:]}/")]
    if not something_ran and (found := _with_these_results(of_this_commit)):
        return f"these results are kept as the DVC experiment {found}"
    # Outputs of other parameters or other code would be recorded, and later restored, as if they were of these.
    if not _clean():
        return "not kept as a DVC experiment: parameters, code or data changed during the run"
    name = unique(flow_run_name, flow_run_id, {ref.rpartition("/")[2] for ref in kept})
    try:
        _save(commit, name)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        return f"warning: not kept as a DVC experiment: {(reason or ['Git gave no reason'])[0]}"
    return f"kept as the DVC experiment {name}; `dvc exp apply {name}` restores it"


def unique(flow_run_name: str, flow_run_id: str, taken: set[str]) -> str:
    """A name that Git accepts for a reference, and that no experiment has."""
    name = _NOT_OF_A_REFERENCE.sub("-", flow_run_name).strip("-") or "run"
    return name if name not in taken else f"{name}-{flow_run_id[:8]}"


def _with_these_results(kept: list[str]) -> str | None:
    """The experiment whose parameters and dvc.lock are those of the workspace."""
    here = [git.says("hash-object", str(path)) for path in (PARAMS, LOCK)]
    for ref in kept:
        if [git.says("rev-parse", f"{ref}:{path}") for path in (PARAMS, LOCK)] == here:
            return ref.rpartition("/")[2]
    return None


def _save(commit: str, name: str) -> None:
    """Commits the workspace as an experiment of `commit`, as `dvc exp save` does.

    That command detaches HEAD and stashes meanwhile: if it is killed, parameters are in the stash and dvc.lock is
    empty. This touches neither HEAD nor index nor files.

    Raises:
        OSError, subprocess.CalledProcessError: Git refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GIT_INDEX_FILE": str(Path(folder) / "index")}
        named = git.says("config", "user.name") and git.says("config", "user.email")
        git_as = ["git"] if named else ["git", "-c", "user.name=vae-train", "-c", "user.email=vae-train@localhost"]

        def run(*arguments: str) -> str:
            done = subprocess.run([*git_as, *arguments], env=environment, capture_output=True, text=True, check=True)
            return done.stdout.strip()

        run("read-tree", commit)
        run("add", "--update", ":/")
        kept = run("commit-tree", run("write-tree"), "-p", commit, "-m", f"dvc: commit experiment {name}")
        run("update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/{name}", kept, "")


def _clean() -> bool:
    """Whether DVC finds nothing to do."""
    command = [sys.executable, "-m", "dvc", "status", "--quiet"]
    return subprocess.run(command, capture_output=True, check=False, timeout=SECONDS).returncode == 0
