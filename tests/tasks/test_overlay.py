"""What an experiment and single values make of `params.yaml`, and that the file before comes back."""

from pathlib import Path
from typing import Any

import pytest
from helpers.parameters import default_file, parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import overlay
from vae.config import loading
from vae.config.errors import InputError
from vae.config.parameters import Parameters

DEFAULTS, EPOCHS = default_file(), Parameters().train.epochs
EXPERIMENTS = {
    "wide": "model: {latent_dim: 4, widths: [8, 8]}\ntrain: {epochs: 7, gradient_clip: null}\n",
    "collapse/one": "kl:\n  max_weight: 100.0\n",
}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace's params.yaml with the defaults."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name, text in EXPERIMENTS.items():
        file = tmp_path / "experiments" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(DEFAULTS, encoding="utf-8")
    return path


def changed_lines(before: str, after: str) -> list[str]:
    old, new = before.splitlines(), after.splitlines()
    assert len(old) == len(new)
    return [line.strip() for was, line in zip(old, new, strict=True) if was != line]


def test_nothing_to_lay_over_changes_nothing(params: Path) -> None:
    assert overlay.apply(None, None) == overlay.apply("", {}) == overlay.apply("default", None) == []
    assert params.read_text() == DEFAULTS


def test_only_the_changed_values_change_and_each_is_reported(params: Path) -> None:
    changes = overlay.apply(None, {"train.epochs": 2, "model": {"widths": [8]}, "train.ema": 0.9})
    assert changes == [
        "params.yaml: model.widths: [32, 64] → [8]",
        f"params.yaml: train.epochs: {EPOCHS} → 2",
        "params.yaml: train.ema: null → 0.9",
    ]
    lines = changed_lines(DEFAULTS, params.read_text())
    assert [line.split("#")[0].strip() for line in lines] == ["widths: [8]", "epochs: 2", "ema: 0.9"]
    assert all("#" in line for line in (lines[0], lines[2])), "the comments beside them are kept"
    overlay.apply(None, {"train.gradient_clip": None})
    assert changed_lines(DEFAULTS, params.read_text())[0].startswith("gradient_clip: null")


def test_line_ends_and_quotes_and_a_person_s_layout_are_kept(params: Path) -> None:
    mine = DEFAULTS.replace("path: data/bundled ", "path: 'my  photos' ").replace(
        "learning_rate: auto", "learning_rate: 2.50e-03"
    )
    params.write_text("# mine\n\n" + mine + "\n# the end\n", encoding="utf-8")
    overlay.apply(None, {"seed": 3})
    assert params.read_text() == ("# mine\n\n" + mine + "\n# the end\n").replace("seed: 0", "seed: 3")


OWN = DEFAULTS.replace("batch_size: 64", "batch_size: 5    # mine")  # a person's file


@pytest.mark.parametrize("before", [OWN, "seed: 7\ntrain:\nkl: {ratio: 1.0}\n", "", "after another experiment"])
def test_an_experiment_starts_from_the_defaults_whatever_the_file_holds(params: Path, before: str) -> None:
    if before == "after another experiment":
        overlay.apply("wide", None)
    else:
        params.write_text(before, encoding="utf-8")
    overlay.apply("collapse/one", {"train.epochs": 3})
    assert loading.load(params) == parse({"kl.max_weight": 100.0, "train.epochs": 3})
    overlay.apply("default", None)
    assert loading.load(params) == Parameters()


def test_single_values_alone_start_from_the_person_s_own_file_and_without_them_it_comes_back(params: Path) -> None:
    params.write_text(OWN, encoding="utf-8")
    overlay.apply("wide", {"train.epochs": 2})
    assert "no longer apply" in overlay.apply(None, {"train.epochs": 4})[0]
    (line,) = changed_lines(OWN, params.read_text())
    assert line.startswith("epochs: 4 ")
    assert f"params.yaml: train.epochs: 4 → {EPOCHS}" in overlay.apply(None, None)
    assert params.read_text() == OWN
    assert overlay.apply(None, None) == []


def test_a_run_that_is_killed_while_it_writes_loses_nothing(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params.write_text(OWN, encoding="utf-8")
    real, written = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if target == params:
            raise KeyboardInterrupt
        written.append(target.name)
        return real(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", replace)
        overlay.apply("wide", None)
    assert written == ["overlay.json"] and params.read_text() == OWN
    assert overlay.apply(None, None) == [] and params.read_text() == OWN


def test_a_file_of_an_earlier_version_gets_the_parameters_that_it_lacks(params: Path) -> None:
    """Else DVC refuses them, one stage after another."""
    new = ("  warmup: ", "  optimizer: ", "  budget: ")
    earlier = "".join(line for line in DEFAULTS.splitlines(True) if not line.startswith(new))
    params.write_text(earlier + "# mine\n", encoding="utf-8")
    lines = overlay.apply(None, {"train.epochs": 3})
    assert {line.split(":")[1].strip() for line in lines} >= {"train.warmup", "train.optimizer"}
    found = overlay.flat(loading.read_mapping(params.read_text("utf-8"), ""))
    assert found == overlay.defaults() | {"train.epochs": 3}
    overlay.apply(None, None)
    assert overlay.flat(loading.read_mapping(params.read_text("utf-8"), "")) == overlay.defaults()
    assert params.read_text("utf-8").endswith("# mine\n") and overlay.apply(None, None) == []
    params.write_text("train: 5\n", encoding="utf-8")
    with pytest.raises(InputError, match="train = 5"):
        overlay.apply(None, None)


def test_what_a_person_has_edited_since_is_left_alone(params: Path) -> None:
    overlay.apply("wide", None)
    edited = params.read_text().replace("epochs: 7", "epochs: 8")
    params.write_text(edited, encoding="utf-8")
    assert overlay.apply(None, None) == []
    assert params.read_text() == edited
    overlay.apply(None, {"seed": 1})
    assert params.read_text() == edited.replace("seed: 0", "seed: 1")
    overlay.apply(None, None)
    assert params.read_text() == edited


REFUSED: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "unknown experiment": ("zzz", {}, "experiment 'zzz' does not exist; known: collapse/one, wide"),
    "mistyped experiment": ("wild", {}, "experiment 'wild' does not exist; did you mean wide?"),
    "a path for an experiment": ("../params", {}, "does not exist"),
    "unknown key": (None, {"train.epoch": 2}, "train.epoch is not a parameter"),
    "unknown section": (None, {"trian": {"epochs": 2}}, "trian is not a parameter; known here: seed, data"),
    "attribute": (None, {"__class__": 2}, "__class__ is not a parameter"),
    "attribute of a section": (None, {"train.__class__": 2}, "train.__class__ is not a parameter"),
    "below a value": (None, {"seed.x": 2}, "seed.x is not a parameter"),
    "empty key": (None, {"": 2}, "is not a parameter"),
    "a value for a section": (None, {"train": 2}, "train = 2"),
    "zero latents": (None, {"model.latent_dim": 0}, "model.latent_dim = 0: should be greater than or equal to 1"),
    "NaN": (None, {"kl.max_weight": float("nan")}, "kl.max_weight = nan"),
}  # fmt: skip


@pytest.mark.parametrize(("experiment", "overrides", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named_and_nothing_is_written(
    params: Path, experiment: str | None, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as error:
        overlay.apply(experiment, {"train.epochs": 3, **overrides})
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert params.read_text() == DEFAULTS
    assert overlay.apply(None, None) == []


@pytest.mark.parametrize("experiment", [None, "broken"])
@pytest.mark.parametrize("content", [b"seed: [1", b"seed: 1\nseed: 2\n", b"- a\n", b"words", b"seed: \xff\n", b"a: \0"])
def test_a_file_that_is_not_a_mapping_is_named_and_nothing_is_written(
    params: Path, experiment: str | None, content: bytes
) -> None:
    file = Path(f"experiments/{experiment}.yaml") if experiment else Path("params.yaml")
    file.write_bytes(content)
    before = params.read_bytes()
    for overrides in (None, {"seed": 3}):
        with pytest.raises(InputError, match=str(file)):
            overlay.apply(experiment, overrides)
    assert params.read_bytes() == before


def test_settings_are_words_with_values() -> None:
    text = "data.path='my photos/été' train.epochs=2 model.widths='[8, 16]' kl.max_weight=1e-3 train.ema=null a=b=c"
    assert overlay.parse_settings(text) == {
        "data.path": "my photos/été",
        "train.epochs": 2,
        "model.widths": [8, 16],
        "kl.max_weight": 0.001,
        "train.ema": None,
        "a": "b=c",
    }
    assert overlay.parse_settings("") == {}


@pytest.mark.parametrize("text", ["train.epochs", "=2", "train.epochs 2", "data.path='open", "model.widths=[1"])
def test_what_is_not_a_setting_is_named_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="SET") as error:
        overlay.parse_settings(text)
    assert len(str(error.value).splitlines()) == 1


SETTINGS = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
NUMBERS = st.floats(min_value=0, max_value=1e6, allow_subnormal=False)
VALUES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "data.path": TEXT,
        "data.image_size": st.integers(8, 256) | st.lists(st.integers(8, 256), min_size=2, max_size=2),
        "model.widths": st.lists(st.integers(1, 8192), min_size=1, max_size=3),
        "model.batch_norm": st.booleans(),
        "kl.max_weight": NUMBERS,
        "kl.free_bits": NUMBERS,
        "train.gradient_clip": st.none() | st.floats(1e-9, 1e9),
    }
)


@SETTINGS
@given(VALUES)
def test_what_is_laid_over_is_read_back_and_taken_off_again(params: Path, values: dict[str, Any]) -> None:
    overlay.apply(None, values)
    text = params.read_text(encoding="utf-8")
    written = overlay.flat(loading.read_mapping(text, ""))
    assert {key: written[key] for key in values} == values
    for line in ("# Every parameter of the pipeline.", "  batch_size: 64\n", "  ema: null                 # decay"):
        assert line in text
    overlay.apply(None, None)
    assert params.read_text(encoding="utf-8") == DEFAULTS


@SETTINGS
@given(VALUES | st.dictionaries(st.just("not.a.parameter"), TEXT | st.lists(TEXT | st.none())))
def test_values_written_as_settings_are_read_back(values: dict[str, Any]) -> None:
    assert overlay.parse_settings(overlay.as_settings(values)) == values
