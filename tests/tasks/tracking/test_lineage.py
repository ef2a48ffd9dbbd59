"""What a run says of its commit, of what was not committed, and of its machine."""

import subprocess
from pathlib import Path

import pytest

from tasks.tracking import lineage

LOCK = "stages:\n  train:\n    cmd: python -m tasks.train\n    outs:\n    - {path: models/vae, md5: "


def git(*arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    return subprocess.run(["git", *who, *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    git("init", "--quiet")
    for name in ("params.yaml", "dvc.lock", "sömë code.py"):
        Path(name).write_text("before\n")
    git("add", "--all")
    git("commit", "--quiet", "-m", "all")
    return tmp_path


def test_every_changed_file_is_named_whether_staged_or_not_but_dvc_lock(repository: Path) -> None:
    Path("dvc.lock").write_text("other results\n")
    Path("untracked.txt").write_text("")
    assert lineage.commit() == {"git.commit": git("rev-parse", "HEAD"), "git.dirty": "false", "git.changed": ""}
    for name in ("params.yaml", "sömë code.py"):
        Path(name).write_text("after\n")
    git("add", "params.yaml")
    found = lineage.commit()
    assert (found["git.dirty"], found["git.changed"]) == ("true", "params.yaml\nsömë code.py")
    for number in range(lineage.MANY + 5):
        Path(f"new {number:03}").write_text("")
    git("add", "--all")
    names = lineage.commit()["git.changed"].split("\n")
    assert len(names) == lineage.MANY + 1 and names[-1] == "…"


def test_outside_a_repository_the_commit_is_that_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_COMMIT", "abc")
    assert lineage.commit() == {"git.commit": "abc"}
    monkeypatch.delenv("GIT_COMMIT")
    assert lineage.commit() == {"git.unavailable": "this folder is not a Git repository"}


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("https://user:secret@example.org/a/b.git", "https://example.org/a/b/commit/abc"),
        ("git@example.org:a/b.git", "https://example.org/a/b/commit/abc"),
        ("ssh://git@example.org:22/a/b", "https://example.org/a/b/commit/abc"),
        ("/srv/git/b.git", None),
        ("file:///srv/git/b.git", None),
    ],
)
def test_a_commit_is_linked_without_secrets(repository: Path, remote: str, url: str | None) -> None:
    assert lineage.commit_url("abc") is None
    git("remote", "add", "origin", remote)
    assert lineage.commit_url("abc") == url


def test_a_stage_hash_follows_the_entry_and_nothing_else() -> None:
    first = lineage.stage_hash(LOCK + "1}\n", "train")
    assert first is not None and len(first) == 64
    assert lineage.stage_hash(LOCK + "1}\n  other:\n    cmd: x\n", "train") == first
    assert lineage.stage_hash(LOCK + "2}\n", "train") != first
    assert lineage.stage_hash(LOCK + "1}\n", "monitor") is None
    assert lineage.stage_hash("", "train") is None


def test_the_machine_names_processor_libraries_and_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in lineage.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    found = lineage.machine()
    assert all(found.values()) and found["machine.switches"] == "none"
    assert {"machine.cpu", "machine.system", "version.numpy", "version.python"} <= found.keys()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert lineage.machine()["machine.switches"] == "MKL_CBWR=COMPATIBLE"
