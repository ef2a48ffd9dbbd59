import copy
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.project import PROJECT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vae.config import parameters
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.schedules.kl import first_final_epoch, kl_weight

VALID: dict[str, Any] = {
    "seed": 0,
    "data": {
        "source": "digits", "path": "data/bundled", "image_size": 16, "channels": 1, "valid_fraction": 0.1,
        "test_fraction": 0.1, "max_bad_fraction": 0.02, "binarise": "none", "augment": "none",
    },
    "model": {"architecture": "conv", "latent_dim": 16, "widths": [32, 64], "batch_norm": True},
    "objective": {"likelihood": "gaussian", "sigma": "optimal", "reduction": "sum"},
    "kl": {"schedule": "linear", "max_weight": 1.0, "annealing_epochs": 5, "cycles": 4, "ratio": 0.5},
    "train": {"epochs": 60, "batch_size": 64, "learning_rate": 2e-3, "ema": None, "patience": None},
    "monitor": {"active_unit_threshold": 0.01, "informative_unit_nats": 0.1, "on_unhealthy": "fail"},
    "evaluate": {"importance_samples": 100, "register_as": "vae"},
    "promote": {"mode": "dry_run"},
}  # fmt: skip


def with_values(changes: dict[str, Any]) -> dict[str, Any]:
    """VALID with `section.key` set."""
    values = copy.deepcopy(VALID)
    for name, value in changes.items():
        *section, key = name.split(".")
        (values[section[0]] if section else values)[key] = value
    return values


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        parameters.parse(with_values(changes))
    return str(error.value)


def test_the_projects_own_file_loads() -> None:
    p = parameters.load(PROJECT / "params.yaml")
    assert isinstance(p, Parameters)
    assert p.data.image_shape == (p.data.channels, *p.data.image_size)


def test_a_number_of_pixels_is_a_square() -> None:
    assert parameters.parse(with_values({"data.image_size": 16})).data.image_shape == (1, 16, 16)
    oblong = with_values({"data.image_size": [24, 40], "data.channels": 3})
    assert parameters.parse(oblong).data.image_shape == (3, 24, 40)
    dumped = parameters.parse(oblong).model_dump()
    assert parameters.parse(dumped) == parameters.parse(oblong)


@pytest.mark.parametrize(
    "changes",
    [
        {"kl.max_weight": 0},
        {"kl.annealing_epochs": 0.25},
        {"train.ema": 0.999},
        {"train.patience": 1},
        {"train.gradient_clip": None},
        {"train.compile": True},
        {"train.device": "cuda:1"},
        {"objective.sigma": 0.1},
        {"objective.sigma": 1},
        {"objective.sigma": "learned"},
        {"objective.reduction": "mean"},
        {"objective.likelihood": "bernoulli", "objective.reduction": "mean", "kl.max_weight": 0.0},
        {"data.image_size": [8, 256], "model.widths": [4, 4, 4]},
        {"data.image_size": 256, "model.widths": [4] * 8},
        {"model.architecture": "mlp", "model.widths": [4] * 8},
        {"data.binarise": "dynamic", "objective.likelihood": "bernoulli"},
    ],
)
def test_what_is_allowed(changes: dict[str, Any]) -> None:
    parameters.parse(with_values(changes))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("kl.bta", 1, "max_weight"),
        ("kl.max-weight", 1, "max_weight"),
        ("kl.float", 1, "max_weight"),
        ("nonsense", 1, "objective"),
        ("kl.max_weight", math.nan, "finite"),
        ("kl.max_weight", math.inf, "finite"),
        ("train.learning_rate", math.nan, "finite"),
        ("objective.sigma", math.nan, "finite"),
        ("kl.max_weight", "0.5", "number"),
        ("kl.max_weight", True, "number"),
        ("kl.max_weight", None, "number"),
        ("kl.max_weight", -0.1, "greater than or equal to 0"),
        ("kl.ratio", 0, "greater than 0"),
        ("kl.ratio", 1.1, "less than or equal to 1"),
        ("kl.cycles", 0, "greater than or equal to 1"),
        ("kl.annealing_epochs", -1, "greater than or equal to 0"),
        ("kl.annealing_steps", 0, "greater than or equal to 1"),
        ("kl.annealing_steps", 2.5, "integer"),
        ("kl.schedule", "warp", "'cyclical'"),
        ("model.latent_dim", 0, "greater than or equal to 1"),
        ("model.latent_dim", -3, "greater than or equal to 1"),
        ("model.latent_dim", 1.5, "integer"),
        ("model.latent_dim", "16", "integer"),
        ("model.latent_dim", True, "integer"),
        ("model.latent_dim", 10**9, "less than or equal to 4096"),
        ("model.widths", [], "at least 1"),
        ("model.widths", 32, "list"),
        ("model.widths", [32] * 9, "at most 8"),
        ("model.architecture", "resnet", "'mlp'"),
        ("model.logvar_max", 10.5, "less than or equal to 10"),
        ("model.logvar_max", -11, "greater than or equal to -10"),
        ("model.logvar_max", None, "number"),
        ("model.batch_norm", "yes", "boolean"),
        ("model.batch_norm", 1, "boolean"),
        ("data.image_size", 7, "8 to 256"),
        ("data.image_size", 257, "8 to 256"),
        ("data.image_size", [16], "8 to 256"),
        ("data.image_size", [16, 16, 3], "8 to 256"),
        ("data.image_size", [16, 16.5], "8 to 256"),
        ("data.image_size", "16", "8 to 256"),
        ("data.image_size", True, "8 to 256"),
        ("data.image_size", None, "8 to 256"),
        ("data.channels", 2, "1 or 3"),
        ("data.source", "zip", "'folder'"),
        ("data.path", "", "at least 1 character"),
        ("data.path", None, "string"),
        ("data.valid_fraction", 0, "greater than 0"),
        ("data.test_fraction", 1.0, "less than 1"),
        ("data.max_bad_fraction", 1.5, "less than or equal to 1"),
        ("data.augment", "rotate", "'flip'"),
        ("objective.sigma", 0, "'learned'"),
        ("objective.sigma", -1.0, "greater than 0"),
        ("objective.sigma", "best", "'optimal'"),
        ("objective.reduction", "average", "'mean'"),
        ("objective.importance_samples_train", 0, "1"),
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.epochs", 2.0, "integer"),
        ("train.batch_size", 0, "greater than or equal to 1"),
        ("train.learning_rate", 0, "greater than 0"),
        ("train.learning_rate", "2e-3", "number"),
        ("train.ema", 1.0, "less than 1"),
        ("train.patience", 0, "greater than or equal to 1"),
        ("train.gradient_clip", 0, "greater than 0"),
        ("train.aggressive_encoder", 1, "boolean"),
        ("train.device", "tpu", "cuda"),
        ("train.precision", "fp16", "'bf16'"),
        ("train.compile", "yes", "'auto'"),
        ("monitor.on_unhealthy", "explode", "'warn'"),
        ("evaluate.register_as", "../vae", "pattern"),
        ("evaluate.importance_samples", 0, "greater than or equal to 1"),
        ("promote.mode", "always", "'enabled'"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**32, "less than 4294967296"),
        ("seed", True, "integer"),
        ("kl", None, "dictionary"),
        ("train", [1], "dictionary"),
    ],
)
def test_a_bad_value_is_refused_with_name_value_and_what_is_allowed(
    name: str, value: object, allowed: str
) -> None:
    message = refusal({name: value})
    assert "\n" not in message
    assert message.startswith(f"params.yaml: {name}")
    assert allowed in message
    assert "is not a parameter" in message or repr(value) in message


@pytest.mark.parametrize(
    ("widths", "what"), [([32, 0], "model.widths.1 = 0"), ([32, "x"], "model.widths.1 = 'x'")]
)
def test_a_bad_width_is_told_by_its_place(widths: list, what: str) -> None:
    assert what in refusal({"model.widths": widths})


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model.widths": [8] * 5}, ["model.widths", "[8, 8, 8, 8, 8]", "16×16", "at most 4"]),
        ({"data.image_size": [8, 100], "model.widths": [8] * 4}, ["model.widths", "8×100", "at most 3"]),
        (
            {"objective.reduction": "mean", "objective.sigma": 0.1},
            ["objective.sigma = 0.1", "objective.reduction = mean", "optimal"],
        ),
        ({"objective.reduction": "mean", "objective.sigma": "learned"}, ["objective.sigma = learned"]),
        ({"objective.likelihood": "bernoulli", "objective.sigma": 0.1}, ["objective.sigma", "Bernoulli"]),
        ({"objective.reduction": "mean", "kl.max_weight": 0}, ["kl.max_weight = 0", "0.001"]),
        ({"data.valid_fraction": 0.5, "data.test_fraction": 0.5}, ["0.5", "below 1"]),
        ({"data.binarise": "static", "data.channels": 3}, ["data.binarise = static", "data.channels = 1"]),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], names: list[str]) -> None:
    message = refusal(changes)
    assert "\n" not in message
    for name in names:
        assert name in message


def test_the_largest_number_of_widths_that_it_names_is_allowed() -> None:
    for size in (8, 15, 16, 17, 255, 256):
        message = refusal({"data.image_size": size, "model.widths": [4] * 8}) if size < 256 else "at most 8"
        most = int(message.split("at most ")[1].split()[0])
        parameters.parse(with_values({"data.image_size": size, "model.widths": [4] * most}))


@pytest.mark.parametrize("name", ["seed", "data", "model.latent_dim", "kl.max_weight", "train.epochs"])
def test_a_missing_key_is_named(name: str) -> None:
    values = copy.deepcopy(VALID)
    *section, key = name.split(".")
    del (values[section[0]] if section else values)[key]
    with pytest.raises(InputError, match=f"^params.yaml: {name} is missing$"):
        parameters.parse(values)


def test_all_that_is_wrong_is_told_at_once_a_line_each() -> None:
    lines = refusal({"model.latent_dim": 0, "kl.ratio": 2.0, "train.epochs": "x"}).splitlines()
    assert [line.split(" = ")[0].split()[-1] for line in lines] == [
        "model.latent_dim", "kl.ratio", "train.epochs",
    ]  # fmt: skip


def test_a_name_with_a_newline_stays_on_one_line() -> None:
    assert "\n" not in refusal({"kl.a\nb": 1, "train.epochs": 60})


def test_only_full_batches_are_steps() -> None:
    train = parameters.parse(with_values({"train.batch_size": 8})).train
    assert [train.steps_per_epoch(count) for count in (7, 8, 15, 16, 17)] == [0, 1, 1, 2, 2]


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 700), st.sampled_from(["linear", "cosine", "sigmoid"]))
def test_a_ramp_in_steps_ends_at_its_step(ramp: int, per_epoch: int, schedule: str) -> None:
    p = parameters.parse(
        with_values({"kl.annealing_steps": ramp, "kl.schedule": schedule, "train.epochs": 2})
    )
    resolved = parameters.with_ramp(p, per_epoch)
    assert parameters.with_ramp(resolved, 3) == resolved

    def weight(step: int) -> float:
        return kl_weight(resolved.kl, step / per_epoch, 2)

    assert weight(0) == 0 and weight(ramp - 1) < weight(ramp) == weight(ramp + 1) == 1
    if schedule == "linear":
        assert weight(ramp // 2) == pytest.approx(ramp // 2 / ramp)
    assert first_final_epoch(resolved.kl, 2) * per_epoch == pytest.approx(ramp)


def test_without_annealing_steps_the_ramp_is_that_of_annealing_epochs() -> None:
    p = parameters.parse(VALID)
    assert parameters.with_ramp(p, 7) is p


def test_parameters_can_not_be_changed() -> None:
    p = parameters.parse(VALID)
    with pytest.raises(ValueError, match="frozen"):
        p.kl.max_weight = 2.0


@pytest.mark.parametrize(
    "text",
    ["", "- 1", "a: [", "\x00", "seed: 1\nseed: 2", "a: 2024-13-45", "a: !!int abc", "text", "{a: b: c}",
     'a: !!python/object/apply:os.mkdir ["it ran"]'],
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_refused(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml") as error:
        parameters.load()
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        parameters.load(tmp_path / "params.yaml")
    with pytest.raises(InputError, match="can not be read"):
        parameters.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("data: é".encode("latin-1"))
    with pytest.raises(InputError, match="not valid YAML"):
        parameters.load(tmp_path / "latin.yaml")


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=20), st.dates(),
    st.binary(max_size=5),
)  # fmt: skip
keys = st.one_of(
    st.text(max_size=10),
    st.integers(),
    st.none(),
    st.sampled_from([name for section in VALID.values() if isinstance(section, dict) for name in section]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


def check(values: dict) -> None:
    """Parameters, or an InputError of one line for each thing that is wrong."""
    try:
        assert isinstance(parameters.parse(values), Parameters)
    except InputError as error:
        assert all(line.startswith("params.yaml: ") for line in str(error).split("\n"))


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.one_of(st.sampled_from(sorted(VALID)), keys), anything, max_size=9))
@example({"a-b": 1})
def test_nothing_but_an_input_error_is_raised(values: dict) -> None:
    check(values)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(
        [(section, key) for section, keys in VALID.items() if isinstance(keys, dict) for key in keys]
    ),
    anything,
)
def test_any_value_of_a_parameter_is_taken_or_refused(place: tuple[str, str], value: object) -> None:
    check({**VALID, place[0]: {**VALID[place[0]], place[1]: value}})


@settings(deadline=None)
@given(st.sampled_from([name for name in VALID if name != "seed"]), keys, anything)
def test_any_other_key_in_a_section(section: str, key: object, value: object) -> None:
    check({**VALID, section: {**VALID[section], key: value}})
