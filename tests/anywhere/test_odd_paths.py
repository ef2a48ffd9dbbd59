"""A workspace in a folder whose path a shell, `make`, DVC, SQLAlchemy or a URL could take for something else.

Tried on whole workspaces: `make setup`, `run`, `up`, `down` and the deployment in `q é#'&$x (1)`; the session's
workspaces of the other tests lie in such a folder too. Stores alone: the names below.

OK already: blanks and `é` in all that Python does; SQLAlchemy takes the path of an SQLite file as it stands, up to `?`;
`file:` URIs are encoded by `as_uri` and decoded by MLflow.

Failed: `make` in `répo` ("'ascii' codec": `dvc config` wrote the path into `.dvc/config.local`, and left an empty file
that the next `make` took for done); an apostrophe ended the quotes of that recipe; `#` began a comment in that file,
`,` a list; `pip` puts the path in double quotes into scripts, where `$x` is replaced, and so does venv in `activate`;
`%` (MLflow's migrations: three trainings and a traceback), `?` and `:` were found out late.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from configobj import ConfigObj
from helpers.project import PROJECT
from helpers.workspaces import stand_in
from mlflow.artifacts import download_artifacts

from tasks.host import place, virtual_env
from tasks.tracking import store
from vae.config.errors import InputError

ODD = ("répo", "a b#c", "it's & $HOME (1)", 'q"`;\\', "[!]*{}=@,~", "-n", "naïve ünïcödé 日本")


@pytest.mark.parametrize("name", ODD)
def test_a_store_works_in_a_folder_of_any_name(
    tmp_path: Path, new_store: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(new_store)
    stand_in(folder, monkeypatch)
    client, experiment = store.connect()
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "the report", "report.html")
    assert len(list((folder / "mlruns" / run).rglob("report.html"))) == 1
    assert Path(download_artifacts(run_id=run, artifact_path="report.html")).read_text() == "the report"
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert virtual_env.unusable(folder) is None


@pytest.mark.parametrize("name", ["a:b", "what?", "100%", "two\nlines", "\udce9"])
def test_a_folder_that_a_tool_cannot_work_in_is_refused_before_anything_is_installed(tmp_path: Path, name: str) -> None:
    program = tmp_path / name / "tasks/host/virtual_env.py"
    program.parent.mkdir(parents=True)
    program.write_bytes((PROJECT / "tasks/host/virtual_env.py").read_bytes())
    done = subprocess.run([sys.executable, "-I", program], cwd=tmp_path / name, capture_output=True, check=False)
    assert done.returncode == 1 and done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and lines[0].endswith("; rename the folder")
    assert not (tmp_path / name / ".venv").exists()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where DVC's settings of this machine are, in a folder `répo` without Git, as an archive is unpacked."""
    folder = tmp_path / "répo #1, it's"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").write_bytes((PROJECT / ".dvc/config").read_bytes())
    stand_in(folder, monkeypatch)
    return folder / ".dvc/config.local"


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_dvc_works_there_and_its_settings_name_no_folder(settings: Path) -> None:
    place.configure_dvc()
    assert settings.read_text() == "[core]\nno_scm = true\n"
    folder = settings.parent.parent
    assert dvc(folder, "config", "core.no_scm") == "true"
    assert dvc(folder, "root") == "."
    (folder / ".git").mkdir()
    place.configure_dvc()
    assert "no_scm" not in settings.read_text()


def test_what_a_person_has_set_for_dvc_stays(settings: Path) -> None:
    settings.write_text("# the disk\n[cache]\n    dir = /größe/cache\n[core]\n    site_cache_dir = /old/.run/dvc\n")
    place.configure_dvc()
    config = ConfigObj(str(settings), encoding="utf-8")
    assert config.dict() == {"cache": {"dir": "/größe/cache"}, "core": {"no_scm": "true"}}
    assert settings.read_text().startswith("# the disk\n")
    before = settings.stat().st_ino
    place.configure_dvc()
    assert settings.stat().st_ino == before, "nothing to write"


@pytest.mark.parametrize("content", [b"[core\nhalf", b"[core]\n  name = '\xe9'\n"])
def test_settings_that_nobody_can_read_are_named(settings: Path, content: bytes) -> None:
    settings.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.local cannot be read .*; correct it, or delete it"):
        place.configure_dvc()
    assert settings.read_bytes() == content
