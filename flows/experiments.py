"""Each flow run's results kept as a DVC experiment: `dvc exp show` lists them, `dvc exp apply NAME` restores one."""

import json
import re
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tasks.host import git
from tasks.processes.owner import OwnedDVC, ask_dvc
from tasks.workspace import LOCK, PARAMS

SECONDS = 600  # DVC looks at every source file
_NOT_OF_A_REFERENCE = re.compile(r"(?:[^A-Za-z0-9_=.]|(?<!\d)\.|\.(?!\d))+")  # a point only between digits


def keep(flow_run_name: str, flow_run_id: str, something_ran: bool, dvc: OwnedDVC | None = None) -> str:
    """Keeps the workspace's results under the flow run's name; returns what became of them, in a sentence.

    A run that found everything cached is kept only if no experiment of this commit has its results yet. A failure
    is a sentence that begins with `warning: `; the flow does not fail because of it.

    dvc: one that is loaded, and answers sooner.
    """
    try:
        commit = git.head()
    except git.NoCommit as error:
        return f"not kept as a DVC experiment: {error}"
    kept = git.experiments()
    of_this_commit = [ref for ref in kept if ref.startswith(f"refs/exps/{commit[:2]}/{commit[2:]}/")]
    if not something_ran and (found := _with_these_results(of_this_commit)):
        return f"these results are kept as the DVC experiment {found}"
    # Outputs of other parameters or other code would be recorded, and later restored, as if they were of these.
    if reason := _changed(dvc):
        return f"not kept as a DVC experiment: {reason}"
    name = unique(flow_run_name, flow_run_id, {ref.rpartition("/")[2] for ref in kept})
    try:
        _save(commit, name)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = git.words(getattr(error, "stderr", None) or str(error))
        return f"warning: not kept as a DVC experiment: {reason}"
    return f"kept as the DVC experiment {name}; `dvc exp apply {name}` restores it"


def unique(flow_run_name: str, flow_run_id: str, taken: set[str]) -> str:
    """A name that Git accepts for a reference, and that no experiment has."""
    name = _NOT_OF_A_REFERENCE.sub("-", flow_run_name).strip("-") or "run"
    return name if name not in taken else f"{name}-{flow_run_id[:8]}"


def _with_these_results(kept: list[str]) -> str | None:
    """The experiment whose parameters and dvc.lock are those of the workspace."""
    here = git.says("hash-object", str(PARAMS), str(LOCK))
    for ref in kept if here else ():
        if git.says("rev-parse", f"{ref}:{PARAMS}", f"{ref}:{LOCK}") == here:
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
        named = git.says("config", "user.name") and git.says("config", "user.email")
        by = [] if named else ["-c", "user.name=vae-train", "-c", "user.email=vae-train@localhost"]

        def run(*arguments: str) -> str:
            done = git.run(*by, *arguments, GIT_INDEX_FILE=str(Path(folder) / "index"))
            done.check_returncode()
            return done.stdout.strip()

        run("read-tree", commit)
        run("add", "--update")
        kept = run("commit-tree", run("write-tree"), "-p", commit, "-m", f"dvc: commit experiment {name}")
        run("update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/{name}", kept, "")


def _changed(dvc: OwnedDVC | None = None) -> str | None:
    """What keeps the workspace from being its pipeline's results, in a phrase. DVC files of a data folder do not."""
    with suppress(OSError, ValueError):  # it is gone: a new one is asked
        if dvc is not None and dvc.run(["status", "--quiet", "dvc.yaml"], {}, lambda line: None) == 0:
            return None
    done = ask_dvc("status", "--json", "dvc.yaml", seconds=SECONDS)
    try:
        return "parameters, code or data changed during the run" if json.loads(done.stdout) else None
    except ValueError:
        return f"`dvc status` failed: {git.words(done.stderr)}"
