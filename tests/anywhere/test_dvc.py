"""DVC's settings and refusals: outputs may be links into its cache, and what can never succeed is not tried again.

Tried, and right already: `cache.type` hardlink and reflink, a cache on another disk, `cache.shared group`; a data
folder that `dvc add` tracks, one with another DVC repository inside, links to folders, loops of links.
Failed before:
- `cache.type = symlink`: MLflow refuses to register a model whose files are links; evaluate fails three times
- an output that is a link, and a stage run by hand or `vae report --to`: the file in DVC's cache was changed
- `.dvcignore` in the data folder, `data.path=.`, `data` or `..`: three tries
- photos in `data/images`, the natural place: DVC deletes them before ingest begins
- a `dvc.yaml` that is no pipeline, outputs that overlap, a merge conflict in dvc.lock, an error in code: three tries
- another project's `dvc.yaml` in the data folder: results not kept, "changed during the run"
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import SHAPE, register, write_images, write_model
from helpers.models import config, network
from helpers.workspaces import make_pipeline, stand_in

from flows import experiments, stage
from tasks import data_path, workspace
from tasks.cli import doctor, named_run
from tasks.tracking import registry
from tasks.train import write_history
from vae.config.errors import InputError
from vae.config.sections import Data, Model
from vae.models import saved

IN_CACHE = b"of an earlier run"


def as_links(*files: Path) -> list[Path]:
    """What `dvc checkout` makes of outputs with `cache.type = symlink`: links to read-only files."""
    cached = []
    for file in files:
        target = Path(".dvc/cache").absolute() / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            file.replace(target)
        else:
            target.write_bytes(IN_CACHE)
        target.chmod(0o444)
        file.symlink_to(target)
        cached.append(target)
    return cached


def test_a_model_behind_links_is_registered_and_loaded(empty_workspace: Path, new_store: bytes) -> None:
    Path("mlflow.db").write_bytes(new_store)
    made = write_model()
    as_links(*workspace.MODEL.iterdir())
    register("linked", 1.0)
    assert registry.load("models:/vae@candidate").sha256 == made.sha256


def model(seed: int) -> None:
    saved.save(workspace.MODEL, network(config(SHAPE, Model()), seed), config(SHAPE, Model()))


WRITTEN: dict[str, tuple[Path, Callable[[], object]]] = {
    "json": (workspace.MONITOR, lambda: workspace.write_json(workspace.MONITOR, {})),
    "text": (workspace.REPORT, lambda: workspace.write(workspace.REPORT, "new")),
    "history": (workspace.HISTORY, lambda: write_history([], [])),
    "latents": (workspace.KL_PER_LATENT, lambda: write_history([], [])),
    "weights": (workspace.MODEL / saved.WEIGHTS_FILE, lambda: model(1)),
    "configuration": (workspace.MODEL / saved.CONFIG_FILE, lambda: model(1)),
    "copy of a report": (
        workspace.REPORTS / "copy.html",
        lambda: named_run.report(None, workspace.REPORTS / "copy.html"),
    ),
}


@pytest.mark.parametrize(("file", "write"), WRITTEN.values(), ids=WRITTEN)
def test_a_cached_file_is_never_changed(empty_workspace: Path, file: Path, write: Callable[[], object]) -> None:
    workspace.REPORTS.mkdir()
    workspace.REPORT.write_text("a report")
    (cached,) = as_links(file)
    before = cached.read_bytes(), cached.stat().st_mtime_ns
    write()
    assert (cached.read_bytes(), cached.stat().st_mtime_ns) == before
    assert not file.is_symlink() and file.read_bytes() != before[0]


def data(path: Path | str) -> None:
    data_path.check(Data(source="folder", path=str(path)))


@pytest.mark.parametrize(
    ("path", "how"),
    [
        (".", "contains data/images, which a run writes"),
        ("..", "contains data/images"),
        ("/", "contains data/images"),
        ("data", "contains data/images"),
        ("models", "contains models/vae"),
        ("data/images", "is data/images"),
        ("reports/plots", "lies inside reports"),
        ("linked", "lies inside .dvc"),
        (".git", "is .git"),
    ],
)
def test_data_among_the_outputs_are_refused(empty_workspace: Path, path: str, how: str) -> None:
    for place in ("data/images", "models/vae", "reports/plots", ".dvc/photos", ".git"):
        Path(place).mkdir(parents=True, exist_ok=True)
    Path("linked").symlink_to(Path(".dvc/photos"))
    with pytest.raises(InputError, match=rf"data\.path = {re.escape(path)} {re.escape(how)}.*such as data/photos"):
        data(path)


def test_photos_beside_the_outputs_pass(empty_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for place in (Path("data/photos"), Path("data/images2"), Path("photos"), tmp_path_factory.mktemp("elsewhere")):
        (place / "cats" / ".dvc").mkdir(parents=True)  # another DVC repository is a folder as any other
        (place / "cats.dvc").write_text("outs: []\n")
        data(place)


def test_photos_that_dvc_would_delete_stop_the_run(empty_workspace: Path) -> None:
    write_images()
    Path("data/images/.DS_Store").touch()
    Path("photos").mkdir()
    data("photos")
    Path("data/images/cats").mkdir()
    with pytest.raises(InputError, match=r"holds 1 file.*such as 'data/images/cats'; a run would delete them"):
        data("photos")
    with pytest.raises(InputError, match="a run would delete them"):
        data_path.check(Data())  # whatever the run is of


def test_a_dvcignore_among_the_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / ".dvcignore").touch()
    with pytest.raises(InputError, match=r"holds 1 \.dvcignore file\(s\), such as '.*cats/\.dvcignore'"):
        data(tmp_path)


def failure(pipeline: str) -> stage.StageFailed:
    Path("dvc.yaml").write_text(pipeline)
    with pytest.raises(stage.StageFailed) as error:
        stage.run("make", print, {})
    assert "\n" not in str(error.value)
    return error.value


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    make_pipeline("", "no_scm = true")
    Path("source").mkdir()


def stage_of(command: str, more: str = "") -> str:
    return f"stages:\n  make:\n    cmd: {command}\n    outs: [made]\n{more}"


REFUSED = {
    "schema": ("stages: 3\n", "'./dvc.yaml' validation failed: expected a dictionary"),
    "no YAML": ("stages: [\n", "'./dvc.yaml' is invalid: While parsing a flow node"),
    "no such parameter": (stage_of("touch made", "    params: [gone]\n"), "gone"),
    "no such dependency": (stage_of("touch made", "    deps: [gone]\n"), "gone"),
}


@pytest.mark.parametrize(("definition", "word"), REFUSED.values(), ids=REFUSED)
@pytest.mark.usefixtures("pipeline")
def test_what_dvc_refuses_is_not_tried_again(definition: str, word: str) -> None:
    Path("params.yaml").write_text("seed: 0\n")
    refused = failure(definition)
    assert word in str(refused) and not refused.may_be_retried


CRASHES = {
    "TypeError: 'int' object is not callable": False,
    "ModuleNotFoundError: No module named 'vae'": False,
    "UnicodeDecodeError: 'ascii' codec": False,
    "RuntimeError: CUDA error: an illegal memory access was encountered": True,
    "torch.AcceleratorError: CUDA error: unknown error": True,
    "requests.exceptions.ConnectionError: HTTPConnectionPool: Max retries exceeded": True,
    "OSError: [Errno 28] No space left on device": False,
    "OSError: [Errno 5] Input/output error": True,
}


@pytest.mark.parametrize(("crash", "again"), CRASHES.items(), ids=[name.split(":")[0] for name in CRASHES])
def test_a_crash_is_tried_again_where_that_can_help(crash: str, again: bool) -> None:
    output = stage._Output("train")
    for line in ("Running stage 'train':", "Traceback (most recent call last):", crash):
        output.read(line)
    output.read("ERROR: failed to reproduce 'train': failed to run: python -m tasks.train, exited with 1")
    assert (output.reason, output.may_end_otherwise) == (crash, again)


def test_another_dvc_at_work_is_waited_for() -> None:
    for lines in (
        ("ERROR: Unable to acquire lock. Most likely another DVC process is running or was terminated abruptly.",),
        ("ERROR: '/x/made' is busy, it is being blocked by:", "  (PID 12): dvc repro"),
    ):
        output = stage._Output("train")
        assert not output.may_end_otherwise
        for line in lines:
            output.read(line)
        assert output.may_end_otherwise


@pytest.mark.usefixtures("pipeline")
def test_dvc_files_of_the_data_are_not_this_pipelines() -> None:
    Path("dvc.yaml").write_text(stage_of("touch made"))
    assert stage.run("make", print, {}) == "Completed"
    Path("source/dvc.yaml").write_text(stage_of("touch made"))
    assert experiments._changed() is None
    assert [state for state, _ in doctor.stages()] == ["ok"]
    Path("dvc.yaml").write_text("stages: 3\n")
    assert "validation failed" in str(experiments._changed())


@pytest.mark.usefixtures("pipeline")
def test_the_doctor_knows_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.cache()) == [("ok", str(Path(".dvc/cache").absolute()))]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    ((state, text),) = doctor.cache()
    assert state == "problem" and "cannot be written to" in text
