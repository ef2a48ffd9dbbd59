"""Files that are no parameters, and whatever values YAML could give: refused in one line for each thing wrong."""

from pathlib import Path
from typing import Any

import pytest
from helpers.parameters import parse
from helpers.project import PROJECT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vae.config import loading
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.sections import KL

DEFAULTS: dict[str, Any] = Parameters().model_dump()
SECTIONS = {name: values for name, values in DEFAULTS.items() if isinstance(values, dict)}


def test_the_projects_own_file_loads_and_has_every_parameter() -> None:
    path = PROJECT / "params.yaml"
    assert loading.load(path).model_fields_set == DEFAULTS.keys()
    values = loading.read_mapping(path.read_text(encoding="utf-8"), "params.yaml")
    assert {name: section.keys() for name, section in values.items() if name != "seed"} == {
        name: section.keys() for name, section in SECTIONS.items()
    }


@pytest.mark.parametrize(
    "text",
    ["- 1", "a: [", "\x00", "seed: 1\nseed: 2", "a: 2024-13-45", "a: !!int abc", "text", "{a: b: c}",
     'a: !!python/object/apply:os.mkdir ["it ran"]'],
)  # fmt: skip
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml") as error:
        loading.load()
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("data: é".encode("latin-1"))
    for name, words in (("none.yaml", "does not exist"), (".", "cannot be read"), ("latin.yaml", "UTF-8")):
        with pytest.raises(InputError, match=words):
            loading.load(tmp_path / name)


def test_what_is_missing_has_its_default(tmp_path: Path) -> None:
    for text, expected in (("kl: {cycles: 7}\ntrain: {}\n", Parameters(kl=KL(cycles=7))), ("", Parameters())):
        (tmp_path / "params.yaml").write_text(text)
        assert loading.load(tmp_path / "params.yaml") == expected


def test_all_that_is_wrong_is_named_at_once_up_to_twenty() -> None:
    with pytest.raises(InputError, match=r"and 80 more$"):
        loading.parse({f"name{i}": 0 for i in range(100)})
    with pytest.raises(InputError) as error:
        parse({"model.latent_dim": 0, "kl.a\nb": 1, "kl.ratio": 2.0, "train.epochs": "x"})
    lines = [line.removeprefix("params.yaml: ").split()[0] for line in str(error.value).splitlines()]
    assert sorted(lines) == ["kl.'a\\nb'", "kl.ratio", "model.latent_dim", "train.epochs"]


names = st.sampled_from([(section, key) for section, values in SECTIONS.items() for key in values])
scalars = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.dates()
keys = st.text(max_size=10) | st.integers() | st.none() | names.map(lambda name: name[1])
anything = st.recursive(
    scalars | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(st.sampled_from(sorted(DEFAULTS)) | keys, anything, max_size=9)
    | st.builds(lambda name, value: {name[0]: {name[1]: value}}, names, anything)
    | st.dictionaries(st.sampled_from(sorted(SECTIONS)), st.dictionaries(keys, anything, max_size=1), max_size=1)
)
@example({"a-b": 1})
def test_any_values_are_parameters_or_an_input_error_of_one_line_for_each_thing_wrong(values: dict) -> None:
    try:
        assert isinstance(loading.parse(values), Parameters)
    except InputError as error:
        assert all(line.startswith("params.yaml: ") for line in str(error).split("\n"))


@pytest.mark.parametrize("wish", [{"rat": 20}, {"rate": 1, "rmse": 2}, {}])
def test_a_wish_that_is_none_is_told_in_our_words(wish: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"; or: a wish is either \{rate: nats per image\} or \{rmse: an error"):
        loading.parse({"kl": {"max_weight": wish}})
