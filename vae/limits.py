"""What of the machine this process may use: by its affinity, and by the control groups of containers, systemd, Slurm.

https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def affinity() -> set[int]:
    """The numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores() -> int:
    """The number of cores to work on. A quota of one and a half cores counts as two, each busy three quarters."""
    quotas = [_quota(group) for group in groups("cpu")]
    return math.ceil(min([len(affinity()), *quotas]))


def memory() -> float:
    """Bytes of the machine, or of the tightest limit."""
    whole = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min([whole, *(_memory(group) for group in groups("memory"))])


def groups(controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all above it, of either version, as far as they can be seen here.

    A container sees its own group as the uppermost one.
    """
    with suppress(OSError, ValueError):  # no such file, or another format
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own, mounts = Path(path.removeprefix("/")), (controller, controllers)
            if not controllers:
                mounts = ("", "unified")  # version 2
            elif controller not in controllers.split(","):
                continue
            yield from (GROUPS / mount / group for mount in mounts for group in (own, *own.parents))


def _quota(group: Path) -> float:
    """Cores' worth of time; infinite without a quota."""
    with suppress(OSError, ValueError):  # version 2; "max" is no number
        quota, period = map(int, (group / "cpu.max").read_text().split())
        return quota / period
    with suppress(OSError, ValueError):
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    return math.inf


def _memory(group: Path) -> float:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            return float((group / name).read_text())
    return math.inf
