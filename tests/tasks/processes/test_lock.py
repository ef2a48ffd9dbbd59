import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.processes.lock import hold
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


@pytest.fixture
def other(lock: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_it_is_free_again_after_the_block_and_after_an_error(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(lock, "a"):
        1 / 0  # noqa: B018  # the error is the point
    with hold(lock, "b"):
        pass
    assert not lock.with_suffix(".holder").exists()


def test_the_second_learns_who_holds_it(lock: Path, other: "subprocess.Popen[str]") -> None:
    with pytest.raises(InputError, match=rf"by flow run quiet-otter \(process {other.pid}\)"), hold(lock, "b"):
        pass
    assert lock.with_suffix(".holder").exists(), "the second must not remove the first one's note"
    for damaged in ("not json", "[]", "{}"):
        lock.with_suffix(".holder").write_text(damaged)
        with pytest.raises(InputError, match=r"another process holds .*workspace\.lock"), hold(lock, "b"):
            pass


def test_a_killed_holder_holds_nothing(lock: Path, other: "subprocess.Popen[str]") -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    with hold(lock, "b"):
        assert '"who": "b"' in lock.with_suffix(".holder").read_text()


def test_it_waits_as_long_as_asked_and_says_for_whom(
    lock: Path, other: "subprocess.Popen[str]", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    threading.Timer(2.0, other.kill).start()
    begin = time.monotonic()
    with hold(lock, "b", seconds=30):
        assert 1.5 < time.monotonic() - begin < 20
    assert f"flow run quiet-otter (process {other.pid}); waiting up to 30 s" in caplog.text
