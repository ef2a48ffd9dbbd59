"""How a program ends: an error that the user can fix in one line, and what is logged where."""

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.processes import entry


def fill_the_disk() -> None:
    Path("/dev/full").write_text("x")


def write_where_nobody_may() -> None:
    raise PermissionError(errno.EACCES, "Permission denied", "models/vae")


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    """`entry.run` sets those of the whole process."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("stage", "code", "line"),
    [
        (fill_the_disk, 2, "error: No space left on device; free some space, then run the same command again"),
        (write_where_nobody_may, 2, "error: models/vae: Permission denied; check its permissions, then run the same"),
        (press_ctrl_c, 130, "interrupted"),
    ],
)
def test_what_a_person_can_fix_is_one_line(
    stage: Callable[[], None], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        entry.run(stage)
    assert ended.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(line)


def test_another_error_of_the_system_is_a_bug_and_shows_where(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        entry.run(lambda: print(tmp_path.read_text()))


def test_messages_are_bare_and_warnings_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    entry.log_to("stdout")
    logging.getLogger("tasks.anything").info("%d of %d", 1, 2)
    logging.getLogger("vae.anything").warning("look")
    logging.getLogger("elsewhere").info("not ours")
    assert capsys.readouterr() == ("1 of 2\nwarning: look\n", "")
