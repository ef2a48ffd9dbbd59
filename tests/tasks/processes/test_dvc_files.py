"""What a killed DVC leaves: a damaged lock, which is removed, and half a dvc.lock, which is set aside."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.workspaces import make_pipeline, stand_in

from flows import stage
from tasks.processes import dvc_files
from tasks.workspace import LOCK

PIPELINE = "stages:\n  copy:\n    cmd: cp source made && echo once >> runs\n    deps: [source]\n    outs: [made]\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git repository with a pipeline of one stage that has run, its dvc.lock committed before that."""
    folder = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(folder, patch)
        make_pipeline(PIPELINE)
        Path("source").write_text("first\n")
        subprocess.run(["git", "init", "--quiet"], check=True)
        assert stage.run("copy", print, {}) == "Completed"
        subprocess.run(["git", "add", "dvc.lock"], check=True)
        Path("source").write_text("second\n")
        assert stage.run("copy", print, {}) == "Completed"
    return folder


@pytest.fixture
def pipeline(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to damage."""
    folder = shutil.copytree(repository, tmp_path / "copy")
    stand_in(folder, monkeypatch)
    return folder


@pytest.mark.parametrize("end", ["schema", "s:", "deps:"])
def test_the_flow_continues_with_the_committed_one(pipeline: Path, end: str) -> None:
    whole = LOCK.read_text()
    torn = whole[: whole.index(end)] + end[:3]
    LOCK.write_text(torn)
    with pytest.raises(stage.StageFailed, match="half written by a DVC that was killed") as failure:
        stage.run("copy", print, {})
    assert failure.value.may_be_retried
    assert (pipeline / ".run" / "dvc.lock.torn").read_text() == torn
    assert stage.run("copy", print, {}) == "Restored"
    assert LOCK.read_text() == whole
    assert Path("runs").read_text() == "once\n" * 2  # not a third time


def test_without_a_committed_one_dvc_starts_a_new_one(pipeline: Path) -> None:
    subprocess.run(["git", "rm", "--quiet", "--force", "--cached", "dvc.lock"], check=True)
    LOCK.write_text("schema: '2.0'\nsta")
    assert "DVC begins a new one" in dvc_files.restore_lock()
    assert stage.run("copy", print, {}) == "Restored"


def test_a_merge_conflict_is_left_to_the_user(pipeline: Path) -> None:
    conflict = "<<<<<<< HEAD\na\n=======\nb\n>>>>>>> theirs\n"
    LOCK.write_text(conflict)
    with pytest.raises(stage.StageFailed, match="git checkout --ours"):
        stage.run("copy", print, {})
    assert LOCK.read_text() == conflict


def rwlock(root: Path, content: str) -> Path:
    path = root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"write": 3}', '{"write": {"x": {}}}', '{"read": {"x": [{"pid": "a"}]}}']
)
def test_a_damaged_lock_is_removed(tmp_path: Path, content: str) -> None:
    path = rwlock(tmp_path, content)
    assert dvc_files.free_dvc(tmp_path) is True
    assert not path.exists()
    assert dvc_files.free_dvc(tmp_path) is False


def test_a_lock_is_removed_unless_a_dvc_holds_it(tmp_path: Path) -> None:
    sleeper = "import time; time.sleep(60)"
    stranger = subprocess.Popen([sys.executable, "-c", sleeper])
    repro = subprocess.Popen([sys.executable, "-c", sleeper, "dvc", "repro"])
    try:
        for pid, removed in ((stranger.pid, True), (repro.pid, None), (2**22 - 1, True)):
            entry = {"pid": pid, "cmd": "dvc repro"}
            for content in ({"write": {"/a": entry}}, {"read": {"/a": [entry]}, "write": {}}):
                path = rwlock(tmp_path, json.dumps(content))
                assert dvc_files.free_dvc(tmp_path) is removed
                assert path.exists() is (removed is None)
    finally:
        for process in (stranger, repro):
            process.kill()
            process.wait()
