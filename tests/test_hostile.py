"""Input that somebody made to do harm: nothing of it runs, hangs, or is written elsewhere; all of it is told.

What each reader refuses in the ordinary way stands in that reader's own tests; here is what was made on purpose.
"""

import gzip
import html
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.project import PROJECT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load_file, save_file

from flows import artifacts
from tasks import data_path, overlay, validate, workspace
from tasks.tracking import store
from vae.config import parameters
from vae.config.errors import InputError
from vae.config.parameters import Data
from vae.config.preprocessing import Preprocessing
from vae.data import images, sources
from vae.data.images import UnusableImage
from vae.models import saved
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE
from vae.report import page as report
from vae.training import checkpoint

DEFAULTS = (PROJECT / "experiments" / "default.yaml").read_text(encoding="utf-8")
RGB = Preprocessing(16, 16, 3)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the defaults, as an overlay finds it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "experiments").mkdir()
    for name in ("params.yaml", "experiments/default.yaml"):
        (tmp_path / name).write_text(DEFAULTS, encoding="utf-8")
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


# params.yaml, experiments, SET and overrides


def laughs(start: str, one: str) -> str:
    """Nine lines that unfold to 9⁹ values; `one` makes each of nine of the line before."""
    more = [f"a{i}: &a{i} " + one.replace("@", f"*a{i - 1}") for i in range(1, 10)]
    return "\n".join([f"a0: &a0 {start}", *more]) + "\n"


IN_LISTS = laughs("[lol]", "[" + ", ".join("@" * 9) + "]")
IN_MAPPINGS = laughs("{k: lol}", "{" + ", ".join(f"k{j}: @" for j in range(9)) + "}")

HARMFUL_YAML = {
    "a billion laughs as a value": IN_LISTS + DEFAULTS.replace("widths: [32, 64]", "widths: *a9"),
    "a billion laughs in mappings": DEFAULTS + IN_MAPPINGS,
    "a list within itself": DEFAULTS.replace("widths: [32, 64]", "widths: &w [*w]"),
    "a mapping within itself": DEFAULTS + "\nx: &x {y: *x}\n",
    "merged with itself": DEFAULTS + "\nx: &x {<<: *x}\n",
    "100,000 brackets": DEFAULTS + "\nx: " + "[" * 90_000,
    "5,000 mappings": DEFAULTS + "\nx: " + "{a: " * 5000 + "1" + "}" * 5000,
    "5,000 dashes": DEFAULTS + "\nx: " + "- " * 5000,
    "300 lists": DEFAULTS + "\nx: " + "[" * 300 + "]" * 300,
    "5,000 digits": DEFAULTS.replace("seed: 0", "seed: " + "9" * 5000),
    "5,000 hexadecimal digits": DEFAULTS.replace("seed: 0", "seed: 0x" + "f" * 5000),
    "a weight of 5,000 hexadecimal digits": DEFAULTS.replace("max_weight: 1.0", "max_weight: 0x" + "f" * 5000),
    "a path of 5 MB": DEFAULTS.replace("path: data/bundled", "path: " + "a" * 5_000_000),
    "2,000 keys": DEFAULTS + "\n" + "\n".join(f"k{i}: 1" for i in range(2000)),
    "a tag that calls": DEFAULTS + '\nx: !!python/object/apply:os.system ["touch it_ran"]\n',
    "a tag that makes": DEFAULTS + '\nx: !!python/object/new:os.system ["touch it_ran"]\n',
    "a truth that is none": DEFAULTS + "\nx: !!bool foo\n",
    "an empty number": DEFAULTS + '\nx: !!int ""\n',
    "a number that is none": DEFAULTS + "\nx: !!float foo\n",
    "an hour that is none": DEFAULTS.replace("seed: 0", "seed: 2024-01-01T99:99:99"),
    "a NUL in a path": DEFAULTS.replace("path: data/bundled", 'path: "a\\0b"'),
    "half a character in a path": DEFAULTS.replace("path: data/bundled", 'path: "a\\ud800b"'),
    "digits of another script": DEFAULTS.replace("device: auto", 'device: "cuda:٣"'),
    "a key of 50,000 characters": DEFAULTS + "\n" + "k" * 50_000 + ": 1\n",
    "a key that is a list": DEFAULTS + "\n? [a, b]\n: 1\n",
    "no number of YAML 1.1": "%YAML 1.1\n---\n" + DEFAULTS.replace("seed: 0", "seed: 0b_"),
    "nothing": "",
    "null": "null\n",
}  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize("text", HARMFUL_YAML.values(), ids=HARMFUL_YAML)
def test_harmful_yaml_is_told_in_short_lines(place: Path, text: str) -> None:
    before = files(place)
    params = place / "params.yaml"
    params.write_text(text, encoding="utf-8")
    for read in (parameters.load, lambda: overlay.apply(None, {"train.epochs": 2})):
        with pytest.raises(InputError) as error:
            read()
        lines = str(error.value).splitlines()
        assert len(lines) <= 21 and all(len(line) < 500 for line in lines)
    assert params.read_text(encoding="utf-8") == text and files(place) == before


@pytest.mark.timeout(30)
@pytest.mark.parametrize("text", list(HARMFUL_YAML.values())[:-2], ids=list(HARMFUL_YAML)[:-2])
def test_a_harmful_experiment_is_told_and_nothing_is_written(place: Path, text: str) -> None:
    (place / "experiments" / "evil.yaml").write_text(text, encoding="utf-8")
    before = files(place)
    with pytest.raises(InputError):
        overlay.apply("evil", None)
    assert (place / "params.yaml").read_text() == DEFAULTS and files(place) == before


IN_A_DIRECTORY = [HealthCheck.function_scoped_fixture]
SYNTAX = st.sampled_from(
    ["seed: ", "data:\n  ", "kl: ", "- ", "? ", ": ", "[", "]", "{", "}", ", ", "&a ", "*a ", "!!int ", "!!set ", "!x ",
     "<<: ", "|\n ", ">-\n ", "'", '"', "#", "\n", "\n  ", "---\n", "...\n", "%YAML 1.1\n", "%TAG ! x\n", "\t", "~",
     "0x", "0o7", "0b1", "1e999", ".inf", ".nan", "-_", "12:30:45", "2024-13-45", "2001-12-14t21:59:43.10-05:99",
     "=", "null", "yes", "\\x", "\\ud800", "\x00", "\x85", "\ufeff", "\U0001f600"]
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=IN_A_DIRECTORY)
@given(st.lists(SYNTAX | st.text(max_size=3), max_size=25).map("".join), st.booleans())
@example("y: =", False)
@example("\ufeff", True)
@example("\x85\ufeff", False)
def test_any_text_is_parameters_or_an_input_error(place: Path, text: str, defaults: bool) -> None:
    (place / "params.yaml").write_bytes((DEFAULTS * defaults + text).encode("utf-8", "surrogatepass"))
    for read in (parameters.load, lambda: overlay.apply(None, {"seed": 0})):
        try:
            read()
        except InputError as error:
            assert str(error)


VALUES = parameters.load(PROJECT / "experiments" / "default.yaml").model_dump()
NAMES = [f"{name}.{key}" for name, section in VALUES.items() if isinstance(section, dict) for key in section]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, suppress_health_check=IN_A_DIRECTORY)
@given(
    st.dictionaries(st.sampled_from([*NAMES, "seed", "data", "kl"]) | st.text(max_size=5), JSON, max_size=3)
)
@example({"data.path": "a\x00b"})
@example({"data.path": "\ud800"})
@example({"seed": 2**20_000})
@example({"model.widths": [[1]]})
@example({"train.learning_rate": 10**400})
def test_any_overrides_are_laid_over_or_an_input_error(place: Path, overrides: dict[str, Any]) -> None:
    (place / "params.yaml").write_text(DEFAULTS, encoding="utf-8")
    try:
        overlay.apply(None, overrides)
    except InputError:
        assert (place / "params.yaml").read_text(encoding="utf-8") == DEFAULTS
    assert files(place) <= {"params.yaml", "experiments/default.yaml", ".run/overlay.json"}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.path": "a" * 5_000_000},
        {"k" * 100_000: 1},
        {"kl": nested(900)},
        {"a." * 2000 + "b": 1},
        {"train.epochs": {"__class__": {"__init__": {"__globals__": 1}}}},
        {"data.__dict__.path": "x"},
        {"__import__('os').system('touch it_ran')": 1},
        {"experiments/../../x": 1},
        {"\x1b[2J": 1},
    ],
    ids=["5 MB", "long key", "deep", "dots", "dunder", "dict", "code", "path", "terminal"],
)
def test_harmful_overrides_are_told_in_a_short_line(place: Path, overrides: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        overlay.apply(None, overrides)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    assert (place / "params.yaml").read_text() == DEFAULTS
    assert files(place) == {"params.yaml", "experiments/default.yaml"}


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "2024-13-45", '!!int ""', "!!bool foo", "!!python/object/apply:os.system [ls]", "&a [*a]", "-_",
     "[" * 5000],
)  # fmt: skip
def test_a_harmful_value_after_set_is_told(value: str) -> None:
    with pytest.raises(InputError, match="SET: seed"):
        overlay.parse_settings(f"seed='{value}'")


def test_a_record_of_another_kind_is_no_record(place: Path) -> None:
    for record in ("[]", "{}", "3", "{"):
        (place / ".run").mkdir(exist_ok=True)
        (place / ".run" / "overlay.json").write_text(record)
        assert overlay.apply(None, None) == []


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000, "\x00"])
def test_a_damaged_json_between_stages_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "monitor.json").write_text(text)
    with pytest.raises(InputError, match=r"monitor\.json is damaged"):
        workspace.read_json(tmp_path / "monitor.json")


# Images and the folders that they come from


def png(width: int, height: int, channels: int = 1) -> bytes:
    """Black, of 8 bits; colour type 0 (grey) or 6 (RGBA)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(1)
    row = bytes(1 + width * channels)
    rows = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_line_of_60_000_pixels_is_an_image_and_one_of_millions_is_not() -> None:
    assert images.load(png(60_000, 1), RGB).shape == images.load(png(1, 60_000), RGB).shape == (16, 16, 3)
    for long in (png(2_000_000, 1), png(1, 2_000_000)):
        with pytest.raises(UnusableImage, match="at most 100,000 a side"):
            images.load(long, RGB)


def jpeg(scans: int, **options: Any) -> bytes:
    """A progressive one, its last scan repeated: about 100 bytes each, and a pass over all pixels."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG", progressive=True, **options)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    assert images.load(jpeg(50), RGB).shape == (16, 16, 3)
    for scans in (100, 20_000):
        with pytest.raises(UnusableImage, match="more than 100 scans"):
            images.load(jpeg(scans), RGB)


def test_only_the_scans_of_the_image_itself_count() -> None:
    """A film behind a phone's photo, or a thumbnail before it, holds any bytes."""
    plain = jpeg(0)
    assert np.array_equal(images.load(plain + b"\xff\xda\x00\x02" * 5000, RGB), images.load(plain, RGB))
    assert images.load(jpeg(0, comment=b"\xff\xda\x00\x02" * 5000), RGB).shape == (16, 16, 3)
    assert images.load(jpeg(0, restart_marker_blocks=1), RGB).shape == (16, 16, 3)


def test_large_images_are_in_memory_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(
        png(5001, 5001, 4)
    )  # 25 million pixels: 400 MB once decoded and flattened
    program = """
import re, resource, sys, threading
from pathlib import Path
from vae.data.images import Preprocessing, load
content, rule = Path(sys.argv[1]).read_bytes(), Preprocessing(16, 16, 3)
threads = [threading.Thread(target=load, args=(content, rule)) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
status = Path("/proc/self/status")
if status.exists():  # getrusage's peak is that of the process that started this one, where that was larger
    print(int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) // 2**10)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "large.png"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 300 < int(done.stdout) < 800, "MB; all four at once take 1,600"


def folder_data(path: Path, kind: str = "folder") -> Data:
    return parameters.parse(overlay.mapping(DEFAULTS, "defaults")).data.model_copy(
        update={"source": kind, "path": str(path)}
    )


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so a test that root runs is somebody else for as long as it lasts."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_that_is_closed_to_us_is_quarantined(tmp_path: Path) -> None:
    closed = tmp_path / "closed.png"
    closed.write_bytes(png(8, 8))
    closed.chmod(0)
    tmp_path.chmod(0o755)
    item = sources.Item(
        "closed.png", None, None, lambda: images.read_file(f"/proc/self/fd/{folder}/closed.png")
    )
    folder = os.open(tmp_path, os.O_RDONLY)  # the folders above are the test runner's own, and closed too
    try:
        with as_nobody(), pytest.raises(UnusableImage, match="cannot be read: Permission denied"):
            item.load()
    finally:
        os.close(folder)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(path.name),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_named_before_dvc_waits_for_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dvc repro` reads every file below data.path for its hash, a pipe and /dev/zero for ever."""
    (tmp_path / "class").mkdir()
    monkeypatch.chdir(tmp_path / "class")  # a socket's path may have 100 characters
    SPECIAL[kind](tmp_path / "class" / "x.png")
    with pytest.raises(InputError, match=r"1 pipe\(s\), socket\(s\) or device\(s\), such as '.*x\.png'"):
        data_path.check(folder_data(tmp_path))
    with pytest.raises(UnusableImage, match=r"not a regular file|leads out of the folder"):
        sources.find(folder_data(tmp_path))[0].load()


def test_a_name_that_dvc_can_not_write_down_is_named_before(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(png(8, 8))
    with pytest.raises(InputError, match=r"1 name\(s\) that are no UTF-8, such as '.*caf\\\\xe9\.png'"):
        data_path.check(folder_data(tmp_path))


def test_names_are_only_names(tmp_path: Path) -> None:
    names = [
        "n" * 251 + ".png",
        "a..b.png",
        "=cmd|' !A0.png",
        "$(touch it_ran).png",
        "x\n.png",
        "{{7*7}}.png",
    ]
    for name in names:
        (tmp_path / name).write_bytes(png(8, 8))
    data_path.check(folder_data(tmp_path))
    items = sources.find(folder_data(tmp_path))
    assert {item.path for item in items} == set(names)
    assert all(images.load(item.load(), RGB).shape == (16, 16, 3) for item in items)
    assert files(tmp_path) == set(names)


def npy(header: bytes, body: bytes = bytes(256)) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def header(shape: str) -> bytes:
    return f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()


ARRAYS = {
    "less than nothing": npy(header("(-4, 8, 8)")),
    "more than a machine has": npy(header("(" + "9" * 400 + ", 8, 8)")),
    "brackets": npy(b"(" * 9000),
    "minus signs": npy(b"-" * 9000 + b"1"),
    "code": npy(b"__import__('os').system('touch it_ran')"),
    "a zip file": b"PK\x03\x04" + bytes(200),
    "a pickle": b"cos\nsystem\n(S'touch it_ran'\ntR.",
    "a header of 4 GB": b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(100),
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS)
def test_a_harmful_array_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"no usable \.npy file"):
        sources.find(folder_data(tmp_path, "npy"))
    assert files(tmp_path) == {"train.npy"}


def test_a_zip_of_arrays_is_told(tmp_path: Path) -> None:
    with (tmp_path / "train.npy").open("wb") as file:
        np.savez(file, np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"no usable \.npy file"):
        sources.find(folder_data(tmp_path, "npy"))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["train.npy", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_a_pipe_for_an_array_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="no regular file"):
        sources.find(folder_data(tmp_path, "npy" if name.endswith(".npy") else "idx"))


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    idx = bytes([0, 0, 8, 3]) + struct.pack(">III", 4, 8, 8) + bytes(50_000_000)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx, 1))
    with pytest.raises(InputError, match=r"holds 273 bytes where its header \(4, 8, 8\) promises 272"):
        sources.find(folder_data(tmp_path, "idx"))


def test_idx_images_beyond_all_measure_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "train-images-idx3-ubyte").open("wb") as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">III", 1, 20_000, 20_000))
        file.truncate(16 + 20_000**2)
    with pytest.raises(InputError, match="too large"):
        sources.find(folder_data(tmp_path, "idx"))


# Models and checkpoints

ARCHITECTURE = {"architecture": "conv", "latent_dim": 4, "widths": [6, 8], "batch_norm": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    saved.save(
        tmp_path, VAE((3, 9, 12), **ARCHITECTURE), ARCHITECTURE, (3, 9, 12), Likelihood("gaussian", 0.1),
        Preprocessing(9, 12, 3).to_dict(), "fp32", 7, None, {"elbo": -12.5},
    )  # fmt: skip
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
def test_a_tampered_configuration_takes_no_memory_and_is_told(model: Path, key: str, value: object) -> None:
    config = saved.read_config(model)
    (model / saved.CONFIG_FILE).write_text(json.dumps({**config, key: value}))
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
    told = json.loads(content[8 : 8 + size])
    entry = told["posterior.weight"]
    begin, end = entry["data_offsets"]
    match tamper:
        case "overlap":
            entry["data_offsets"] = [0, end - begin]
        case "past the end":
            entry["data_offsets"] = [begin, end + 2**40]
        case "below zero":
            entry["data_offsets"] = [-8, end]
        case "another shape":
            entry["shape"] = [2**62, 4]
    text = json.dumps(told).encode()
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


@pytest.mark.parametrize("scale", [-1.0, 0.0])
def test_a_prior_that_is_no_distribution_is_refused(model: Path, scale: float) -> None:
    prior = {"weights": torch.ones(1), "means": torch.zeros(1, 4), "scales": scale * torch.eye(4)[None]}
    save_file({name: tensor.double() for name, tensor in prior.items()}, model / saved.PRIOR_FILE)
    with pytest.raises(InputError, match="no mixture"):
        saved.load(model)


def test_a_checkpoint_that_would_unpack_to_any_size_is_passed_over(tmp_path: Path) -> None:
    path, bomb = tmp_path / "state.pt", tmp_path / "bomb.pt"
    checkpoint.save(path, {"weights": torch.zeros(1000)})
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in whole.infolist():
            packed.writestr(
                record.filename, whole.read(record) + bytes(10**7) * record.filename.endswith("data/0")
            )
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
        return subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
        ).stderr

    run(make + load)
    assert (tmp_path / "it_ran").exists()  # so the model does what it is meant to
    (tmp_path / "it_ran").unlink()
    assert "pickle is disallowed" in run("from tasks.tracking import store; " + load)
    assert not (tmp_path / "it_ran").exists()


# What is shown


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("＝1", "'＝1"),
        ("photo;=1", "photo;'=1"),  # where the semicolon ends a cell
        ('photo;"=1"', 'photo;\'"=1"'),
        ("two\n=1", "two\n'=1"),
        ("a-b, c=d.png", "a-b, c=d.png"),
    ],
)
def test_no_cell_is_a_formula(cell: str, written: str) -> None:
    assert validate._harmless(cell) == written


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
