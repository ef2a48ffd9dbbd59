import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.lock import hold
from vae.errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from tasks.lock import hold
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
