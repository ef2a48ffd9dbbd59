"""What Git knows about the project's folder. A repository around that folder is somebody else's: it is not used."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tasks.host.environment import OF_ANOTHER_REPOSITORY


class NoCommit(Exception):
    """Git names no commit for the project's folder; the message is a phrase that says why."""


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what leads Git to another repository than that of the working folder."""
    return {name: value for name, value in environment.items() if name not in OF_ANOTHER_REPOSITORY.split()}


def run(*arguments: str, folder: Path = Path(), **additions: str) -> "subprocess.CompletedProcess[str]":
    """`git ARGUMENTS…` in a folder, its messages in English. Raises: OSError: Git is not installed."""
    environment = own_environment(os.environ) | {"LC_ALL": "C"} | additions
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        check=False,
    )


def refusal(folder: Path = Path()) -> str | None:
    """Why Git is not used for a folder, as a phrase; None where the folder is the top level of a repository."""
    own = os.path.lexists(folder / ".git")  # a folder, or a file in worktrees and submodules
    try:
        done = run("rev-parse", "--show-toplevel", folder=folder)
    except OSError:
        return "Git is not installed"
    if done.returncode != 0:
        return f"Git refuses this repository: {words(done.stderr)}" if own else "this folder is not a Git repository"
    top = Path(done.stdout.rstrip("\n"))
    if top.exists() and top.samefile(folder):
        return None
    if own:
        return f"Git takes {top} for the repository of this folder; `.git` here may be damaged"
    return f"this folder lies inside another Git repository, {top}"


def says(*arguments: str, folder: Path = Path()) -> str | None:
    """What Git prints in a folder; None where it fails or is not used."""
    if refusal(folder):
        return None
    done = run(*arguments, folder=folder)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def head() -> str:
    """The commit that is checked out. Raises: NoCommit."""
    if reason := refusal():
        raise NoCommit(reason)
    done = run("log", "-1", "--no-show-signature", "--format=%H")  # `rev-parse` gives one reason for everything
    if done.returncode != 0:
        raise NoCommit(words(done.stderr))
    return done.stdout.strip()


def words(stderr: str) -> str:
    """An error of Git on one line, its advice included."""
    sentences = re.sub(r"(?<=[^\s.:])\s*\n\s*(?=[A-Z])", ". ", stderr.strip())
    return " ".join(sentences.split()).removeprefix("fatal: ").removeprefix("error: ") or "Git gave no reason"


def experiments() -> list[str]:
    """The references of all DVC experiments; what DVC keeps beside them for its own use is left out."""
    refs = (says("for-each-ref", "--format=%(refname)", "refs/exps") or "").splitlines()
    return [ref for ref in refs if re.fullmatch(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/[^/]+", ref)]
