"""`python -m tasks.processes.owned_dvc COMMAND…`: DVC, ended when the program that runs it is gone.

Without a command it runs those on its standard input, one a line, as `tasks.processes.owner.OwnedDVC` writes them: to
load DVC takes longer than to find a stage unchanged. A stage watches both programs by itself; this covers what DVC does
before and after one: hashing, restoring and caching outputs.
"""

import json
import os
import signal
import sys
from typing import IO

from dvc.cli import main

from tasks.processes import owner


def serve(commands: IO[str]) -> None:
    """Runs each command in its own environment, and says by a line of its own with which exit code it ended."""
    usual = dict(os.environ)
    for line in commands:
        mark, command, additions = json.loads(line)
        os.environ.update(additions)
        code = main(command)
        os.environ.clear()
        os.environ.update(usual)
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), f"\n{mark} {code}\n".encode())  # whole, whatever else writes there


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & had it ignored
    owner.end_with_program()
    if sys.argv[1:]:
        sys.exit(main(sys.argv[1:]))
    source = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())  # what the stages read
    try:
        serve(source)
    except KeyboardInterrupt:
        sys.exit(130)
