"""Control groups of both versions, as containers, systemd and Slurm set them up."""

import math
from pathlib import Path

import pytest

from vae import limits

SIXTEEN, GIBIBYTE = set(range(16)), 2**30

# /proc/self/cgroup; files below /sys/fs/cgroup; cores; memory in GiB, infinite for the machine's
CASES = {
    "no control groups": ("", {}, 16, math.inf),
    "version 2, no limits": ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, 16, math.inf),
    "a container of version 2": ("0::/", {"cpu.max": "150000 100000", "memory.max": str(GIBIBYTE)}, 2, 1),
    "half a core": ("0::/", {"cpu.max": "50000 100000"}, 1, math.inf),
    "a service of systemd, whose slice has less": (
        "0::/user.slice/a.service",
        {"user.slice/cpu.max": "300000 100000", "user.slice/a.service/cpu.max": "400000 100000"},
        3,
        math.inf,
    ),
    "a container of version 1, which names the host's group": (
        "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab",
        {
            "cpu,cpuacct/cpu.cfs_quota_us": "250000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": str(2 * GIBIBYTE),
        },
        3,
        2,
    ),
    "a job of Slurm in version 1": (
        "5:cpuset:/slurm\n3:cpu:/slurm/job_1",
        {"cpu/slurm/job_1/cpu.cfs_quota_us": "400000", "cpu/slurm/job_1/cpu.cfs_period_us": "100000"},
        4,
        math.inf,
    ),
    "version 1, no quota": (
        "2:cpu:/",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "cpu.max": "100000 100000"},
        16,
        math.inf,
    ),
    "both versions": ("1:cpu:/\n0::/job", {"unified/job/memory.max": str(3 * GIBIBYTE)}, 16, 3),
    "more than there are": ("0::/", {"cpu.max": "6400000 100000"}, 16, math.inf),
    "files of something else": ("nonsense", {"cpu.max": ""}, 16, math.inf),
}


@pytest.mark.parametrize("case", CASES)
def test_limits_are_those_of_the_tightest_group(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, files, cores, gibibytes = CASES[case]
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    monkeypatch.setattr(limits, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "affinity", lambda: SIXTEEN)
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 64 * GIBIBYTE, "SC_PAGE_SIZE": 1}.__getitem__)
    assert limits.cores() == cores
    assert limits.memory() == min(gibibytes, 64) * GIBIBYTE


def test_this_machine_has_cores_and_memory() -> None:
    assert 1 <= limits.cores() <= len(limits.affinity())
    assert 2**20 < limits.memory() < math.inf
