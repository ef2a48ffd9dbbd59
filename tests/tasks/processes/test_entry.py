"""How a stage's program ends: by an error in one line, and with the program that ran it."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers.workspaces import wait_for

from tasks.processes import entry

STAGE = """
import os, sys, time
from tasks.processes import entry
def stage():
    print(os.getpid(), flush=True)
    time.sleep(60)
entry.run(stage)
"""
# As DVC does: the stage's program is a child, and what it prints is passed on.
RUNNER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=False)"


@pytest.mark.parametrize("by_dvc", [True, False])
def test_a_stage_ends_with_the_dvc_that_ran_it(by_dvc: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, STAGE],
        env={**environment, **({"DVC_STAGE": "train"} if by_dvc else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert runner.stdout is not None
    stage = psutil.Process(int(runner.stdout.readline()))
    runner.kill()
    runner.wait()
    if by_dvc:
        wait_for(lambda: not stage.is_running(), 10, "the stage to end")
    else:  # a program started by hand outlives its terminal, if its owner wants so
        with pytest.raises(psutil.TimeoutExpired):
            stage.wait(2)
        stage.kill()


def fill_the_disk() -> None:
    Path("/dev/full").write_text("x")


def write_where_nobody_may() -> None:
    raise PermissionError(errno.EACCES, "Permission denied", "models/vae")


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)


@pytest.mark.parametrize(
    ("stage", "code", "said"),
    [
        (
            fill_the_disk,
            2,
            "error: No space left on device; free some space, then run the same command again",
        ),
        (
            write_where_nobody_may,
            2,
            "error: models/vae: Permission denied; make it writable, then run the same",
        ),
        (press_ctrl_c, 130, "interrupted"),
    ],
)
def test_what_a_person_can_put_right_is_one_line(
    stage: Callable[[], None], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        entry.run(stage)
    assert ended.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(said)


def test_another_error_of_the_system_is_a_bug_and_shows_where(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        entry.run(lambda: print(tmp_path.read_text()))
