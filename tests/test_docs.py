"""README.md and docs/: every command in them is run or, where that is expensive, checked against what it names.

The command `vae` and the Python snippets run on a tiny model; what reads DVC's and MLflow's records runs in the
workspace where the flow has run. The rest is checked by the programs' own parsers, and its experiments, parameters,
stages, files and services against the project. A call without a rule fails.
"""

import hashlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import numpy as np
import pandas as pd
import prefect.cli._app
import pytest
from dvc.cli import DvcParserError, parse_args
from helpers import pages
from helpers.commands import picture, register, vae, write_model
from helpers.pages import Call
from helpers.parameters import default_file
from helpers.project import PROJECT
from helpers.workspaces import ByFlow, Workspace, stand_in
from ruamel.yaml import YAML

from flows.vae_train import STAGES, vae_train
from tasks import overlay, workspace
from tasks.cli import app
from tasks.tracking import registry, store

pytestmark = pytest.mark.timeout(600)  # the first test may wait for the flow's workspace

READS = (("exp", "show"), ("params",), ("metrics",), ("plots",), ("status",))  # of DVC: they change nothing

FROM_ELSEWHERE = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//'
    r'|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(?:https?:)?//'
)

UNTRIED = {
    "pip install pip-audit": "asks a network",
    "pip-audit -r constraints.txt --no-deps --disable-pip": "not installed here, and asks a network",
    "vae --install-completion": "writes into the files of the person's own shell",
    "vae encode PHOTOS FOLDER --full-size": "of a model with a map of latents: tests/tasks/test_latent_maps.py",
    "vae reconstruct PHOTOS FOLDER --full-size": "of a model with a map of latents: tests/tasks/test_latent_maps.py",
    "vae export autoencoder --format diffusers": "of an autoencoder_kl: tests/vae/test_diffusers.py",
    "source activate": "made by `make setup`",
    "base64": "a program of the system",
    "tr -d \\n": "a program of the system",
}


# Where the commands run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a champion, a candidate, and photos under the names that the pages give them."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(folder, patch)
        Path("params.yaml").write_text(default_file(), encoding="utf-8")
        Path("experiments").symlink_to(PROJECT / "experiments")
        write_model(seed=1)
        register("first", 1.0)
        store.connect()[0].set_registered_model_alias("vae", registry.CHAMPION, "1")
        write_model(seed=0)
        register("second", 2.0)
        for number, name in enumerate(("PHOTOS/one", "PATH/TO/corn/Blight/a", "PATH/TO/corn/Healthy/b")):
            picture(Path(f"{name}.jpg"), number)
        picture(Path("PATH/TO/corn/Healthy/c.jpg"), 9)
        seen = hashlib.sha256(Path("PATH/TO/corn/Healthy/c.jpg").read_bytes()).hexdigest()
        workspace.IMAGES.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"split": ["train"], "sha256": [seen]}).to_parquet(workspace.MANIFEST)
        images = np.random.default_rng(0).integers(0, 256, (9, 8, 12, 3), dtype=np.uint8)
        np.save(workspace.images("test"), images)
        shutil.copy(PROJECT / "dvc.lock", ".")
        for arguments in (["init", "--quiet"], ["add", "dvc.lock"]):
            subprocess.run(["git", *arguments], check=True)
        yield folder


# The rules, one for each program. They run in `place`; `flow` gives the workspace where the flow has run.

Flow = Callable[[], ByFlow]


def make(call: Call, flow: Flow) -> None:
    targets = [word for word in call.words[1:] if "=" not in word]
    done = subprocess.run(["make", "--dry-run", *targets], cwd=PROJECT, capture_output=True, text=True)
    assert targets and done.returncode == 0, done.stderr
    values = dict(word.split("=", 1) for word in call.words[1:] if "=" in word)
    known = {"run": {"EXPERIMENT", "SET"}, "bench": {"MNIST", "LEAVES"}, "gpu": {"MNIST"}}
    assert set(values) <= known.get(" ".join(targets), set())
    lay_over(values.get("EXPERIMENT"), overlay.parse_settings(values.get("SET", "")))


def lay_over(experiment: str | None, values: dict[str, Any]) -> None:
    """Writes into params.yaml what a run with these would write, and takes it back."""
    overlay.apply(experiment, values)
    overlay.apply(None, None)


def run_vae(call: Call, flow: Flow) -> None:
    command, *words = ("2" if word == "VERSION" else word for word in call.words[1:])
    if command == "trace" and not call.mentioned:
        place, run = flow().place, flow().first.flow_run
        if not words:
            bring_back(place)
        found = place.python("-m", "tasks.cli.app", "trace", *(run for _ in words))
        assert found.code == 0 and run in found.output, found.output
        return
    described = call.mentioned or command == "reproduce"  # that one trains a whole run again
    done = vae(command, *words, *(["--help"] if described else []))
    # The doctor finds a workspace without servers, and more.
    assert done.exit_code in ((0, app.LOOK) if command == "doctor" else (0,)), done.stderr


def dvc(call: Call, flow: Flow) -> None:
    words = list(call.words[1:])
    try:
        parsed = parse_args(words)
    except DvcParserError:
        assert call.mentioned, f"DVC does not take {words}"
        with pytest.raises(SystemExit) as help_was_printed:
            parse_args([*words, "--help"])
        assert help_was_printed.value.code == 0
        return
    if words[0] == "repro":
        assert set(parsed.targets) <= {*STAGES, "STAGE"}
    lay_over(None, overlay.parse_settings(" ".join(getattr(parsed, "set_param", None) or [])))
    if any(tuple(words[: len(read)]) == read for read in READS):
        done = flow().place.dvc(*(kept_name(flow()) if word == "EXPERIMENT" else word for word in words))
        assert done.code == 0 and "ERROR" not in done.output, done.output


def kept_name(by_flow: ByFlow) -> str:
    found = re.search(r"kept as the DVC experiment (\S+);", by_flow.first.output)
    assert found, by_flow.first.output
    return found[1]


def run_prefect(call: Call, flow: Flow) -> None:
    _, arguments, _ = prefect.cli._app._app.parse_args(
        [str(uuid4()) if word == "FLOW_RUN_ID" else word for word in call.words[1:]],
        print_error=False,
        exit_on_error=False,
    )
    if call.words[1:3] == ("deployment", "run"):
        entry = YAML(typ="safe").load(PROJECT / "prefect.yaml")["deployments"][0]
        assert arguments.arguments["name"] == f"{vae_train.name}/{entry['name']}"
        given = (parameter.split("=", 1) for parameter in arguments.arguments.get("params", []))
        values = {name: json.loads(value) for name, value in given}
        assert set(values) <= {"experiment", "overrides"}
        lay_over(values.get("experiment"), values.get("overrides", {}))


def python(call: Call, flow: Flow) -> None:
    assert call.words[1] == "-m"
    module, *words = call.words[2:]
    assert importlib.util.find_spec(module), module
    options = {word for word in words if word.startswith("-")}
    assert not options or options <= set(re.findall(r"--[\w-]+", help_of(module)))
    of_options = {word for option, word in itertools.pairwise(words) if option in options and "/" not in word}
    files = {word for word in words if not word.startswith("PATH/")} - options - of_options  # PATH/TO/… is the reader's
    assert all((PROJECT / word).exists() for word in files)


@cache
def bring_back(place: Workspace) -> None:
    """Restores the model of the first run, which other tests have replaced or removed."""
    done = place.flow()
    assert done.code == 0, done.output


@cache
def help_of(module: str) -> str:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=PROJECT, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def run_mlflow(call: Call, flow: Flow) -> None:
    import mlflow.cli

    command: click.Command = mlflow.cli.cli
    words = list(call.words[1:])
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    command.make_context(command.name, words)


def curl(call: Call, flow: Flow) -> None:
    """test_serving asks the same over HTTP."""
    served = [other.words for other in CALLS if other.words[:3] == ("mlflow", "models", "serve")]
    ports = {words[words.index("--port") + 1] for words in served}
    assert {word for word in call.words if word.startswith("http")} == {
        f"http://127.0.0.1:{port}/invocations" for port in ports
    }
    assert call.words[call.words.index("-d") + 1] == "@-"  # a photo is too long for an argument
    document = json.loads(call.words[-1])
    assert set(document) == {"inputs", "params"}
    assert document["params"]["task"] in ("encode", "reconstruct", "score")


def cp(call: Call, flow: Flow) -> None:
    """What is copied is in the project, or is what a run leaves."""
    *sources, _ = (word for word in call.words[1:] if not word.startswith("-"))
    assert sources
    for source in sources:
        if not (PROJECT / source).exists():
            bring_back(flow().place)
            assert (flow().place.folder / source).exists(), source


def git(call: Call, flow: Flow) -> None:
    subprocess.run(call.words, check=True, capture_output=True)


def docker(call: Call, flow: Flow) -> None:
    """Docker itself does not run: the images were never built where the tests run."""
    if call.words[1:] == ("stop",):  # mentioned, not a command for the reader
        assert call.mentioned
        return
    compose, verb, *words = call.words[1:]
    assert compose == "compose" and verb in ("up", "exec", "down")
    if verb == "exec":
        service, *inner = words
        assert service in YAML(typ="safe").load(PROJECT / "compose.yaml")["services"]
        RULES[inner[0]](Call(call.page, tuple(inner)), flow)


def pip(call: Call, flow: Flow) -> None:
    """Installs an extra of this project, at the pinned versions."""
    install, editable, what, option, file = call.words[1:]
    extra = re.fullmatch(r"\.\[(\w+)\]", what)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (install, editable, option) == ("install", "-e", "--constraint") and (PROJECT / file).is_file()
    assert extra and project["optional-dependencies"][extra[1]]


RULES: dict[str, Callable[[Call, Flow], None]] = {
    "make": make, "vae": run_vae, "dvc": dvc, "prefect": run_prefect, "python": python, "mlflow": run_mlflow,
    "curl": curl, "cp": cp, "git": git, "docker": docker, "pip": pip,
}  # fmt: skip
CALLS = pages.calls(frozenset({*RULES, "pip-audit"}))


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_command_does_what_the_page_says(call: Call, place: Path, request: pytest.FixtureRequest) -> None:
    if " ".join(call.words) in UNTRIED:
        return
    assert call.words[0] in RULES, f"no rule says how to try {call.words[0]!r}"
    RULES[call.words[0]](call, lambda: request.getfixturevalue("by_flow"))


def test_what_is_not_tried_stands_in_a_page() -> None:
    assert set(UNTRIED) <= {" ".join(call.words) for call in CALLS}


def snippets() -> list[tuple[str, str]]:
    return [(pages.name(p), text) for p in pages.PAGES for language, text in pages.blocks(p) if language == "python"]


@pytest.mark.parametrize(("page", "code"), snippets())
def test_a_snippet_of_python_runs(page: str, code: str, place: Path) -> None:
    """In the place where the commands ran: one of them exports the encoder that a snippet loads."""
    if not Path("encoder.onnx").exists():
        assert vae("export", "encoder.onnx").exit_code == 0
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The pages themselves


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_block_is_of_a_kind_that_is_tried_or_shows_what_is_said(page: Path) -> None:
    assert {language for language, _ in pages.blocks(page)} <= {"sh", "python", "text", "mermaid"}


def test_no_page_holds_an_unfinished_merge() -> None:
    marks = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
    assert [pages.name(page) for page in pages.PAGES if marks.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in pages.links(page):
        target, _, anchor = link.partition("#")
        there = page.parent / target if target else page
        assert there.exists(), link
        assert not anchor or anchor in pages.anchors(there), link


def test_the_pages_build_without_a_warning_and_fetch_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=PROJECT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # as the Makefile does
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    built = sorted(tmp_path.rglob("*.html"))
    assert len(built) > 10
    assert not [file for file in built if FROM_ELSEWHERE.search(file.read_text(encoding="utf-8"))]
