"""A stage ends with its DVC and with the program that runs that DVC; real processes, a stage of one sleep."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers.project import PROJECT
from helpers.workspaces import make_pipeline, wait_for

from tasks.processes import owner

PROMISED_SECONDS = 10  # until nothing of a run is left, and its locks are free

STAGE = """
import os, signal, sys, time
from pathlib import Path
from tasks.processes import entry

def stage():
    if Path("again").exists():
        return Path("made").write_text("")
    if Path("deaf").exists():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    Path("stage.pid.new").write_text(str(os.getpid()))
    Path("stage.pid.new").rename("stage.pid")
    while True:
        time.sleep(0.2)
        if not Path("deaf").exists():
            print("at work", flush=True)

entry.run(stage)
"""
PIPELINE = f"stages:\n  one:\n    cmd: {sys.executable} stage.py\n    deps: [stage.py]\n    outs: [made]\n"
FLOW = "from flows import stage; stage.run('one', print, {})"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A DVC repository with one stage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    make_pipeline(PIPELINE, "no_scm = true")
    Path("stage.py").write_text(STAGE)
    yield tmp_path
    for process in running(tmp_path):
        process.kill()


def running(place: Path) -> list[psutil.Process]:
    """The flow, DVC, the stage, and the shell between them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            here = process.cwd() == str(place) and process.pid != os.getpid()
            found += [process] if here and process.status() != psutil.STATUS_ZOMBIE else []
    return found


@pytest.mark.parametrize(
    ("victim", "number", "stage"),
    [
        ("flow", signal.SIGINT, "deaf"),
        ("flow", signal.SIGTERM, "noisy"),
        ("flow", signal.SIGKILL, "noisy"),
        ("flow", signal.SIGKILL, "deaf"),
        ("dvc", signal.SIGTERM, "noisy"),
        ("dvc", signal.SIGKILL, "deaf"),
    ],
)
def test_whatever_ends_the_flow_or_dvc_ends_the_stage_and_frees_the_locks(
    place: Path, victim: str, number: signal.Signals, stage: str
) -> None:
    Path(stage).touch()
    flow = subprocess.Popen([sys.executable, "-c", FLOW], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(Path("stage.pid").exists, 60, "the stage to start")
    dvc = next(p for p in psutil.Process(flow.pid).children() if "tasks.processes.owned_dvc" in p.cmdline())
    (flow if victim == "flow" else dvc).send_signal(number)
    wait_for(lambda: not running(place), PROMISED_SECONDS, "flow, DVC and stage to end")
    assert flow.wait() != 0
    Path("again").touch()
    again = subprocess.run([sys.executable, "-m", "dvc", "repro"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_flow_that_is_killed_while_dvc_hashes_takes_dvc_along(place: Path) -> None:
    Path("dvc.yaml").write_text(PIPELINE.replace("[stage.py]", "[stage.py, photos]"))
    Path("photos").mkdir()
    os.mkfifo("photos/pipe")  # DVC waits for its content forever
    flow = subprocess.Popen([sys.executable, "-c", FLOW], stdout=subprocess.DEVNULL)
    wait_for(Path(".dvc/tmp/rwlock").exists, 60, "DVC to begin")
    flow.kill()
    wait_for(lambda: not running(place), PROMISED_SECONDS, "flow and DVC to end")
    flow.wait()


def test_a_stage_that_was_started_by_hand_outlives_its_parent(place: Path) -> None:
    runner = "import subprocess, sys; subprocess.run([sys.executable, 'stage.py'], check=False)"
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    parent = subprocess.Popen([sys.executable, "-c", runner], env=environment, stdout=subprocess.DEVNULL)
    wait_for(Path("stage.pid").exists, 60, "the stage to start")
    stage = psutil.Process(int(Path("stage.pid").read_text()))
    parent.kill()
    parent.wait()
    with pytest.raises(psutil.TimeoutExpired):
        stage.wait(2)
    stage.kill()


def test_one_dvc_runs_one_command_after_another_and_a_dead_one_is_replaced(place: Path) -> None:
    Path("dvc.yaml").write_text("stages:\n  two:\n    cmd: printf $WORD; cat > made; exit 3\n    outs: [made]\n")
    seen: list[str] = []
    with owner.OwnedDVC() as dvc:
        for word in ("first", "second"):
            assert dvc.run(["repro", "two"], {"WORD": word}, seen.append) == 255
        assert any("first" in line for line in seen) and any("second" in line for line in seen)
        assert Path("made").read_text() == "", "a stage reads nothing of what is meant for DVC"
        assert dvc.run(["status", "--quiet"], {}, seen.append) == 1

        process = psutil.Process(dvc._process.pid)
        assert process.children() == []
        process.kill()
        process.wait()
        for _ in range(2):
            assert dvc.run(["status", "--quiet"], {}, seen.append) == 1
        assert dvc._process.pid != process.pid

        dead = dvc._process
        dead.kill()
        dead.wait()
        dead.poll = lambda: None  # type: ignore[method-assign]  # as if it had died a moment later
        assert dvc.run(["status", "--quiet"], {}, seen.append) == 1
    assert running(place) == []
