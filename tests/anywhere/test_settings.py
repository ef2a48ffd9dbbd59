"""A value given on the command line means what was typed: make, the shell's words and YAML do not change it.

Tried: a `#`, a `$`, `: `, digits only, a date, quotes, a backslash, `$(…)`, `%`, an accent, a leading `-` or `*` in
data.path; `null` for a parameter that may be null; SET in the environment; SET for a sub-make.
Was right before: blanks in quotes, accents, `=` within a value, a name that is misspelt.
Was wrong: make expanded `$x`, so that a folder without it was trained on; YAML took ` #2` for a comment, `2024` for a
number and `trip: rome` for a mapping.
"""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.ingests import photos
from helpers.parameters import parse
from helpers.project import PROJECT
from helpers.workspaces import Workspace, copy_project

from flows import artifacts
from tasks import overlay
from vae.config import loading
from vae.config.errors import InputError

# What is typed for a folder → the folder that is meant.
FOLDERS = {
    "'/d/photos #2'": "/d/photos #2",
    "/d/photos$x": "/d/photos$x",
    "/d/$(whoami)": "/d/$(whoami)",
    "2024": "2024",
    "2024-05-01": "2024-05-01",
    "1e3": "1e3",
    "yes": "yes",
    "null": "null",
    "'trip: rome'": "trip: rome",
    "'[old]'": "[old]",
    "'{a}'": "{a}",
    "*all": "*all",
    "'50%'": "50%",
    '"it\'s"': "it's",
    "a=b=c": "a=b=c",
}


@pytest.mark.parametrize(("typed", "folder"), FOLDERS.items())
def test_a_folder_is_the_one_that_was_typed(typed: str, folder: str) -> None:
    assert overlay.parse_settings(f"data.path={typed} train.epochs=2") == {"data.path": folder, "train.epochs": 2}


@pytest.mark.parametrize(
    ("setting", "value"),
    {
        "train.initial_weights=null": None,
        "train.initial_weights=2024": "2024",
        "evaluate.register_as=2024": "2024",
        "train.ema=null": None,
        "kl.max_weight=calibrated": "calibrated",
        "kl.max_weight=1e-3": 0.001,
        "train.compile=false": False,
        "seed=3": 3,
        "data.image_size='[8, 16]'": [8, 16],
    }.items(),
)
def test_every_other_parameter_is_read_as_yaml(setting: str, value: Any) -> None:
    assert list(overlay.parse_settings(setting).values()) == [value]


@pytest.mark.parametrize("given_by", ["an argument", "the environment", "a sub-make"])
@pytest.mark.parametrize(
    "text", ["data.path='/d/photos #2'", "data.path=/d/photos$x", "data.path='$(shell date) $$ `id`'"]
)
def test_make_hands_settings_on_as_they_are(text: str, given_by: str, tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    stub.chmod(0o755)
    command = ["make", "--makefile", str(PROJECT / "Makefile"), "--old-file", "setup", "run", f"BIN={tmp_path}"]
    if given_by == "a sub-make":
        outer = tmp_path / "outer.mk"
        outer.write_text(f"all:\n\t@$(MAKE) {shlex.join(command[1:])}\n", encoding="utf-8")
        command = ["make", "--no-print-directory", "--makefile", str(outer)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    if given_by == "the environment":
        environment["SET"] = text
    else:
        command.append(f"SET={text}")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "flows.vae_train", "--experiment", "", "--set", text]


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_the_suggested_command_names_the_same_folder(folder: str) -> None:
    settings = overlay.as_settings({"data.path": folder})
    _, _, assignment = shlex.split(artifacts.command("", settings, {"train.epochs": 9}))
    assert overlay.parse_settings(assignment.removeprefix("SET=")) == {"data.path": folder, "train.epochs": 9}


def test_a_number_for_a_text_in_params_yaml_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"data\.path = 2024: should be a valid string; put quotes around it in YAML"):
        parse({"data.path": 2024})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return copy_project(tmp_path_factory.mktemp("settings"))


@pytest.mark.parametrize("folder", ["photos #2", "photos$x", "2024", "trip: rome", "${seed}", "a%20b"])
def test_dvc_reads_the_folder_that_was_typed(place: Workspace, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it is the folder that a second reading would find."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("DVC_ROOT", str(place.folder))
    Path("photos").mkdir(exist_ok=True)
    photos(Path(folder))
    settings = overlay.as_settings({"data.source": "folder", "data.path": folder, "data.image_size": 16})
    overlay.apply(None, overlay.parse_settings(settings))
    assert loading.load().data.path == folder
    done = place.dvc("status", "ingest")
    assert done.code == 0 and "changed deps" in done.output and folder in done.output, done.output
