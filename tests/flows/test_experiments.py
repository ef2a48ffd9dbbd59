"""Results kept as DVC experiments, in small repositories of their own."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.workspaces import make_pipeline

from flows import experiments

RUN = "0123456789abcdef"
PIPELINE = """
stages:
  train:
    cmd: cp params.yaml metrics.json
    params: [seed]
    metrics: [metrics.json]
"""


def run(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(*arguments: str) -> str:
    return run(sys.executable, "-m", "dvc", *arguments)


def git(*arguments: str) -> str:
    return run("git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *arguments).strip()


def train(seed: int) -> None:
    Path("params.yaml").write_text(f'{{"seed": {seed}}}\n')
    dvc("repro", "--quiet")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline whose metric is its seed, trained with seed 1, in a clone whose owner has told Git no name."""
    for name in [name for name in os.environ if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER", "DVC_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    git("init", "--quiet", "--initial-branch", "main")
    make_pipeline(PIPELINE)
    Path(".gitignore").write_text("/metrics.json\n")
    train(1)
    git("add", "--all")
    git("commit", "--quiet", "-m", "all")
    return tmp_path / "work"


def kept() -> list[str]:
    return dvc("exp", "list", "--name-only").split()


def test_a_run_is_kept_listed_with_its_metrics_and_brought_back(repository: Path) -> None:
    train(2)
    before = git("status", "--porcelain"), git("symbolic-ref", "HEAD"), git("rev-parse", "HEAD")
    said = experiments.keep("collapse/leaves é-20260131", RUN, something_ran=True)
    assert said.startswith("kept as the DVC experiment collapse-leaves-20260131; ")
    assert (git("status", "--porcelain"), git("symbolic-ref", "HEAD"), git("rev-parse", "HEAD")) == before

    again = experiments.keep("another-name", RUN, something_ran=False)
    assert again == "these results are kept as the DVC experiment collapse-leaves-20260131"
    assert kept() == ["collapse-leaves-20260131"], "a cached run is not kept twice"

    git("checkout", "--quiet", "--detach")
    train(3)
    said = experiments.keep("collapse/leaves é-20260131", RUN, something_ran=True)
    assert "collapse-leaves-20260131-01234567" in said, "the name is taken"
    rows = csv.DictReader(io.StringIO(dvc("exp", "show", "--csv")))
    assert {row["Experiment"]: row["metrics.json:seed"] for row in rows if row["Experiment"]} == {
        "collapse-leaves-20260131": "2",
        "collapse-leaves-20260131-01234567": "3",
    }

    git("config", "user.name", "t")  # a person's own `dvc exp apply` wants it
    git("config", "user.email", "t@example.invalid")
    dvc("exp", "apply", "collapse-leaves-20260131")
    assert Path("metrics.json").read_text() == '{"seed": 2}\n'
    assert dvc("status").strip() == "Data and pipelines are up to date."


def test_what_was_edited_during_the_run_is_not_recorded_as_its_result(repository: Path) -> None:
    lock = Path("dvc.lock").read_text()
    Path("params.yaml").write_text('{"seed": 7}\n')
    said = experiments.keep("edited", RUN, something_ran=True)
    assert "changed during the run" in said
    assert kept() == [] and Path("dvc.lock").read_text() == lock


def test_without_git_or_a_commit_it_is_said_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert "this folder is not a Git repository" in experiments.keep("a", RUN, something_ran=True)
    git("init", "--quiet")
    assert "does not have any commits yet" in experiments.keep("a", RUN, something_ran=True)


@pytest.mark.parametrize(
    ("flow_run", "name"),
    [
        ("leaves-weight=0.5-20260131-120000", "leaves-weight=0.5-20260131-120000"),
        ("-x", "x"),
        ("a..b.lock", "a-b-lock"),
        ("§", "run"),
        ("two words", "two-words"),
        ("taken", "taken-01234567"),
    ],
)
def test_any_name_of_a_flow_run_becomes_one_that_git_takes(flow_run: str, name: str) -> None:
    assert experiments.unique(flow_run, RUN, {"taken"}) == name
    git("check-ref-format", f"refs/exps/{name}")
