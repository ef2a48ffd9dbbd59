"""Beside other programs: what a share is of, one training of a second, and the report."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import contention as bench
from benchmarks.contention import Condition
from benchmarks.time_to_quality import Case
from tasks import workspace
from vae import limits

TINY = Case({"source": "digits", "image_size": 8}, 8, 3, {"latent_dim": 4, "widths": [8]})


@pytest.mark.parametrize(
    ("condition", "threads", "cores"),
    [
        (Condition(), 2, 2),
        (Condition(), 1, 1),
        (Condition(1), 2, 1),
        (Condition(1), 1, 1),  # a core is left for it
        (Condition(2), 2, 2 / 3),
        (Condition(2), 1, 2 / 3),
        (Condition(quota=1.5), 2, 1.5),
        (Condition(quota=0.5), 1, 0.5),
    ],
)
def test_a_fair_share_is_what_the_others_leave_or_as_much_as_each_has(
    condition: Condition, threads: int, cores: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "affinity", lambda: {0, 1})
    assert condition.fair(threads) == pytest.approx(cores)


def test_the_bench_times_every_training_and_compares_it_with_the_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {"alone": 100.0, "1 program": 40.0}
    now = iter(["alone", "alone", "1 program", "1 program"])

    def run(module: str, name: str, trainer: str, seconds: str, folder: str) -> dict[str, Any]:
        return {"threads": 2, "images_per_second": speeds[next(now)] / (1 if trainer == "vae-train" else 10)}

    monkeypatch.setattr(bench, "in_own_process", run)
    monkeypatch.setattr(bench, "TABLE", tmp_path / workspace.REPORTS / "contention.csv")
    monkeypatch.setattr(limits, "affinity", lambda: {0, 1})
    monkeypatch.chdir(tmp_path)
    bench.main(case=["digits"], condition=["1 program"], seconds=1, repeats=1)
    lines = capsys.readouterr().out.splitlines()
    assert "| digits | 1 program | 2 | 40 | 0.80 | 2 | 4 | 0.80 |" in lines
    assert len(bench.TABLE.read_text().splitlines()) == 5


@pytest.mark.parametrize("trainer", bench.TRAINERS)
def test_a_training_ends_after_its_time(trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CASES", {"tiny": TINY})
    monkeypatch.setattr(bench, "UNTIMED", 0.1)
    before = torch.get_num_threads()
    try:
        found = bench.one("tiny", trainer, 0.2)
    finally:
        torch.set_num_threads(before)
    assert found["images_per_second"] > 1 and found["threads"] >= 1


def test_a_quota_is_of_the_processes_within() -> None:
    own, before = limits.OWN_GROUPS.read_text() if limits.OWN_GROUPS.exists() else "", limits.cores()
    if not bench.can_limit():
        pytest.skip("only root may make a control group")
    with bench.limited(0.5):
        assert limits.cores() == 1
    assert limits.cores() == before and limits.OWN_GROUPS.read_text() == own
