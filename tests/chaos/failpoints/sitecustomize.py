"""On PYTHONPATH this kills a process tree at its n-th fsync or rename: FAILPOINT=n:before or n:after.

FAILPOINT_CALLS names a file that counts the calls of all processes, a line each. FAILPOINT=0 only counts.
"""

import os
import signal
import sys
from typing import Any

_calls = os.environ.get("FAILPOINT_CALLS")
_number, _, _when = os.environ.get("FAILPOINT", "0").partition(":")


def _at(function: Any) -> Any:
    def called(*arguments: Any, **options: Any) -> Any:
        number = _count(f"{function.__name__} {arguments[-1]} in {' '.join(sys.argv[:3])}")
        if number == int(_number) and _when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if number == int(_number) and _when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


def _count(what: str) -> int:
    descriptor = os.open(str(_calls), os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, (what.replace("\n", " ")[:200] + "\n").encode())  # appended whole: one line a call
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, 1 << 20).count(b"\n")
    finally:
        os.close(descriptor)


if _calls:
    for name in ("fsync", "rename", "replace"):
        setattr(os, name, _at(getattr(os, name)))
