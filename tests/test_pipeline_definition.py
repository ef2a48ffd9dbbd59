"""dvc.yaml against the code: a stage depends on exactly the code that shapes its outputs."""

import ast
import configparser
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dvc.repo import Repo
from helpers.project import PROJECT
from helpers.workspaces import stand_in
from ruamel.yaml import YAML

from flows.vae_train import STAGES
from tasks import overlay
from tasks.host import environment
from vae.config import loading, parameters
from vae.config.errors import InputError
from vae.training.history import COLUMNS

PACKAGES = ("flows", "tasks", "vae")

# These packages track and guard runs. Nothing in them shapes an output, so no stage depends on them.
APART = ("tasks/tracking", "tasks/processes", "tasks/host", "tasks/cli")


def definition() -> dict[str, Any]:
    return YAML(typ="safe").load(PROJECT / "dvc.yaml")


def imported(source: str) -> set[str]:
    """Every imported module, also inside functions; `from a import b` may mean a or a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def file_of(module: str) -> str | None:
    path = f"{module.replace('.', '/')}.py"
    return path if module.split(".")[0] in PACKAGES and (PROJECT / path).exists() else None


def code_behind(path: str) -> set[str]:
    """The file and all project files that it imports, at any depth, except those of `APART`."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in found and not current.startswith(APART):
            found.add(current)
            waiting += filter(None, map(file_of, imported((PROJECT / current).read_text(encoding="utf-8"))))
    return found


def dependency(path: str) -> str:
    """A file of tasks/ is a dependency by itself, a file of vae/ through its package there."""
    return "/".join(Path(path).parts[:2]) if path.startswith("vae/") else path


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_code_that_it_uses(stage: str) -> None:
    entry = definition()["stages"][stage]
    code = {dep for dep in entry["deps"] if dep.split("/")[0] in PACKAGES}
    assert code == set(map(dependency, code_behind(f"tasks/{stage}.py")))
    assert entry["cmd"] == f"python -m tasks.{stage}"


def stages_behind(*folders: str) -> list[str]:
    stages = definition()["stages"]
    return [name for name in STAGES if any(dep.startswith(folders) for dep in stages[name]["deps"])]


def test_what_an_edited_line_makes_run_again() -> None:
    assert stages_behind("vae/report") == ["evaluate"]
    assert stages_behind("vae/losses") == ["preflight", "train", "monitor", "evaluate"]
    assert stages_behind(*APART) == []


def test_only_tasks_runs_code_on_import_and_it_shapes_no_output() -> None:
    """No stage depends on `tasks/__init__.py`: it decides what of the environment reaches the libraries, and how often
    Python looks for garbage."""
    code = {p: p.read_text() for package in PACKAGES for p in (PROJECT / package).rglob("__init__.py")}
    tasks = code.pop(PROJECT / "tasks" / "__init__.py")
    flows = code.pop(PROJECT / "flows" / "__init__.py")
    own = {"tasks.host", "tasks.host.environment"}
    assert imported(tasks) == {"atexit", "gc", "os", "pathlib", "pathlib.Path", *own}
    assert imported(flows) == {"os", "tasks"}
    names = {*environment.SET, *environment.DEFAULTS, *environment.FOLDERS}
    others = {"DVC_SITE_CACHE_DIR", "HF_HOME", "MPLBACKEND", "MPLCONFIGDIR", "PYTHONUTF8"}  # where files are, text
    assert {name.split("_")[0] for name in names - others} == {"MLFLOW"}
    assert len(code) > 15 and not any(map(imported, code.values()))


def test_the_flow_runs_the_stages_of_dvc_yaml_in_their_order() -> None:
    assert tuple(definition()["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_every_section_that_its_own_module_reads(stage: str) -> None:
    """`p.monitor.on_unhealthy` in tasks/monitor.py requires `monitor`, or a key of it, among its params."""
    named = {key.split(".")[0] for key in definition()["stages"][stage]["params"]}
    sections = set(parameters.Parameters.model_fields)
    tree = ast.parse((PROJECT / "tasks" / f"{stage}.py").read_text(encoding="utf-8"))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in sections
        and isinstance(node.value, ast.Name)
        and node.value.id in {"p", "params"}
    }
    assert read <= named


def test_a_training_depends_on_every_parameter_of_its_section() -> None:
    """One that is left out would neither train anew nor keep its checkpoints apart from those of other values."""
    named = {key for key in definition()["stages"]["train"]["params"] if key.startswith("train.")}
    assert named == {f"train.{key}" for key in parameters.Train.model_fields}


def test_the_committed_params_name_every_parameter_with_its_default() -> None:
    tracked = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=PROJECT, capture_output=True, check=False)
    if tracked.returncode != 0:  # an archive without history
        tracked.stdout = (PROJECT / "params.yaml").read_bytes()
    values = loading.read_mapping(tracked.stdout.decode(), "params.yaml")
    assert overlay.flat(values) == overlay.defaults()


EXPERIMENTS = PROJECT / "experiments"


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_lies_over_the_defaults(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or is refused, where cases.csv expects that."""
    stand_in(tmp_path, monkeypatch)
    Path("experiments").symlink_to(EXPERIMENTS)
    Path("params.yaml").write_text("")
    cases = pd.read_csv(EXPERIMENTS / "collapse" / "cases.csv", index_col="case")
    refused = cases["expected"].get(file.stem) == "refused by parameters"
    with pytest.raises(InputError) if refused else nullcontext():
        overlay.apply(file.relative_to(EXPERIMENTS).with_suffix("").as_posix(), None)


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_an_experiments_learning_rate_is_of_the_optimizer_that_it_names(file: Path) -> None:
    train = loading.read_mapping(file.read_text(), file.name).get("train", {})
    assert "learning_rate" not in train or {"optimizer", "warmup"} <= train.keys()


@pytest.mark.parametrize(
    ("package", "never"), [("vae", {"flows", "tasks", "prefect", "mlflow", "dvc"}), ("tasks", {"flows"})]
)
def test_imports_point_one_way(package: str, never: set[str]) -> None:
    for path in (PROJECT / package).rglob("*.py"):
        roots = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"))}
        assert not roots & never, path


def test_the_plots_draw_columns_that_the_stages_write() -> None:
    columns = {"reports/history.csv": set(COLUMNS), "reports/latents.csv": {"rank", "latent", "kl", "posterior_share"}}
    drawn = [plot for entry in definition()["plots"] for plot in entry.values()]
    assert len(drawn) >= 5
    for plot in drawn:
        for axis in ("x", "y"):
            for file, names in plot[axis].items():
                assert set([names] if isinstance(names, str) else names) <= columns[file]


def test_the_page_of_dvc_plots_has_all_that_dvc_fills_in() -> None:
    config = configparser.ConfigParser()
    config.read(PROJECT / ".dvc" / "config")
    page = (PROJECT / ".dvc" / config["plots"]["html_template"]).read_text(encoding="utf-8")
    assert all(page.count(f"{{{name}}}") == 1 for name in ("plot_divs", "scripts", "refresh_tag"))


def test_the_committed_lock_is_of_this_code() -> None:
    """A fresh clone's first run leaves Git clean only if this code wrote the committed dvc.lock."""
    deps = [dep for stage in Repo(str(PROJECT)).index.stages for dep in stage.deps]
    code = [dep for dep in deps if dep.def_path.split("/")[0] in PACKAGES]
    assert len(code) > 40
    changed = {path for dep in code for path in dep.workspace_status()}
    assert changed == set(), "run `dvc repro` and commit dvc.lock"
