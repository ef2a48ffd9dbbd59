"""Each flow run's results kept as a DVC experiment: `dvc exp show` lists them, `dvc exp apply NAME` brings one back."""

import os
import re
import signal
import subprocess
import sys

from tasks import lineage
from tasks.workspace import PARAMS

SECONDS = 600  # DVC looks at every source file
_NOT_OF_A_REFERENCE = re.compile(r"(?:[^A-Za-z0-9_=.]|(?<!\d)\.|\.(?!\d))+")  # a point stands between digits
_WHO = {"NAME": "vae-train", "EMAIL": "vae-train@localhost"}  # where Git knows no name of the user's


def keep(flow_run_name: str, flow_run_id: str, something_ran: bool) -> str:
    """Keeps what stands in the workspace, under the flow run's name; returns what became of it, in a sentence.

    A run that found everything cached is kept only where no experiment of this commit holds its results yet.
    Failure is told in the sentence, and is never the flow's.
    """
    commit = lineage.git_says("rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return "not kept as a DVC experiment: that takes a Git repository with a commit"
    kept = _kept()
    of_this_commit = [ref for ref in kept if ref.startswith(f"refs/exps/{commit[:2]}/{commit[2:]}/")]
    if not something_ran and (found := _with_these_results(of_this_commit)):
        return f"these results are kept as the DVC experiment {found}"
    # `exp save` commits what stands in the workspace; outputs that are not of these parameters and this code
    # would be recorded, and later restored, as if they were.
    code, _ = _dvc("status", "--quiet")
    if code != 0:
        return "not kept as a DVC experiment: parameters, code or data were changed during the run"
    name = unique(flow_run_name, flow_run_id, {ref.rpartition("/")[2] for ref in kept})
    code, said = _dvc("exp", "save", "--name", name)
    if code != 0:
        return f"warning: not kept as a DVC experiment: {said}"
    return f"kept as the DVC experiment {name}; `dvc exp apply {name}` brings it back"


def unique(flow_run_name: str, flow_run_id: str, taken: set[str]) -> str:
    """A name that Git takes for a reference, and that no experiment has."""
    name = _NOT_OF_A_REFERENCE.sub("-", flow_run_name).strip("-") or "run"
    return name if name not in taken else f"{name}-{flow_run_id[:8]}"


def _kept() -> list[str]:
    """The references of all experiments; what DVC keeps beside them for its own use is left out."""
    refs = (lineage.git_says("for-each-ref", "--format=%(refname)", "refs/exps") or "").splitlines()
    return [ref for ref in refs if re.fullmatch(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/[^/]+", ref)]


def _with_these_results(kept: list[str]) -> str | None:
    """The experiment whose parameters and dvc.lock are those of the workspace."""
    here = [lineage.git_says("hash-object", str(path)) for path in (PARAMS, lineage.LOCK)]
    wanted = [f"{ref}:{path}" for ref in kept for path in (PARAMS, lineage.LOCK)]
    there = (lineage.git_says("rev-parse", *wanted) or "").split() if wanted else []
    pairs = zip(there[::2], there[1::2], strict=True)
    return next(
        (ref.rpartition("/")[2] for ref, pair in zip(kept, pairs, strict=False) if [*pair] == here), None
    )


def _dvc(*arguments: str) -> tuple[int, str]:
    """Runs DVC in a process and session of its own; returns its exit code and the last thing that it said.

    While DVC saves, HEAD is detached: whoever interrupts the flow waits until it is back.
    """
    environment = {**os.environ, "DVC_NO_ANALYTICS": "true"}
    if None in (lineage.git_says("config", "user.name"), lineage.git_says("config", "user.email")):
        for name, value in _WHO.items():
            for role in ("AUTHOR", "COMMITTER"):
                environment.setdefault(f"GIT_{role}_{name}", value)
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        said = f"`dvc {' '.join(arguments)}` took more than {SECONDS} s"
    finally:
        process.wait()
    errors = [line for line in said.splitlines() if line.startswith("ERROR: ")] or said.splitlines()
    return process.returncode, errors[-1].removeprefix("ERROR: ") if errors else "DVC said nothing"
