"""Git is used only where its top level is the project's folder; else as without Git, and the reason is a sentence.

Tried, and right already: worktrees, submodules, a detached HEAD, `commit.gpgsign`, `core.autocrlf`, no user name.
Failed before:
- an archive unpacked inside another repository: a commit of all its uncommitted changes under its refs, lineage
  "clean", `vae reproduce` with a traceback
- GIT_DIR, GIT_WORK_TREE or GIT_INDEX_FILE set by a shell, or by a Git hook that runs `make run`: the same
- a `.git` that Git cannot read (HEAD damaged) inside another repository: the same
- a clone of another user (`safe.directory`), a damaged HEAD, a worktree whose main repository has moved: "needs a Git
  repository with a commit"
- objects lost: `git diff` fails, lineage "clean"
- `.git/index.lock` left by a killed Git: a half-written dvc.lock was not restored from Git
- `git init` after the set-up of an archive: `dvc exp show` refuses; `rm -rf .git` after it: DVC does not start
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.workspaces import make_pipeline, stand_in

from flows import experiments, stage
from tasks.cli import doctor, reproduce, trace
from tasks.host import git, place
from tasks.processes import dvc_files
from tasks.processes.owner import owned_dvc
from tasks.tracking import evaluation_run, lineage, store
from tasks.workspace import LOCK
from vae.config.errors import InputError

PIPELINE = "stages:\n  copy:\n    cmd: cp params.yaml made\n    deps: [params.yaml]\n    outs: [made]\n"
RUN = "01234567-89ab-cdef-0123-456789abcdef"
GIT = str(shutil.which("git"))
REDIRECTIONS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def in_git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "protocol.file.allow=always")
    mine = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run([GIT, *who, *arguments], cwd=folder, env=mine, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(folder: Path) -> Path:
    """A Git repository with one commit, and a change that is not committed."""
    folder.mkdir(parents=True)
    in_git(folder, "init", "--quiet")
    (folder / "secret").write_text("committed")
    in_git(folder, "add", "secret")
    in_git(folder, "commit", "--quiet", "-m", "secret")
    (folder / "secret").write_text("not committed")
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without Git whose pipeline of one stage has run."""
    folder = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
        stand_in(folder, patch)
        make_pipeline(PIPELINE, "no_scm = true")
        Path("params.yaml").write_text("seed: 0\n")
        assert stage.run("copy", print, {}) == "Completed"
    return folder


@pytest.fixture
def outer(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another repository; the working folder is a project unpacked inside it. Whatever happens, it stays as it is."""
    for name in (*REDIRECTIONS, "GIT_COMMIT", "GIT_CEILING_DIRECTORIES"):
        monkeypatch.delenv(name, raising=False)
    around = repository(tmp_path / "outer")
    stand_in(shutil.copytree(ran, around / "project"), monkeypatch)
    yield around
    assert in_git(around, "for-each-ref", "refs/exps") == ""
    assert in_git(around, "rev-list", "--all", "--count") == "1"
    assert in_git(around, "status", "--porcelain", "--untracked-files=no") == "M secret"


@pytest.fixture
def own(outer: Path) -> Path:
    """The project with a repository of its own, still inside the other one."""
    project = Path.cwd()
    (project / ".dvc" / "config").write_text((project / ".dvc" / "config").read_text().replace("no_scm = true", ""))
    in_git(project, "init", "--quiet")
    in_git(project, "add", "--all")
    in_git(project, "commit", "--quiet", "-m", "project")
    return project


def kept() -> str:
    return experiments.keep("run", RUN, something_ran=True)


def texts(state: str) -> str:
    return "\n".join(text for found, text in (*doctor.git(), *doctor.location()) if found == state)


def refused(reason: str, state: str = "problem") -> None:
    """That everybody who asks Git gives this reason, in one line."""
    assert kept() == f"not kept as a DVC experiment: {reason}"
    assert lineage.commit() == {"git.unavailable": reason}
    assert f"{reason}; runs record no commit" in texts(state)
    with pytest.raises(InputError) as error, reproduce.worktree(Path.cwd(), "0" * 40):
        pass
    assert "\n" not in str(error.value) and "a run is repeated from its commit" in str(error.value)


def test_an_archive_inside_another_repository_is_as_without_git(outer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = f"this folder lies inside another Git repository, {outer}"
    refused(reason, "note")
    assert lineage.commit_url("abc") is None and git.experiments() == []
    empty = SimpleNamespace(search_runs=lambda *arguments, **options: [])
    monkeypatch.setattr(store, "connect", lambda: (empty, "0"))
    with pytest.raises(InputError, match=f"commits and experiments were not searched: {reason}"):
        trace.find("HEAD")
    info = SimpleNamespace(run_name="a", run_id="b", experiment_id="0")
    run: Any = SimpleNamespace(info=info, data=SimpleNamespace(tags=lineage.commit()))
    assert dict(store.described(run))["commit"] == f"none: {reason}"
    assert ("Git commit", f"none: {reason}", None) in evaluation_run.origin(run, None, None).links

    in_git(outer, "add", "project/dvc.lock")  # the other repository's copy is not ours to check out
    LOCK.write_text("schema: '2.0'\nsta")
    assert "DVC begins a new one" in dvc_files.restore_lock()
    in_git(outer, "reset", "--quiet")


def test_an_archive_is_not_found_through_a_link_either(
    outer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(Path.cwd())
    monkeypatch.chdir(tmp_path / "link")
    assert git.refusal() == f"this folder lies inside another Git repository, {outer}"


def test_the_environment_leads_to_no_other_repository(own: Path, outer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"GIT_DIR": outer / ".git", "GIT_WORK_TREE": outer, "GIT_INDEX_FILE": outer / ".git" / "index"}
    head = in_git(own, "rev-parse", "HEAD")
    names = list(values)
    for name in names:  # one, then two, then all
        monkeypatch.setenv(name, str(values[name]))
        assert lineage.commit() == {"git.commit": head, "git.dirty": "false", "git.changed": ""}
    assert kept().startswith("kept as the DVC experiment run; ")
    assert len(git.experiments()) == 1
    with owned_dvc(["version"], os.environ) as process:
        environment = Path(f"/proc/{process.pid}/environ")
        inherited = environment.read_text() if environment.exists() else ""
    assert not any(f"{name}=" in inherited for name in names)
    for name in names:
        monkeypatch.delenv(name)


def test_a_hook_of_the_other_repository_runs_the_project(own: Path, outer: Path) -> None:
    """Git sets GIT_DIR and GIT_INDEX_FILE for a hook; so does `git commit` in a submodule or a worktree."""
    told = outer.parent / "told"
    hook = outer / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    code = "from tasks.tracking import lineage; print(lineage.commit()['git.commit'])"
    python = f"PYTHONPATH='{Path(lineage.__file__).parents[2]}' '{shutil.which('python')}' -c \"{code}\""
    hook.write_text(f"#!/bin/sh\nexport GIT_DIR=\"$(pwd)/.git\"\ncd '{own}' && {python} > '{told}'\n")
    hook.chmod(0o755)
    in_git(outer, "checkout", "--quiet", "--detach")
    in_git(outer, "checkout", "--quiet", "-")
    assert told.read_text().strip() == in_git(own, "rev-parse", "HEAD")


def test_worktrees_and_submodules_have_a_file_of_that_name(
    own: Path, outer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = in_git(own, "rev-parse", "HEAD")
    in_git(own, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    super_project = repository(tmp_path / "super")
    in_git(super_project, "submodule", "--quiet", "add", str(own), "part")
    for folder in (tmp_path / "tree", super_project / "part"):
        monkeypatch.chdir(folder)
        assert Path(".git").is_file()
        assert (git.refusal(), git.head()) == (None, head)


def test_a_refusal_of_git_is_given_in_its_own_words(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # Git's own way to test this
    refused(
        f"Git refuses this repository: detected dubious ownership in repository at '{own}'. To add an exception for "
        f"this directory, call: git config --global --add safe.directory {own}"
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_clone_of_another_user(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in (own, *own.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    reason = lineage.commit()["git.unavailable"]
    assert reason.endswith(f"call: git config --global --add safe.directory {own}")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")  # as CI services allow it
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "*")
    assert "git.commit" in lineage.commit()
    for path in (own, *own.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)


def test_a_damaged_repository_is_not_exchanged_for_the_one_around(own: Path, outer: Path) -> None:
    (own / ".git" / "HEAD").write_text("garbage\n")
    refused(f"Git takes {outer} for the repository of this folder; `.git` here may be damaged")


def test_a_worktree_whose_repository_has_moved(outer: Path) -> None:
    Path(".git").write_text("gitdir: /gone/.git/worktrees/project\n")
    refused("Git refuses this repository: not a git repository: /gone/.git/worktrees/project")


def test_without_a_commit_the_reason_is_gits(own: Path) -> None:
    branch = own / ".git" / in_git(own, "symbolic-ref", "HEAD")
    commit = branch.read_text()
    for content, reason in (
        ("", "your current branch appears to be broken"),
        ("1" * 40 + "\n", "bad object HEAD"),
        (None, f"your current branch '{branch.name}' does not have any commits yet"),
    ):
        branch.unlink() if content is None else branch.write_text(content)
        assert kept() == f"not kept as a DVC experiment: {reason}"
        assert lineage.commit() == {"git.unavailable": reason}
    branch.write_text(commit)
    tree = in_git(own, "rev-parse", "HEAD^{tree}")
    (own / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    assert lineage.commit() == {"git.unavailable": "bad tree object HEAD"}, "no comparison, so not known to be clean"


def test_without_git_installed(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(own))
    refused("Git is not installed")


def test_a_bare_repository_is_none_to_work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_git(tmp_path, "init", "--quiet", "--bare", ".")
    monkeypatch.chdir(tmp_path)
    assert git.refusal() == "this folder is not a Git repository"


def test_what_a_killed_git_leaves_stops_nothing(own: Path) -> None:
    whole = LOCK.read_text()
    (own / ".git" / "index.lock").touch()
    assert kept().startswith("kept as the DVC experiment run; ")
    assert ".git/index.lock exists" in texts("note")
    LOCK.write_text("schema: '2.0'\nsta")
    assert "the committed version is restored" in dvc_files.restore_lock()
    assert LOCK.read_text() == whole


def test_dvc_uses_git_where_the_project_does(outer: Path) -> None:
    def dvc(*arguments: str) -> tuple[int, str]:
        with owned_dvc(arguments, os.environ) as process:
            assert process.stdout is not None
            output = process.stdout.read()
        return process.returncode, output

    assert place.configure_dvc() is None
    in_git(Path.cwd(), "init", "--quiet")  # after the set-up of an archive
    assert "DVC ignores the Git repository of this folder" in texts("problem")
    assert place.configure_dvc()
    in_git(Path.cwd(), "commit", "--quiet", "--allow-empty", "-m", "project")
    assert dvc("exp", "list")[0] == 0 and texts("problem") == ""

    shutil.rmtree(".git")  # then its history is thrown away
    assert "DVC expects a Git repository in this folder" in texts("problem")
    assert place.configure_dvc()
    assert dvc("status") == (0, "Data and pipelines are up to date.\n") and place.configure_dvc() is None


def test_an_error_of_git_becomes_one_line() -> None:
    error = "fatal: Unable to create 'x': File exists.\n\nAnother git process, e.g.\nan editor, runs\nhere\n"
    assert git.words(error + "To mend:\n\n\trm x\n") == (
        "Unable to create 'x': File exists. Another git process, e.g. an editor, runs here. To mend: rm x"
    )
    assert git.words("") == "Git gave no reason"
