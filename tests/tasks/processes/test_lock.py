import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.processes.lock import free_dvc, hold
from vae.config.errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from tasks.processes.lock import hold
with hold(Path(sys.argv[1]), "flow run quiet-otter"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "workspace.lock"


def other_holder(lock: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_it_is_free_again_after_the_block_and_after_an_error(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(lock, "a"):
        1 / 0  # noqa: B018  # the error is the point
    with hold(lock, "b"):
        pass
    assert not lock.with_suffix(".holder").exists()


def test_the_second_is_told_who_holds_it(lock: Path) -> None:
    process = other_holder(lock)
    try:
        with (
            pytest.raises(InputError, match=rf"flow run quiet-otter \(process {process.pid}\)"),
            hold(lock, "b"),
        ):
            pass
        assert lock.with_suffix(".holder").exists(), "the second must not remove the note of the first"
    finally:
        process.kill()
        process.wait()


def test_a_killed_holder_holds_nothing(lock: Path) -> None:
    process = other_holder(lock)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with hold(lock, "b"):
        assert '"who": "b"' in lock.with_suffix(".holder").read_text()


def test_it_waits_as_long_as_asked(lock: Path) -> None:
    process = other_holder(lock)
    threading.Timer(0.5, process.kill).start()
    begin = time.monotonic()
    with hold(lock, "b", seconds=30):
        assert 0.3 < time.monotonic() - begin < 20
    process.wait()


def test_without_a_readable_note_the_file_is_named(lock: Path) -> None:
    process = other_holder(lock)
    try:
        lock.with_suffix(".holder").write_text("not json")
        with pytest.raises(InputError, match=r"another process holds .*workspace\.lock"), hold(lock, "b"):
            pass
    finally:
        process.kill()
        process.wait()


def test_it_says_for_whom_it_waits(lock: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = other_holder(lock)
    threading.Timer(2.5, process.kill).start()
    with hold(lock, "b", seconds=30, tell=True):
        assert f"flow run quiet-otter (process {process.pid}); waiting up to 30 s" in capfd.readouterr().err
    process.wait()


def rwlock(root: Path, content: str) -> Path:
    path = root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"write": 3}', '{"write": {"x": {}}}', '{"read": {"x": [{"pid": "a"}]}}']
)
def test_a_torn_lock_of_dvc_is_removed(tmp_path: Path, content: str) -> None:
    path = rwlock(tmp_path, content)
    free_dvc(tmp_path)
    assert not path.exists()
    free_dvc(tmp_path)  # none is no error


def test_a_lock_of_dvc_is_removed_unless_a_dvc_holds_it(tmp_path: Path) -> None:
    sleeper = "import time; time.sleep(60)"
    stranger = subprocess.Popen([sys.executable, "-c", sleeper])
    repro = subprocess.Popen([sys.executable, "-c", sleeper, "dvc", "repro"])
    try:
        for pid, kept in ((stranger.pid, False), (repro.pid, True), (2**22 - 1, False)):
            entry = {"pid": pid, "cmd": "dvc repro"}
            for content in ({"write": {"/a": entry}}, {"read": {"/a": [entry]}, "write": {}}):
                path = rwlock(tmp_path, json.dumps(content))
                free_dvc(tmp_path)
                assert path.exists() is kept
    finally:
        for process in (stranger, repro):
            process.kill()
            process.wait()
