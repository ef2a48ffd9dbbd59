"""What is allowed and what is refused, in words that name the parameter, its value and what to write instead."""

import math

import pytest
from helpers.parameters import Changes, parse

from vae.config import loading
from vae.config.errors import InputError
from vae.config.parameters import Parameters

IWAE, AGGRESSIVE = "objective.importance_samples_train", "train.aggressive_encoder"
REDUCTION, GECO = "objective.reduction", "kl.reconstruction_target"
SIGMA, LIKELIHOOD = "objective.sigma", "objective.likelihood"


def refusal(changes: Changes) -> str:
    with pytest.raises(InputError) as error:
        parse(changes)
    return str(error.value)


def test_a_number_of_pixels_is_a_square() -> None:
    assert parse({"data.image_size": 24}).data.image_shape == (1, 24, 24)
    assert parse({"data.image_size": [24, 40], "data.channels": 3}).data.image_shape == (3, 24, 40)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl.max_weight": 0},
        {"kl.max_weight": "calibrated"},
        {"kl.annealing_epochs": 0.25},
        {"kl.annealing_epochs": 0, "train.learning_rate": 1, "train.warmup": 0},
        {"kl.annealing_epochs": "auto", "train.learning_rate": "auto", "train.optimizer": "adamw"},
        {"train.budget": 90},
        {"train.gradient_clip": None},
        {"train.compile": True},
        {"train.device": "cuda:1"},
        {"objective.sigma": 1},
        {"objective.sigma": "learned"},
        {"objective.likelihood": "bernoulli", "objective.reduction": "mean", "kl.max_weight": 0.0},
        {"data.image_size": [8, 256], "model.widths": [4, 4, 4]},
        {"model.architecture": "mlp", "model.widths": [4] * 8},
        {"data.binarise": "dynamic", "objective.likelihood": "bernoulli"},
        {SIGMA: "channel"},
        {LIKELIHOOD: "discretised_logistic", SIGMA: "pixel", IWAE: 2},
        {LIKELIHOOD: "discretised_gaussian", SIGMA: "learned", GECO: 0.1},
        {LIKELIHOOD: "logistic_mixture", "objective.mixture_components": 3, IWAE: 2},
    ],
)
def test_what_is_allowed_survives_its_own_dump(changes: Changes) -> None:
    p = parse(changes)
    assert loading.parse(p.model_dump()) == p


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("kl.bta", 1, "max_weight"),
        ("nonsense", 1, "objective"),
        ("kl.max_weight", math.nan, "finite"),
        ("objective.sigma", math.inf, "finite"),
        ("kl.max_weight", "0.5", "number"),
        ("kl.max_weight", True, "number"),
        ("kl.max_weight", -0.1, "greater than or equal to 0"),
        ("kl.ratio", 0, "greater than 0"),
        ("kl.ratio", 1.1, "less than or equal to 1"),
        ("kl.cycles", 0, "greater than or equal to 1"),
        ("model.prior", "gaussian", "vamp"),
        ("model.prior_components", 0, "greater than or equal to 1"),
        ("model.prior_components", 10_001, "less than or equal to 10000"),
        ("kl.annealing_epochs", -1, "greater than or equal to 0"),
        ("kl.annealing_epochs", "5", "'auto'"),
        ("kl.annealing_steps", 0, "greater than or equal to 1"),
        ("kl.annealing_steps", 2.5, "integer"),
        ("kl.schedule", "warp", "'cyclical'"),
        ("model.latent_dim", 0, "greater than or equal to 1"),
        ("model.latent_dim", 10**9, "less than or equal to 262144"),
        ("model.latent_dim", True, "integer"),
        ("model.widths", [], "at least 1"),
        ("model.widths", 32, "list"),
        ("model.widths", [32] * 9, "at most 8"),
        ("model.architecture", "resnet", "'mlp'"),
        ("model.logvar_max", 10.5, "less than or equal to 10"),
        ("model.logvar_max", -11, "greater than or equal to -10"),
        ("model.batch_norm", 1, "boolean"),
        ("data.image_size", 7, "8 to 512"),
        ("data.image_size", 513, "8 to 512"),
        ("data.image_size", [16], "8 to 512"),
        ("data.image_size", [16, 16.5], "8 to 512"),
        ("data.image_size", "16", "8 to 512"),
        ("data.image_size", True, "8 to 512"),
        ("data.channels", 2, "1 or 3"),
        ("data.source", "zip", "'folder'"),
        ("data.path", "", "at least 1 character"),
        ("data.valid_fraction", 0, "greater than 0"),
        ("data.test_fraction", 1.0, "less than 1"),
        ("data.max_bad_fraction", 1.5, "less than or equal to 1"),
        ("data.augment", "rotate", "'flip' or 'dihedral'"),
        ("data.shift", -1, "greater than or equal to 0"),
        ("objective.sigma", 0, "'learned'"),
        ("objective.sigma", "best", "'optimal'"),
        ("objective.reduction", "average", "'mean'"),
        ("objective.importance_samples_train", 0, "1"),
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.batch_size", 0, "greater than or equal to 1"),
        ("train.optimizer", "sgd", "'muon' or 'adamw'"),
        ("train.learning_rate", 0, "greater than 0"),
        ("train.learning_rate", "fast", "'auto'"),
        ("train.learning_rate", math.inf, "finite"),
        ("train.learning_rate_schedule", "step", "'cosine'"),
        ("train.warmup", -0.1, "greater than or equal to 0"),
        ("train.warmup", 1, "less than 1"),
        ("train.warmup", "auto", "number"),
        ("train.budget", 0, "greater than 0"),
        ("train.ema", 1.0, "less than 1"),
        ("train.patience", 0, "greater than or equal to 1"),
        ("train.gradient_clip", 0, "greater than 0"),
        ("train.device", "tpu", "cuda"),
        ("train.precision", "fp16", "'bf16'"),
        ("train.compile", "yes", "'auto'"),
        ("monitor.on_unhealthy", "explode", "'warn'"),
        ("evaluate.register_as", "../vae", "pattern"),
        ("evaluate.importance_samples", 0, "greater than or equal to 1"),
        ("promote.mode", "always", "'enabled'"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**32, "less than 4294967296"),
        ("kl", None, "dictionary"),
        ("train", [1], "dictionary"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(name: str, value: object, allowed: str) -> None:
    message = refusal({name: value})
    assert "\n" not in message
    assert message.startswith(f"params.yaml: {name}")
    assert allowed in message
    assert "is not a parameter" in message or repr(value) in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.widths": [32, 0]}, ["model.widths.1 = 0"]),
        ({"model.widths": [32, "x"]}, ["model.widths.1 = 'x'"]),
        ({"model.widths": [8] * 5}, ["model.widths", "[8, 8, 8, 8, 8]", "16×16", "at most 4"]),
        ({"data.image_size": [8, 100], "model.widths": [8] * 4}, ["model.widths", "8×100", "at most 3"]),
        ({"model.architecture": "autoregressive", "model.widths": [8] * 5}, ["halves the image 5 times"]),
        ({REDUCTION: "mean", "objective.sigma": 0.1}, ["objective.sigma = 0.1", f"{REDUCTION} = mean", "optimal"]),
        ({REDUCTION: "mean", "objective.sigma": "learned"}, ["objective.sigma = learned"]),
        ({"objective.likelihood": "bernoulli", "objective.sigma": 0.1}, ["objective.sigma", "Bernoulli"]),
        ({REDUCTION: "mean", "kl.max_weight": 0}, ["kl.max_weight = 0", "0.001"]),
        ({"model.prior": "vamp", "kl.free_bits": 0.1}, ["kl.free_bits = 0.1", "model.prior = vamp", "free_bits_total"]),
        ({"model.prior": "flow", "model.mean_batch_norm": 0.5}, ["model.mean_batch_norm = 0.5", "model.prior = flow"]),
        ({"model.prior": "mixture", "model.logvar_max": -1.0}, ["model.logvar_max = -1", "set it to 10"]),
        ({"model.prior": "vamp", AGGRESSIVE: True}, [f"{AGGRESSIVE} = true", "model.prior = vamp", "mixture or flow"]),
        ({"model.prior": "flow", "model.latent_dim": 1}, ["model.prior = flow", "latent_dim of 2"]),
        ({"data.valid_fraction": 0.5, "data.test_fraction": 0.5}, ["0.5", "below 1"]),
        (
            {"data.augment": "dihedral", "data.image_size": [16, 24]},
            ["augment = dihedral", "16×24", "set augment to flip"],
        ),
        ({"model.blocks": 2}, ["model.blocks = 2 needs model.architecture = residual or autoencoder_kl", "conv"]),
        ({"model.attention": True}, ["model.attention = true needs model.architecture = residual"]),
        ({"train.gradient_checkpointing": True}, ["train.gradient_checkpointing = true needs", "group norm"]),
        ({"objective.align": 3.0, AGGRESSIVE: True}, ["objective.align = 3 and", "cannot be combined"]),
        (
            {"objective.align": 3.0, "objective.importance_samples_train": 2, "objective.sigma": 0.3},
            ["objective.align = 3 needs objective.importance_samples_train = 1"],
        ),
        (
            {"objective.perceptual": 3.0, "model.architecture": "autoregressive"},
            ["objective.perceptual = 3", "no whole picture"],
        ),
        (
            {"kl.max_weight": {"rmse": 0.1}, "objective.likelihood": "logistic_mixture"},
            ["needs a likelihood with a sigma", "logistic_mixture has none"],
        ),
        ({"data.shift": 16, "data.image_size": [16, 24]}, ["shift = 16", "shorter side of the images, 16"]),
        ({"data.binarise": "static", "data.channels": 3}, ["data.binarise = static", "data.channels = 1"]),
        ({"kl.capacity": 3.0, "kl.target_kl": 2.0}, ["capacity = 3 and target_kl = 2 cannot be combined"]),
        ({"kl.target_kl": 2.0, GECO: 0.1}, ["cannot be combined"]),
        ({"kl.target_kl": 2.0, "kl.free_bits": 0.1}, ["free bits cannot be combined"]),
        ({"kl.target_kl": 2.0, "kl.min_weight": 1.0}, ["min_weight = 1 must be below max_weight = 1"]),
        ({"kl.target_kl": 2.0, "kl.max_weight": "calibrated"}, ["target_kl needs a number for max_weight"]),
        ({"kl.free_bits": 0.1, "kl.free_bits_total": 1.0}, ["set one of them to 0"]),
        ({GECO: 0.1}, ["(GECO) needs a likelihood with one objective.sigma", "gaussian, optimal"]),
        ({GECO: 0.1, SIGMA: "pixel"}, ["learned or a number", "gaussian, pixel"]),
        ({GECO: 0.1, LIKELIHOOD: "logistic_mixture"}, ["learned or a number", "logistic_mixture"]),
        ({LIKELIHOOD: "logistic_mixture", SIGMA: "pixel"}, ["objective.sigma = pixel", "leave it at optimal"]),
        ({LIKELIHOOD: "bernoulli", SIGMA: "channel"}, ["objective.sigma = channel", "Bernoulli"]),
        ({REDUCTION: "mean", SIGMA: "pixel"}, ["objective.sigma = pixel", "leave it at optimal"]),
        ({REDUCTION: "mean", LIKELIHOOD: "discretised_logistic"}, [f"{LIKELIHOOD} = discretised_logistic", "to sum"]),
        ({LIKELIHOOD: "discretised_gaussian", "data.binarise": "static"}, ["data.binarise = static", "bernoulli"]),
        ({LIKELIHOOD: "logistic_mixture", "objective.mixture_components": 0}, ["mixture_components = 0"]),
        ({"kl.capacity": 3.0, REDUCTION: "mean"}, ["they need objective.reduction = sum"]),
        ({IWAE: 5}, ["importance_samples_train = 5 needs an objective.sigma"]),
        ({IWAE: 5, LIKELIHOOD: "discretised_gaussian"}, ["needs an objective.sigma other than optimal"]),
        ({IWAE: 5, "objective.sigma": 0.1, "kl.free_bits": 0.1}, ["needs a schedule alone"]),
        ({IWAE: 5, "objective.sigma": 0.1, AGGRESSIVE: True}, [AGGRESSIVE, f"{IWAE} = 5"]),
        ({"kl.target_kl": 5.0, "kl.max_weight": 2.0, AGGRESSIVE: True}, ["kl.target_kl = 5"]),
        ({GECO: 0.1, "objective.sigma": 0.1, AGGRESSIVE: True}, [f"{GECO} = 0.1"]),
    ],
)
def test_what_does_not_go_together_is_refused(changes: Changes, words: list[str]) -> None:
    message = refusal(changes)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("size", [8, 15, 16, 17, 255, 256])
def test_the_most_widths_that_it_names_are_allowed(size: int) -> None:
    message = refusal({"data.image_size": size, "model.widths": [4] * 8}) if size < 256 else "at most 8"
    most = int(message.split("at most ")[1].split()[0])
    parse({"data.image_size": size, "model.widths": [4] * most})


def test_only_full_batches_are_steps() -> None:
    train = parse({"train.batch_size": 8}).train
    assert [train.steps_per_epoch(count) for count in (7, 8, 15, 16, 17)] == [0, 1, 1, 2, 2]


def test_parameters_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Parameters().kl.max_weight = 2.0
