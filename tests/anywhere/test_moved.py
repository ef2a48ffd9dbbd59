"""A workspace that was moved (`mv p q`) or copied (`cp -r p q`) after its first run.

Tried on whole workspaces, from and to plain names and `q é#'&$x (1)`: `mv`, `cp -r` with the original kept or removed;
then `make run`, `make up`, the deployment, `dvc repro`, `vae report candidate`, `vae trace`, `models:/vae@candidate`.

OK already: DVC's cache, its lock, data, models, reports and checkpoints name no folder; the stages; Prefect's database
(the deployment names its folder, and `make up` deploys again); DVC's cache of hashes is keyed by the folder.

Failed: MLflow's database names the old folder, which new runs made again or, where it was a copy's original, wrote into
(experiments, runs, logged models, versions, and MLflow's experiment Default, without `file:`); `.dvc/config.local`
named it, so DVC made it again; the notes of dead runs are kept by the store's address, so nobody ended those runs;
`.venv` named it in its scripts, `activate` and the editable install, so `vae` in a copy was that of the original, and
after `mv` there was none; a copy's file times made `make` install everything again.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import vae
from helpers.project import PROJECT
from helpers.workspaces import stand_in
from mlflow.artifacts import download_artifacts

from tasks.host import place, virtual_env
from tasks.tracking import store

MODEL = "vae"


@pytest.fixture
def ran(tmp_path: Path, new_store: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace `p` with a run, its report and a registered model; this process works there."""
    folder = tmp_path / "p"
    (folder / "mlruns").mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(new_store)
    with sqlite3.connect(folder / "mlflow.db") as database:  # MLflow names the working folder of its first use
        database.execute("update experiments set artifact_location = ? where name = 'Default'", [f"{folder}/mlruns/0"])
    (folder / "dvc.yaml").touch()
    enter(folder, monkeypatch)
    client, experiment = store.connect()
    run = client.create_run(experiment)
    client.log_text(run.info.run_id, "the report", "report.html")
    client.create_registered_model(MODEL)
    version = client.create_model_version(MODEL, run.info.artifact_uri, run.info.run_id)
    client.set_registered_model_alias(MODEL, "candidate", version.version)
    return folder


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    stand_in(folder, patch)  # MLflow sets the variable that this removes


def move(old: Path, new: Path, how: str) -> None:
    if how == "mv":
        old.rename(new)
        return
    shutil.copytree(old, new, copy_function=shutil.copyfile)  # new times, as `cp -r` gives them
    if how == "cp; rm":
        shutil.rmtree(old)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def report_of(run_id: str) -> str:
    return Path(download_artifacts(run_id=run_id, artifact_path="report.html")).read_text()


def locations(folder: Path) -> list[str]:
    """Every text in MLflow's database that names a folder for artifacts."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        rows = [row for table in tables for row in database.execute(f'select * from "{table}"')]
    texts = [str(value) for row in rows for value in row]
    return [text for text in texts if re.match(r"(file:/+|/).*mlruns", text)]


@pytest.mark.parametrize("how", ["mv", "cp", "cp; rm"])
def test_the_store_follows(ran: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ran.with_name("q é#'&$x (1)")
    move(ran, here, how)
    before = files(ran)
    enter(here, monkeypatch)
    client, experiment = store.connect()
    assert store.connect()[1] == experiment, "the second time there is nothing to do"

    (known,) = client.search_runs([experiment])
    new = client.create_run(experiment)
    client.log_text(new.info.run_id, "the next report", "report.html")
    for run, text in ((known, "the report"), (new, "the next report")):
        assert report_of(run.info.run_id) == text
        assert list((here / "mlruns" / run.info.run_id).rglob("report.html"))
    assert (Path(download_artifacts(f"models:/{MODEL}@candidate")) / "report.html").read_text() == "the report"
    default = client.create_run("0")
    client.log_text(default.info.run_id, "of a person", "note.txt")

    assert len(found := locations(here)) >= 5
    assert {text for text in found if not text.startswith((f"{here}/", here.as_uri()))} == set()
    assert files(ran) == before, "the original is not touched, and not made again"


def test_nothing_is_renamed_that_is_only_at_the_old_place_or_was_put_there(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ran.with_name("q")
    move(ran, here, "cp")
    (run,) = (here / "mlruns").iterdir()
    shutil.rmtree(run)  # an earlier version of this project had the copy write into the original
    enter(here, monkeypatch)
    store.connect()
    assert report_of(run.name) == "the report"

    big = tmp_path / "a big disk"
    (here / "mlruns").rmdir()
    (big / "mlruns").mkdir(parents=True)
    with sqlite3.connect(here / "mlflow.db") as database:
        database.execute("update experiments set artifact_location = ?", [(big / "mlruns").as_uri()])
    assert place.elsewhere() is None
    (here / "mlruns").mkdir()
    with sqlite3.connect(here / "mlflow.db") as database:
        database.execute("update experiments set artifact_location = 'file:///mnt/not-mounted/vae-artifacts'")
    assert place.elsewhere() is None


def test_a_damaged_database_stays_as_it_is_with_a_warning(
    ran: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (ran / "mlflow.db").write_bytes(b"no database at all, but of some length")
    place.follow()
    assert "may still name the folder in which this workspace was: file is not a database" in caplog.text


def test_the_store_of_mlflow_tracking_uri_stays_as_it_is(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ran.with_name("q")
    move(ran, here, "cp")
    enter(here, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ran / 'mlflow.db'}")
    before = locations(ran), locations(here)
    store.connect()
    assert (locations(ran), locations(here)) == before


def test_the_runs_of_dead_processes_end_where_the_notes_now_are(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, experiment = store.connect()
    run_id = client.create_run(experiment).info.run_id
    store.leave_note(run_id, {})
    here = ran.with_name("q")
    move(ran, here, "mv")
    enter(here, monkeypatch)
    client, _ = store.connect()
    assert client.get_run(run_id).info.status == "KILLED"


def test_the_doctor_names_what_has_not_followed_yet(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(ran)
    here = ran.with_name("q")
    move(ran, here, "mv")
    enter(here, monkeypatch)
    before = [text for state, text in place.unsettled() if state == "problem"]
    assert [text.partition(" ")[0] for text in before[1:]] == ["DVC", "MLflow's"]
    assert before[0].startswith(f"{here / '.venv'}") and "names another folder: `make setup`" in before[0]
    assert str(ran / "mlruns") in before[2] and vae("doctor").stdout.count("`make setup`") >= 2
    place.settle()
    assert [text for state, text in place.unsettled() if state == "problem"] == []


def environment(root: Path) -> Path:
    """An environment as venv and pip make it, with one package and a stand-in for pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / ".venv")], check=True)
    (site,) = (root / ".venv").glob("lib/python*/site-packages")
    (site / "_editable_impl_vae_train.pth").write_text(str(root))
    (site / "vae_train-1.dist-info").mkdir()
    (site / "vae_train-1.dist-info" / "direct_url.json").write_text(f'{{"url": "{root.as_uri()}"}}')
    (site / "pip").mkdir()
    (site / "pip" / "__init__.py").touch()
    (site / "pip" / "__main__.py").write_text("import sys; sys.exit('this pip installs nothing')")
    python = root / ".venv/bin/python3"
    for name, header in (("vae", f"#!{python}"), ("long", f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''")):
        script = root / ".venv/bin" / name
        script.write_text(f"{header}\nimport sys, marker\nprint(sys.prefix, marker.__file__, *sys.argv[1:], sep='|')\n")
        script.chmod(0o755)
    (root / "marker.py").touch()
    return root / ".venv"


def shell(command: str, folder: Path, name: str = "bash") -> str:
    """What a shell prints in which nothing is active."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "VIRTUAL_ENV", "PYTHON"))}
    done = subprocess.run([name, "-c", command], cwd=folder, env=mine, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["q", "it's q é#&$x (1)"])
def test_the_environment_follows(tmp_path: Path, name: str) -> None:
    old, here = tmp_path / "p", tmp_path / name
    (old / "docs").mkdir(parents=True)
    environment(old)
    (old / "tasks").mkdir()
    (old / "tasks/workspace.py").touch()
    kept = tmp_path / "a hard link"
    kept.hardlink_to(old / ".venv/bin/vae")
    virtual_env.relocate(old)
    assert str(old) in kept.read_text() and (old / ".venv/bin/vae").stat().st_mode & 0o111
    assert virtual_env.absolute(old) == []

    shutil.copytree(old, here, symlinks=True)
    expected = f"{here / '.venv'}|{here / 'marker.py'}|two words|*"
    for script in ("vae", "long"):
        assert shell(f".venv/bin/{script} 'two words' '*'", here) == expected
    for sh, source in (("bash", "source"), ("sh", ".")):
        assert shell(f"{source} .venv/bin/activate; vae 'two words' '*'", here, sh) == expected
    assert shell("source ../.venv/bin/activate; echo $VIRTUAL_ENV", here / "docs") == str(here / ".venv")
    (tmp_path / "vae").symlink_to(here / ".venv/bin/vae")
    assert shell("./vae 'two words' '*'", tmp_path) == expected

    cache = "import os; print(os.environ['DVC_SITE_CACHE_DIR'])"
    assert shell(f'.venv/bin/python -c "{cache}"', here) == str(here / ".run/dvc")
    assert shell(f'../.venv/bin/python -c "{cache}"', here / "docs") == str(here / ".run/dvc")
    active = shell(f'source ../p/.venv/bin/activate; python -c "{cache}"', here)
    assert active == str(here / ".run/dvc"), "the original's environment is active, and DVC works in the copy"


def test_an_environment_of_an_earlier_version_follows_by_make_setup(tmp_path: Path) -> None:
    environment(tmp_path / "p")
    here = tmp_path / "q"
    (tmp_path / "p").rename(here)
    assert len(virtual_env.absolute(here)) >= 5
    virtual_env.relocate(here)
    assert shell(".venv/bin/vae", here) == f"{here / '.venv'}|{here / 'marker.py'}"
    assert virtual_env.absolute(here) == []
    link = tmp_path / "linked"
    link.mkdir()
    (link / ".venv").symlink_to(here / ".venv")
    assert virtual_env.absolute(link) == [], "this one lies elsewhere, for others too"


def with_setup(root: Path) -> Path:
    """What `make .venv/ready` needs, beside an environment that pip has filled."""
    for name in ("Makefile", "constraints.txt", "tasks/host/virtual_env.py", "tasks/host/packages.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, root / name)
    (root / "pyproject.toml").write_text("damaged")
    environment(root)
    needed = b"".join((root / name).read_bytes() for name in virtual_env.INSTALLED_FROM)
    (root / ".venv/ready").write_bytes(needed)
    return root


def make(root: Path, PYTHON: str = sys.executable) -> "subprocess.CompletedProcess[str]":
    command = ["make", "--silent", ".venv/ready", f"PYTHON={PYTHON}"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_a_copy_is_not_installed_again_and_half_an_installation_is_none(tmp_path: Path) -> None:
    here = with_setup(tmp_path / "it's q é#&$x (1)")
    os.utime(here / "pyproject.toml")
    os.utime(here / ".venv/ready", (0, 0))  # a copy's times are those of its making, in any order
    done = make(here)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    (here / "pyproject.toml").write_text("changed")
    os.utime(here / ".venv/ready", (0, 0))
    for _ in range(2):
        done = make(here)
        assert done.returncode == 2 and "this pip installs nothing" in done.stderr
        assert "uv is not used: pip cannot read its configuration; pip installs" in done.stdout
        assert not (here / ".venv/ready").exists()


def test_an_environment_without_its_interpreter_is_made_again(tmp_path: Path) -> None:
    here = with_setup(tmp_path / "q")
    assert make(here, PYTHON="echo").stdout == ""
    (here / ".venv/bin/python").unlink()
    (here / ".venv/bin/python").symlink_to("/removed/python3")
    assert "tasks/host/virtual_env.py" in make(here, PYTHON="echo").stdout


@pytest.mark.parametrize("linked", [False, True])
def test_an_environment_that_does_not_start_here_is_left_alone(tmp_path: Path, linked: bool) -> None:
    """Its interpreter may be a module that is not loaded, or of another machine; others may use it too."""
    here = with_setup(tmp_path / "q")
    if linked:
        (here / ".venv").rename(tmp_path / "shared")
        (here / ".venv").symlink_to(tmp_path / "shared")
    python = here / ".venv/bin/python"
    python.unlink()
    python.write_text("#!/bin/sh\nexit 127\n")
    python.chmod(0o755)
    (here / ".venv/ready").unlink()
    kept = (here / ".venv").resolve()
    before = sorted(kept.rglob("*"))
    done = make(here)
    assert done.returncode == 2 and "does not start here; load the Python that it was made with" in done.stderr
    assert sorted(kept.rglob("*")) == before


def test_vae_does_not_work_on_a_copy_by_the_program_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "tasks/workspace.py").touch()
    (tmp_path / "docs").mkdir()
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for folder in (tmp_path, tmp_path / "docs"):
        monkeypatch.chdir(folder)
        done = vae("trace")
        assert done.exit_code == 2 and f"the working folder to {tmp_path}: `make setup` and" in done.stderr
