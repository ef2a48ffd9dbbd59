"""A dvc.lock that a killed DVC has left half written: put aside, told, and nothing finished is lost."""

import subprocess
from pathlib import Path

import pytest

from flows import stage
from tasks.tracking import lineage

PIPELINE = (
    "stages:\n  copy:\n    cmd: cp source made && echo once >> runs\n    deps: [source]\n    outs: [made]\n"
)


@pytest.fixture
def pipeline(empty_workspace: Path) -> Path:
    """A Git repository with a pipeline of one stage that has run, its dvc.lock committed before that."""
    Path("source").write_text("first\n")
    Path("dvc.yaml").write_text(PIPELINE)
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["dvc", "init", "--quiet"], check=True)
    assert stage.run("copy", print, {}) == "Completed"
    subprocess.run(["git", "add", "dvc.lock"], check=True)
    Path("source").write_text("second\n")
    assert stage.run("copy", print, {}) == "Completed"
    return empty_workspace


@pytest.mark.parametrize("end", ["schema", "s:", "deps:"])
def test_the_flow_goes_on_with_the_committed_one(pipeline: Path, end: str) -> None:
    whole = lineage.LOCK.read_text()
    torn = whole[: whole.index(end)] + end[:3]
    lineage.LOCK.write_text(torn)
    with pytest.raises(stage.StageFailed, match="half written, by a DVC that was killed") as failure:
        stage.run("copy", print, {})
    assert failure.value.may_be_retried
    assert (pipeline / ".run" / "dvc.lock.torn").read_text() == torn
    assert stage.run("copy", print, {}) == "Restored"
    assert lineage.LOCK.read_text() == whole
    assert Path("runs").read_text() == "once\n" * 2  # not a third time


def test_without_a_committed_one_dvc_begins_anew(pipeline: Path) -> None:
    subprocess.run(["git", "rm", "--quiet", "--force", "--cached", "dvc.lock"], check=True)
    lineage.LOCK.write_text("schema: '2.0'\nsta")
    assert "DVC begins a new one" in lineage.restore_lock()
    assert stage.run("copy", print, {}) == "Restored"


def test_a_conflict_is_the_persons_to_settle(pipeline: Path) -> None:
    conflict = "<<<<<<< HEAD\na\n=======\nb\n>>>>>>> theirs\n"
    lineage.LOCK.write_text(conflict)
    with pytest.raises(stage.StageFailed, match="git checkout --ours"):
        stage.run("copy", print, {})
    assert lineage.LOCK.read_text() == conflict
