"""Commands that were renamed still work under their former names, with a warning."""

import subprocess
import sys

import pytest
from helpers.project import PROJECT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sweep", "python -m benchmarks.sweep"),
        ("zoo", "python -m benchmarks.collapse_cases"),
        ("bench", "python -m benchmarks.speed"),
        ("trace", "vae trace"),
        ("reproduce", "vae reproduce"),
    ],
)
def test_the_former_name_of_a_command(old: str, new: str) -> None:
    command = [sys.executable, "-m", f"tasks.{old}", "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert f"warning: `python -m tasks.{old}` is deprecated; use `{new}`" in done.stderr
    assert "Usage: " in done.stdout
