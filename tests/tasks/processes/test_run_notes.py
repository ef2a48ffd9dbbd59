"""Notes of processes: whose process is alive, whose is dead, and that a reused process id does not mislead."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.processes import run_notes

WORKER = """
import sys, time
from pathlib import Path
from tasks.processes import run_notes
with run_notes.noted(Path(sys.argv[1]), sys.argv[2], {"pid": 1}):
    print("noted", flush=True)
    time.sleep(60)
"""


def worker(folder: Path, name: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(folder), name], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "noted\n"
    return process


def test_the_living_are_distinguished_from_the_dead(tmp_path: Path) -> None:
    living, dead = worker(tmp_path, "living"), worker(tmp_path, "dead")
    try:
        assert set(run_notes.living(tmp_path)) == {"living", "dead"}
        assert list(run_notes.left_behind(tmp_path)) == []
        dead.kill()
        dead.wait()
        # Its note names process 1, which lives: the lock decides, not the id.
        assert run_notes.living(tmp_path) == {"living": {"pid": 1}}
        assert list(run_notes.left_behind(tmp_path)) == [("dead", {"pid": 1})]
        assert list(run_notes.left_behind(tmp_path)) == [], "each is reported once"
        assert set(run_notes.living(tmp_path)) == {"living"}, "a look takes nothing from the living"
    finally:
        living.kill()
        living.wait()


def test_a_note_is_gone_with_its_block_whatever_ends_it(tmp_path: Path) -> None:
    with run_notes.noted(tmp_path, "mine", {}):
        assert set(run_notes.living(tmp_path)) == {"mine"}
    with pytest.raises(KeyboardInterrupt), run_notes.noted(tmp_path, "mine", {}):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_fails_leaves_the_note_for_the_next(tmp_path: Path) -> None:
    dead = worker(tmp_path, "dead")
    dead.kill()
    dead.wait()
    with pytest.raises(ConnectionError):
        for _ in run_notes.left_behind(tmp_path):
            raise ConnectionError
    assert [name for name, _ in run_notes.left_behind(tmp_path)] == ["dead"]


def test_what_ends_properly_during_a_sweep_is_not_reported_as_dead(tmp_path: Path) -> None:
    dead = worker(tmp_path, "a")
    with run_notes.noted(tmp_path, "b", {}):
        dead.kill()
        dead.wait()
        sweep = run_notes.left_behind(tmp_path)
        assert next(sweep)[0] == "a"
    assert list(sweep) == []
