"""Where this workspace lies. It may be moved and copied: what holds its path follows.

Only MLflow's database holds its path, and `.venv` where pip has just written it. `python -m tasks.host.place`, the
second half of `make setup`, corrects both; whoever opens the database corrects that.
"""

import io
import logging
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from configobj import ConfigObj, ConfigObjError

from tasks import workspace
from tasks.host import virtual_env
from vae.config.errors import InputError

log = logging.getLogger(__name__)

EXPERIMENT = "vae-train"  # MLflow's, that of every run of this project

# Where MLflow keeps the places of artifacts. Its schema knows them as text.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def database() -> Path:
    """MLflow's own, of the workspace."""
    return workspace.root() / "mlflow.db"


def artifacts() -> Path:
    """What its runs have stored."""
    return workspace.root() / "mlruns"


def elsewhere() -> str | None:
    """The URI of the folder that MLflow's database names for the artifacts, where it is not this workspace's any more.

    None as well where a person has chosen a place for them: one of another name, or one that exists and is no
    workspace's.

    Raises:
        sqlite3.Error: the database cannot be read.
    """
    if not database().exists():
        return None
    with closing(sqlite3.connect(f"{database().as_uri()}?mode=ro", uri=True)) as read:
        return _named(read)


def _named(store: sqlite3.Connection) -> str | None:
    if "experiments" not in _tables(store):
        return None
    query = "select artifact_location from experiments where name = ?"
    named = next((uri for (uri,) in store.execute(query, (EXPERIMENT,))), None)
    if named is None or not named.startswith("file:///") or named == artifacts().as_uri():
        return None
    old = _path(named)
    other = old.exists() and not artifacts().exists() and not (old.parent / "dvc.yaml").exists()
    return None if other or old.name != artifacts().name else named


def follow() -> None:
    """Lets MLflow's database name the artifacts where they are.

    A file that is only at the old place stays in use there. A database that cannot be read or written stays as it is,
    with a warning.
    """
    try:
        if elsewhere() is None:
            return
        with closing(sqlite3.connect(database(), timeout=60, isolation_level=None)) as store:
            store.execute("begin immediate")
            if (old := _named(store)) is not None:
                _rename_all(store, old)
            store.execute("commit")
    except sqlite3.Error as error:
        log.warning("%s may still name the folder in which this workspace was: %s", database(), error)
    else:
        log.info("this workspace has moved: %s now names %s", database().name, artifacts())


def _rename_all(store: sqlite3.Connection, old: str) -> None:
    known = _tables(store)
    for table, column in _PLACES:
        if table in known:
            _rename(store, table, column, old, artifacts().as_uri())
            _rename(store, table, column, str(_path(old)), str(artifacts()))  # MLflow's own experiment has no `file:`


def _rename(store: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    within = f"{old}/"
    rows = store.execute(
        f"select rowid, {column} from {table} where {column} = ? or substr({column}, 1, ?) = ?",
        (old, len(within), within),
    ).fetchall()
    for row, was in rows:
        now = new + was.removeprefix(old)
        if was == old or _path(now).exists() or not _path(was).exists():
            store.execute(f"update {table} set {column} = ? where rowid = ?", (now, row))


def _tables(store: sqlite3.Connection) -> set[str]:
    return {name for (name,) in store.execute("select name from sqlite_master where type = 'table'")}


def _path(uri: str) -> Path:
    return Path(url2pathname(urlsplit(uri).path) if uri.startswith("file:") else uri)


def configure_dvc() -> str | None:
    """Sets `core.no_scm` in `.dvc/config.local` to what fits this folder; returns what was wrong.

    DVC needs the setting exactly where there is no `.git`: without it, it does not start there, or takes a repository
    around this folder for its own; with it, it knows no experiments. What a person has set besides stays.

    Raises:
        InputError: DVC cannot read the file either.
    """
    path, config, wrong = _dvc_settings()
    if wrong:
        write_config(path, config)
    return wrong


def _dvc_settings() -> tuple[Path, ConfigObj, str | None]:
    """The local settings as they should be, and what is wrong with those in the file."""
    folder, own = workspace.root() / ".dvc", os.path.lexists(workspace.root() / ".git")
    local, committed = _read_config(folder / "config.local"), _read_config(folder / "config")
    before = local.dict()
    core = local.setdefault("core", {})
    if Path(core.get("site_cache_dir", "")).parts[-2:] == (".run", "dvc"):  # of an earlier version of this project
        del core["site_cache_dir"]
    core.pop("no_scm", None)
    if (committed.get("core", {}).get("no_scm", "false").lower() == "true") == own:
        core["no_scm"] = str(not own).lower()
    if not core:
        del local["core"]
    if local.dict() == before:
        return folder / "config.local", local, None
    wrong = "ignores the Git repository of" if own else "expects a Git repository in"
    return folder / "config.local", local, f"DVC {wrong} this folder"


def _read_config(path: Path) -> ConfigObj:
    try:
        return ConfigObj(str(path) if path.exists() else None, encoding="utf-8", interpolation=False)
    except (ConfigObjError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read ({reason}); correct it, or delete it") from None


def write_config(path: Path, config: ConfigObj) -> None:
    """A file of DVC's settings: the whole of it or nothing, in UTF-8, whatever the paths in it."""
    content = io.BytesIO()
    config.write(content)
    workspace.write(path, content.getvalue().decode())


def settle() -> None:
    """Raises: InputError: DVC's settings cannot be read."""
    virtual_env.relocate(workspace.root())
    configure_dvc()
    follow()


def unsettled() -> Iterator[tuple[str, str]]:
    """(`problem` or `note`, text): what still names another folder than this one, or cannot be here."""
    root = workspace.root()
    if reason := virtual_env.unusable(root):
        yield "problem", reason
    for path in [path for path, _ in virtual_env.absolute(root) if path.suffix != ".json"][:1]:  # only pip reads those
        if os.fsencode(root) in path.read_bytes():  # as pip has just written it
            yield "note", f"{path} would not follow if this folder moved: `make setup`"
        else:
            yield "problem", f"{path} names another folder: `make setup`"
    try:
        if wrong := _dvc_settings()[-1]:
            yield "problem", f"{wrong}: `make setup`"
    except InputError as error:
        yield "problem", str(error)
    with suppress(sqlite3.Error):  # another check names it
        if uri := elsewhere():
            yield "problem", f"MLflow's database names {_path(uri)} for the files of its runs: `make setup`"
    program = Path(sys.prefix).parent
    if (program / "dvc.yaml").exists() and not program.samefile(root):
        yield "note", f"the environment of {program} is active, not one of this folder"


if __name__ == "__main__":
    try:
        settle()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
