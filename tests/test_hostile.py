"""Input that somebody made to do harm: nothing of it runs, hangs, or is written elsewhere, and each error is short.

What each reader refuses in the ordinary way is in that reader's own tests, harmful images and arrays in
`vae/data/test_hostile.py`; here is what was made on purpose.
"""

import html
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.models import config, network
from helpers.priors import gaussian
from helpers.project import PROJECT
from helpers.workspaces import stand_in
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file

from flows import artifacts
from tasks import overlay, workspace
from tasks.tracking import store
from vae.config import loading
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.sections import Model
from vae.models import saved
from vae.report import page as report
from vae.training import checkpoint

DEFAULTS = (PROJECT / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the defaults, as an overlay finds it."""
    stand_in(tmp_path, monkeypatch)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "params.yaml").write_text(DEFAULTS, encoding="utf-8")
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


# params.yaml, experiments, SET and overrides


HARMFUL_YAML = {
    "a tag that calls": DEFAULTS + '\nx: !!python/object/apply:os.system ["touch it_ran"]\n',
    "a tag that makes": DEFAULTS + '\nx: !!python/object/new:os.system ["touch it_ran"]\n',
    "5,000 digits": DEFAULTS.replace("seed: 0", "seed: " + "9" * 5000),
    "2,000 keys": DEFAULTS + "\n" + "\n".join(f"k{i}: 1" for i in range(2000)),
    "a NUL in a path": DEFAULTS.replace("path: data/bundled", 'path: "a\\0b"'),
    "half a character in a path": DEFAULTS.replace("path: data/bundled", 'path: "a\\ud800b"'),
    "digits of another script": DEFAULTS.replace("device: auto", 'device: "cuda:٣"'),
    "a key of 50,000 characters": DEFAULTS + "\n" + "k" * 50_000 + ": 1\n",
    "a key that is a list": DEFAULTS + "\n? [a, b]\n: 1\n",
}  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize("text", HARMFUL_YAML.values(), ids=HARMFUL_YAML)
def test_harmful_yaml_is_refused_in_short_lines(place: Path, text: str) -> None:
    params, experiment = place / "params.yaml", place / "experiments" / "evil.yaml"
    experiment.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        overlay.apply("evil", None)
    assert params.read_text(encoding="utf-8") == DEFAULTS
    params.write_text(text, encoding="utf-8")
    before = files(place)
    for read in (lambda: loading.load(params), lambda: overlay.apply(None, {"train.epochs": 2})):
        with pytest.raises(InputError) as error:
            read()
        lines = str(error.value).splitlines()
        assert len(lines) <= 21 and all(len(line) < 500 for line in lines)
    assert params.read_text(encoding="utf-8") == text and files(place) == before


VALUES = Parameters().model_dump()
NAMES = [f"{name}.{key}" for name, section in VALUES.items() if isinstance(section, dict) for key in section]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*NAMES, "seed", "data", "kl"]) | st.text(max_size=5), JSON, max_size=3))
@example({"data.path": "a\x00b"})
@example({"data.path": "\ud800"})
@example({"model.widths": [[1]]})
@example({"train.learning_rate": 10**400})
def test_any_overrides_are_laid_over_or_an_input_error(place: Path, overrides: dict[str, Any]) -> None:
    (place / "params.yaml").write_text(DEFAULTS, encoding="utf-8")
    try:
        overlay.apply(None, overrides)
    except InputError:
        assert (place / "params.yaml").read_text(encoding="utf-8") == DEFAULTS
    else:
        assert overlay.flat(overrides).keys() <= {*NAMES, "seed", "data", "kl"}, "no other name gets in"
    assert files(place) <= {"params.yaml", ".run/overlay.json"}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


HARMFUL_OVERRIDES: dict[str, dict[str, Any]] = {
    "long path": {"data.path": "a" * 10_000},
    "long key": {"k" * 100_000: 1},
    "deep": {"kl": nested(900)},
    "dots": {"a." * 2000 + "b": 1},
    "dunder": {"train.epochs": {"__class__": {"__init__": {"__globals__": 1}}}},
    "dict": {"data.__dict__.path": "x"},
    "code": {"__import__('os').system('touch it_ran')": 1},
    "path": {"experiments/../../x": 1},
    "terminal": {"\x1b[2J": 1},
}


@pytest.mark.parametrize("overrides", HARMFUL_OVERRIDES.values(), ids=HARMFUL_OVERRIDES)
def test_harmful_overrides_are_refused_in_a_short_line(place: Path, overrides: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        overlay.apply(None, overrides)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    assert (place / "params.yaml").read_text() == DEFAULTS
    assert files(place) == {"params.yaml"}


@pytest.mark.parametrize("value", ["9" * 5000, "2024-13-45", "!!python/object/apply:os.system [ls]"])
def test_a_harmful_value_after_set_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="SET: seed"):
        overlay.parse_settings(f"seed='{value}'")


def test_a_record_of_another_kind_is_no_record(place: Path) -> None:
    for record in ("[]", "{}", "3", "{"):
        (place / ".run").mkdir(exist_ok=True)
        (place / ".run" / "overlay.json").write_text(record)
        assert overlay.apply(None, None) == []


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000, "\x00"])
def test_a_damaged_json_between_stages_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "monitor.json").write_text(text)
    with pytest.raises(InputError, match=r"monitor\.json is damaged"):
        workspace.read_json(tmp_path / "monitor.json")


# Models and checkpoints

ARCHITECTURE = {"architecture": "conv", "latent_dim": 4, "widths": [6, 8], "batch_norm": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = config((3, 9, 12), Model(**ARCHITECTURE))
    saved.save(tmp_path, network(made), made)
    saved.load(tmp_path)
    return tmp_path


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {**ARCHITECTURE, "latent_dim": 10**9}),
        ("model", {**ARCHITECTURE, "widths": [8192] * 3}),
        ("model", {**ARCHITECTURE, "widths": [6] * 100_000, "architecture": "mlp"}),
        ("model", {**ARCHITECTURE, "batch_norm": "no"}),
        ("model", {**ARCHITECTURE, "logvar_max": "x"}),
        ("model", {**ARCHITECTURE, "logvar_max": 1e300}),
        ("image_shape", [3, 10**6, 10**6]),
        ("preprocessing", {"height": 10**6, "width": 12, "channels": 3}),
        ("preprocessing", None),
        ("kept_epoch", "7"),
        ("stopped", ["<script>"]),
        ("train", {"elbo": "<script>"}),
        ("train", {"elbo": float("nan")}),
        ("remedies", [{"changes": 1}]),
        ("remedies", "collapsed"),
    ],
)
def test_a_tampered_configuration_takes_no_memory_and_is_refused(model: Path, key: str, value: object) -> None:
    whole = json.loads((model / saved.CONFIG_FILE).read_text())
    (model / saved.CONFIG_FILE).write_text(json.dumps({**whole, key: value}))
    with pytest.raises(InputError, match="do not fit together") as error:
        saved.load(model)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float16, torch.bool])
def test_weights_of_another_type_are_refused(model: Path, dtype: torch.dtype) -> None:
    weights = load_file(model / saved.WEIGHTS_FILE)
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, model / saved.WEIGHTS_FILE)
    with pytest.raises(InputError, match=f"is of {dtype}"):
        saved.load(model)


@pytest.mark.parametrize("tamper", ["overlap", "past the end", "below zero", "another shape", "length"])
def test_a_tampered_header_is_refused(model: Path, tamper: str) -> None:
    path = model / saved.WEIGHTS_FILE
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    listed = json.loads(content[8 : 8 + size])
    entry = listed["posterior.weight"]
    begin, end = entry["data_offsets"]
    offsets = {"overlap": [0, end - begin], "past the end": [begin, end + 2**40], "below zero": [-8, end]}
    entry["data_offsets"] = offsets.get(tamper, [begin, end])
    if tamper == "another shape":
        entry["shape"] = [2**62, 4]
    text = json.dumps(listed).encode()
    length = 2**63 if tamper == "length" else len(text)
    path.write_bytes(struct.pack("<Q", length) + text + content[8 + size :])
    with pytest.raises(InputError, match="not a safetensors file"):
        saved.load(model)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", [saved.WEIGHTS_FILE, saved.PRIOR_FILE])
def test_a_pipe_for_weights_is_not_waited_for(model: Path, name: str) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(InputError, match="a pipe"):
        saved.load(model)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": -torch.eye(4)[None]},
        {"scales": torch.zeros(1, 4, 4)},
        {"basis": torch.ones(4, 4)},
        {"mean": torch.full((4,), torch.nan)},
        {"means": torch.zeros(1, 5), "scales": torch.eye(5)[None]},
    ],
)
def test_a_prior_that_is_no_distribution_is_refused(model: Path, wrong: dict[str, torch.Tensor]) -> None:
    prior = {name: tensor.clone() for name, tensor in gaussian(latents=4).tensors().items()}
    save_file(prior, model / saved.PRIOR_FILE)
    saved.load(model)
    save_file({name: tensor.double() for name, tensor in (prior | wrong).items()}, model / saved.PRIOR_FILE)
    with pytest.raises(InputError, match="not a mixture"):
        saved.load(model)


@pytest.mark.parametrize("left_out", ["mean", "weights"])
def test_a_prior_of_other_tensors_is_refused(model: Path, left_out: str) -> None:
    prior = {name: tensor.clone() for name, tensor in gaussian(latents=4).tensors().items() if name != left_out}
    save_file(prior, model / saved.PRIOR_FILE)
    with pytest.raises(InputError, match="do not fit together"):
        saved.load(model)


def test_a_checkpoint_that_would_unpack_to_any_size_is_passed_over(tmp_path: Path) -> None:
    path, bomb = tmp_path / "state.pt", tmp_path / "bomb.pt"
    checkpoint.save(path, {"weights": torch.zeros(1000)})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record) + bytes(10**7) * record.filename.endswith("data/0"))
    found, problems = checkpoint.load(bomb, torch.device("cpu"))
    assert found is None and "compressed" in problems[0]


def test_no_stage_loads_a_pickle_whatever_the_shell_says(tmp_path: Path) -> None:
    make = """
import os, sys, mlflow
class Evil(mlflow.pyfunc.PythonModel):
    def __reduce__(self): return os.system, ("touch it_ran",)
    def predict(self, context, model_input: list[str]): return []
mlflow.pyfunc.save_model("evil", python_model=Evil(), pip_requirements=[])
"""
    load = "import mlflow; mlflow.pyfunc.load_model('evil')"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"}

    def run(program: str) -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True).stderr

    run(make + load)
    assert (tmp_path / "it_ran").exists()  # so the model does what it is meant to
    (tmp_path / "it_ran").unlink()
    assert "pickle is disallowed" in run("from tasks.tracking import store; " + load)
    assert not (tmp_path / "it_ran").exists()


# What is shown


EVIL_TEXTS = [
    "[x](javascript:alert(1))", "![x](http://example.invalid/x.png)", "<img src=x onerror=alert(1)>", "a | b | c",
    "<javascript:alert(1)>", "**bold** _it_ `code` ~~x~~", "x\n# title\n- item", "&lt;b&gt; &amp;", "\\[x](y)", "[a]: http://x",
]  # fmt: skip


@pytest.mark.parametrize("text", EVIL_TEXTS)
def test_markdown_shows_text_and_makes_nothing_of_it(text: str) -> None:
    page = MarkdownIt("gfm-like", {"linkify": False}).render(f"| a |\n| --- |\n| {artifacts.plain(text)} |\n")
    assert set(re.findall(r"<(\w+)", page)) == {"table", "thead", "tr", "th", "tbody", "td"}
    cell = re.search(r"<td>(.*)</td>", page)
    assert page.count("<td>") == 1 and cell and html.unescape(cell[1]) == report.printable(text)


def test_a_link_stays_one_link() -> None:
    page = MarkdownIt().render(artifacts.link("run](javascript:alert(1)) [x", 'http://x/a) "b" <script>'))
    assert re.findall(r'<a href="([^"]*)"', page) == ["http://x/a%29%20%22b%22%20%3Cscript%3E"]
    assert "<script" not in page


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,<script>", " https://x"])
def test_only_a_web_address_becomes_a_link(url: str) -> None:
    def run(address: str) -> Any:
        info = SimpleNamespace(run_name="r", run_id="1", experiment_id="1")
        return SimpleNamespace(info=info, data=SimpleNamespace(tags={"prefect.flow_run_url": address}))

    assert len(store.links(run("http://127.0.0.1:4200/x"))) == 2
    assert len(store.links(run(url))) == 1
