"""Each flow run's results kept as a DVC experiment: `dvc exp show` lists them, `dvc exp apply NAME` brings one back."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks.processes import git
from tasks.workspace import LOCK, PARAMS

SECONDS = 600  # DVC looks at every source file
_NOT_OF_A_REFERENCE = re.compile(r"(?:[^A-Za-z0-9_=.]|(?<!\d)\.|\.(?!\d))+")  # a point stands between digits
_WHO = {"NAME": "vae-train", "EMAIL": "vae-train@localhost"}  # where Git knows no name of the user's


def keep(flow_run_name: str, flow_run_id: str, something_ran: bool) -> str:
    """Keeps what stands in the workspace, under the flow run's name; returns what became of it, in a sentence.

    A run that found everything cached is kept only where no experiment of this commit holds its results yet.
    Failure is told in the sentence, and is never the flow's.
    """
    commit = git.says("rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return "not kept as a DVC experiment: that takes a Git repository with a commit"
    kept = git.experiments()
    of_this_commit = [ref for ref in kept if ref.startswith(f"refs/exps/{commit[:2]}/{commit[2:]}/")]
    if not something_ran and (found := _with_these_results(of_this_commit)):
        return f"these results are kept as the DVC experiment {found}"
    # Outputs that are not of these parameters and this code would be recorded, and later restored, as if they were.
    if not _clean():
        return "not kept as a DVC experiment: parameters, code or data were changed during the run"
    name = unique(flow_run_name, flow_run_id, {ref.rpartition("/")[2] for ref in kept})
    try:
        _save(commit, name)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        return f"warning: not kept as a DVC experiment: {(said or ['Git said nothing'])[0]}"
    return f"kept as the DVC experiment {name}; `dvc exp apply {name}` brings it back"


def unique(flow_run_name: str, flow_run_id: str, taken: set[str]) -> str:
    """A name that Git takes for a reference, and that no experiment has."""
    name = _NOT_OF_A_REFERENCE.sub("-", flow_run_name).strip("-") or "run"
    return name if name not in taken else f"{name}-{flow_run_id[:8]}"


def _with_these_results(kept: list[str]) -> str | None:
    """The experiment whose parameters and dvc.lock are those of the workspace."""
    here = [git.says("hash-object", str(path)) for path in (PARAMS, LOCK)]
    wanted = [f"{ref}:{path}" for ref in kept for path in (PARAMS, LOCK)]
    there = (git.says("rev-parse", *wanted) or "").split() if wanted else []
    pairs = zip(there[::2], there[1::2], strict=True)
    return next(
        (ref.rpartition("/")[2] for ref, pair in zip(kept, pairs, strict=False) if [*pair] == here), None
    )


def _save(commit: str, name: str) -> None:
    """Commits what stands in the workspace as an experiment of `commit`, as `dvc exp save` does.

    That command detaches HEAD and stashes meanwhile: killed then, it leaves parameters in the stash and an empty
    dvc.lock. This touches neither HEAD nor index nor files.

    Raises:
        OSError, subprocess.CalledProcessError: Git refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GIT_INDEX_FILE": str(Path(folder) / "index")}
        if None in (git.says("config", "user.name"), git.says("config", "user.email")):
            for what, value in _WHO.items():
                for role in ("AUTHOR", "COMMITTER"):
                    environment.setdefault(f"GIT_{role}_{what}", value)

        def run(*arguments: str) -> str:
            done = subprocess.run(
                ["git", *arguments], env=environment, capture_output=True, text=True, check=True
            )
            return done.stdout.strip()

        run("read-tree", commit)
        run("add", "--update", ":/")
        kept = run("commit-tree", run("write-tree"), "-p", commit, "-m", f"dvc: commit experiment {name}")
        run("update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/{name}", kept, "")


def _clean() -> bool:
    """Whether DVC finds nothing to do."""
    process = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--quiet"],
        env={**os.environ, "DVC_NO_ANALYTICS": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=SECONDS,
    )
    return process.returncode == 0
