"""Leads the session of a stage's processes, so that whatever ends the program that wants them ends them too.

Run as `python -m tasks.supervisor COMMAND…` with a pipe as standard input. That program holds the other end: when the
pipe closes, because it wants so or because it is gone, even by SIGKILL, the whole group is
told to stop. SIGINT first: DVC ignores it during a stage, the trainer ends, and DVC frees its locks;
SIGTERM first would end DVC and leave its lock and the trainer behind.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PATIENCE = ((signal.SIGINT, 5.0), (signal.SIGTERM, 2.0))  # seconds that each signal is given


@contextmanager
def supervised_dvc(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """`python -m dvc COMMAND…` under a supervisor; its errors are among what it prints. It ends with the block."""
    # A worker may have been started without the environment active.
    interpreters = str(Path(sys.executable).parent)
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.processes.supervisor", sys.executable, "-m", "dvc", *command],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={
            **environment,
            "PATH": os.pathsep.join([interpreters, environment.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
            "DVC_NO_ANALYTICS": "true",
        },
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()  # whatever ended the block, the supervisor ends what still runs
        process.wait()


def main() -> None:
    # A worker that a shell's & started ignores SIGINT and hands that down: the trainer has to hear it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    # Set after the child was started, so that it does not inherit them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    done, finish = os.pipe()

    def close_when_done() -> None:
        child.wait()
        os.close(finish)

    threading.Thread(target=close_when_done, daemon=True).start()
    if done not in select.select([sys.stdin, done], [], [])[0]:
        for number, seconds in PATIENCE:
            os.killpg(0, number)
            if select.select([done], [], [], seconds)[0]:
                break
        else:
            os.killpg(0, signal.SIGKILL)
    code = child.wait()
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
