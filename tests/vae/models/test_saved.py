import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.models import Malicious, config, network
from helpers.priors import gaussian
from safetensors.torch import load_file, save_file

from vae.config.errors import InputError
from vae.config.sections import Model
from vae.models import saved
from vae.models.likelihood import Likelihood
from vae.models.saved import Attempted, ModelConfig, PriorFit, ValidationScores
from vae.models.vae import VAE, to_device
from vae.priors.mixture import Mixture
from vae.priors.standard import STANDARD, StandardNormal

SHAPE = (3, 9, 12)
MODEL: dict[str, Any] = {"architecture": "conv", "latent_dim": 4, "widths": [6, 8], "batch_norm": True}
CONFIG = config(SHAPE, Model(**MODEL))


def trained(made: ModelConfig = CONFIG, **more: Any) -> VAE:
    # As training has it: the memory order decides the last bits, and batch norm's statistics are its own.
    built = to_device(network(made, **more), torch.device("cpu"))
    for _ in range(2):
        built(torch.rand(8, *SHAPE), torch.randn(8, 4))
    return built.eval()


def tampered(folder: Path, **values: Any) -> None:
    """Sets values of `config.json`; None takes them out."""
    path = folder / saved.CONFIG_FILE
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in values}
    path.write_text(json.dumps(kept | {key: value for key, value in values.items() if value is not None}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds a model."""
    saved.save(tmp_path / "models" / "vae", trained(), CONFIG)
    return tmp_path / "models" / "vae"


@pytest.mark.parametrize("kind", ["conv", "mlp", "autoregressive"])
@pytest.mark.parametrize(
    ("likelihood", "learned"),
    [
        (Likelihood("gaussian", 0.123), False),
        (Likelihood("gaussian", 0.123), True),
        (Likelihood("bernoulli"), False),
        (Likelihood("gaussian"), False),
        (Likelihood("discretised_logistic", (0.1, 0.2, 0.3)), True),
        (Likelihood("logistic_mixture", components=2), False),
    ],
)
def test_a_round_trip_to_the_bit(tmp_path: Path, kind: str, likelihood: Likelihood, learned: bool) -> None:
    changes = {"kl.max_weight": 1.0, "model.widths": [6, 8], "kl.capacity": None}
    made = config(
        SHAPE,
        Model(**{**MODEL, "architecture": kind, "logvar_max": -2.0}),
        likelihood=likelihood,
        stopped="collapsed: a KL of 0.0000 nats",
        valid=ValidationScores(images=3, score_percentiles=[float(score) for score in range(101)]),
        prior=PriorFit(name="Gaussian", log_likelihood={STANDARD: -9.5, "Gaussian": -7.25}),
        changes=changes,
        remedies=[Attempted(changes=changes, verdict="collapsed", reasons=["a"], kept=True)],
    )
    built = trained(made, learned_sigma=learned)
    sha256 = saved.save(tmp_path, built, made)
    read = saved.load(tmp_path)
    assert (read.config, read.prior, read.sha256) == (made, StandardNormal(4), sha256)
    assert len(sha256) == 64 and read.pixels == 3 * 9 * 12 and not read.model.training
    weights = built.state_dict()
    assert weights.keys() == read.model.state_dict().keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in read.model.state_dict().items())
    x, noise = torch.rand(5, *SHAPE), torch.randn(5, 4)
    with torch.no_grad():
        for one, other in zip(built(x, noise), read.model(x, noise), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(built.decode(noise), read.model.decode(noise))
    assert read.compute().precision == "fp32" and read.compute().device.type == "cpu"


def test_an_old_likelihood_is_written_as_ever_and_a_new_one_with_what_it_needs(tmp_path: Path) -> None:
    written = {}
    for name, likelihood in (
        ("old", Likelihood("gaussian", 0.2)),
        ("channels", Likelihood("discretised_gaussian", (0.1, 0.2, 0.3))),
        ("mixture", Likelihood("logistic_mixture", components=2)),
    ):
        made = config(SHAPE, Model(**MODEL), likelihood=likelihood)
        saved.save(tmp_path, trained(made), made)
        written[name] = json.loads((tmp_path / saved.CONFIG_FILE).read_text())["likelihood"]
    assert written == {
        "old": {"kind": "gaussian", "sigma": 0.2},
        "channels": {"kind": "discretised_gaussian", "sigma": [0.1, 0.2, 0.3]},
        "mixture": {"kind": "logistic_mixture", "sigma": None, "components": 2},
    }


def test_what_older_models_lack_has_its_default(folder: Path) -> None:
    tampered(folder, model=MODEL, valid=None, changes=None, remedies=None, prior=None)
    made = saved.load(folder).config
    assert (made.model.logvar_max, made.changes, made.remedies) == (10, {}, [])
    assert made.valid == ValidationScores(images=None, score_percentiles=None)
    assert (made.prior.name, made.prior.log_likelihood) == (STANDARD, {})


@pytest.mark.parametrize("kind", ["conv", "mlp", "autoregressive"])
def test_an_older_model_has_no_bias_before_the_decoders_first_batch_norm(tmp_path: Path, kind: str) -> None:
    made = config(SHAPE, Model(**{**MODEL, "architecture": kind}))
    saved.save(tmp_path, trained(made), made)
    weights = load_file(tmp_path / saved.WEIGHTS_FILE)
    name = "decoder.conditions.0.bias" if kind == "autoregressive" else "decoder.0.bias"
    assert not weights.pop(name).any()
    save_file(weights, tmp_path / saved.WEIGHTS_FILE)
    read = saved.load(tmp_path).model.state_dict()
    assert not read[name].any() and all(torch.equal(read[other], tensor) for other, tensor in weights.items())


def test_an_older_mixture_is_one_over_the_latents_themselves(folder: Path) -> None:
    tampered(folder, prior=None)
    old = {"weights": torch.tensor([0.25, 0.75]), "means": torch.randn(2, 4), "scales": torch.eye(4).repeat(2, 1, 1)}
    save_file({name: tensor.double() for name, tensor in old.items()}, folder / saved.PRIOR_FILE)
    read = saved.load(folder)
    assert read.config.prior.name == "mixture of 2 Gaussians"
    kinds = [torch.distributions.MultivariateNormal(mean, torch.eye(4)) for mean in old["means"]]
    z = torch.randn(5, 4)
    density = sum(weight * kind.log_prob(z).exp() for weight, kind in zip(old["weights"], kinds, strict=True))
    torch.testing.assert_close(read.prior.log_prob(z).exp().float(), density)


def test_a_fitted_prior_comes_back_and_goes_with_its_model(folder: Path) -> None:
    saved.save(folder, trained(), CONFIG, gaussian(latents=4))
    read = saved.load(folder).prior
    assert isinstance(read, Mixture)
    for name, tensor in gaussian(latents=4).tensors().items():
        assert torch.equal(read.tensors()[name], tensor), name
    (folder / saved.PRIOR_FILE).write_bytes(b"prior")
    with pytest.raises(InputError, match=r"prior.safetensors is not a safetensors file"):
        saved.load(folder)
    for without in (StandardNormal(4), None):  # no file: N(0, I) has nothing to keep
        saved.save(folder, trained(), CONFIG, without)
        assert saved.load(folder).prior == StandardNormal(4) and not (folder / saved.PRIOR_FILE).exists()


def test_the_files_repeat_to_the_bit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved.save(tmp_path / name, trained(), CONFIG, gaussian(latents=4))
    for file in (saved.WEIGHTS_FILE, saved.CONFIG_FILE, saved.PRIOR_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_folder_without_a_model(folder: Path) -> None:
    with pytest.raises(InputError, match=r"config.json is missing.*dvc repro train"):
        saved.load(folder.parent)
    (folder / saved.WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=r"weights.safetensors does not exist"):
        saved.load(folder)


@pytest.mark.parametrize("damage", ["header", "length", "truncated", "empty", "text", "pickle", "torch"])
def test_other_files_for_weights_are_refused_unread(folder: Path, tmp_path: Path, damage: str) -> None:
    path, witness = folder / saved.WEIGHTS_FILE, tmp_path / "it ran"
    content = path.read_bytes()
    torch.save(Malicious(witness), tmp_path / "torch")
    damaged = {
        "header": content.replace(b'"dtype":"F32"', b'"dtype":"F99"', 1),
        "length": b"\xff" * 8 + content[8:],
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"weights",
        "pickle": pickle.dumps(Malicious(witness)),
        "torch": (tmp_path / "torch").read_bytes(),
    }
    path.write_bytes(damaged[damage])
    for read in (lambda: saved.load(folder), lambda: saved.read_weights(path)):
        with pytest.raises(InputError, match=r"weights.safetensors is not a safetensors file") as error:
            read()
        assert "\n" not in str(error.value)
    assert not witness.exists()


LEVELS = {"latent_dim": 4, "lower_latents": 1}


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "residual", "widths": [64, 1]},
        {"architecture": "residual", "widths": [8, 1], "blocks": 16},
        {"architecture": "autoencoder_kl", "widths": [64], "latent_shape": [9, 12, 1], "latent_dim": 108},
        {"architecture": "mlp", "widths": [1, 64], **LEVELS},
        {"architecture": "gated_mlp", "widths": [1, 64], **LEVELS},
        {"architecture": "conv", "widths": [1, 1], **LEVELS},
        {"architecture": "residual", "widths": [1, 1], **LEVELS},
        {"architecture": "residual", "widths": [64, 1], "latent_dim": 26, "lower_latents": [4, 6, 1]},
    ],
)
def test_a_network_much_larger_than_its_weights_is_refused_before_it_is_built(
    folder: Path, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("the network was built")

    monkeypatch.setattr(saved, "VAE", build)
    tampered(folder, model={**MODEL, **model})
    with pytest.raises(InputError, match="fewer weights than such a model needs"):
        saved.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {**MODEL, "latent_dim": 5}),
        ("model", {**MODEL, "widths": [6, 9]}),
        ("model", {**MODEL, "widths": [6]}),
        ("model", {**MODEL, "widths": []}),
        ("model", {**MODEL, "batch_norm": False}),
        ("model", {**MODEL, "architecture": "mlp"}),
        ("model", {**MODEL, "architecture": "__import__('os')"}),
        ("model", {**MODEL, "surprise": 1}),
        ("model", {**MODEL, "latent_shape": [2, 2, 1]}),
        ("model", {**MODEL, "architecture": "residual", "latent_dim": 16, "latent_shape": [2, 3, 4]}),
        ("model", {**MODEL, "architecture": "residual", "latent_dim": 16, "latent_shape": [9, 12, 10**9]}),
        ("model", {**MODEL, "architecture": "autoencoder_kl"}),
        ("model", {**MODEL, "lower_latents": 1}),
        ("model", {**MODEL, "lower_latents": 4}),
        ("model", {**MODEL, "lower_latents": "1"}),
        ("model", {**MODEL, "lower_latents": [2, 2, 1]}),
        ("model", {**MODEL, "lower_latents": 10**12}),
        ("model", {**MODEL, "architecture": "autoregressive", "lower_latents": 1}),
        ("model", {**MODEL, "architecture": "residual", "latent_dim": 8, "lower_latents": [2, 3, 1]}),
        ("model", {**MODEL, "architecture": "residual", "latent_dim": 8, "lower_latents": [0, 3, 1]}),
        ("image_shape", [1, 9, 12]),
        ("image_shape", [3, 9, 120]),
        ("image_shape", [9, 12]),
        ("image_shape", "3912"),
        ("preprocessing", {"height": 9, "width": 11, "channels": 3}),
        ("likelihood", {"kind": "gaussian", "sigma": None}),
        ("likelihood", {"kind": "gaussian", "sigma": -0.1}),
        ("likelihood", {"kind": "gaussian", "sigma": "0.1"}),
        ("likelihood", {"kind": "bernoulli", "sigma": 0.1}),
        ("likelihood", {"kind": "poisson", "sigma": 0.1}),
        ("likelihood", {"kind": "gaussian", "sigma": [0.1, 0.1]}),
        ("likelihood", {"kind": "gaussian", "sigma": [0.1, 0.1, -0.1]}),
        ("likelihood", {"kind": "gaussian", "sigma": 0.1, "components": 2}),
        ("likelihood", {"kind": "discretised_gaussian", "sigma": None}),
        ("likelihood", {"kind": "logistic_mixture", "sigma": 0.1, "components": 2}),
        ("likelihood", {"kind": "logistic_mixture", "sigma": None}),
        ("likelihood", {"kind": "logistic_mixture", "sigma": None, "components": 2}),
        ("likelihood", {"kind": "logistic_mixture", "sigma": None, "components": 10**9}),
        ("precision", "fp8"),
        ("format", 2),
        ("valid", []),
        ("valid", {"score_percentiles": [1.0] * 100}),
        ("valid", {"score_percentiles": [1.0] * 100 + [math.inf]}),
        ("valid", {"score_percentiles": [1.0] * 100 + [0.0]}),
        ("changes", {"data.path": "/"}),
        ("changes", {"train.initial_weights": "x"}),
        *((key, None) for key in ("model", "image_shape", "likelihood", "precision", "format", "kept_epoch")),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder: Path, key: str, value: object) -> None:
    tampered(folder, **{key: value})
    with pytest.raises(InputError, match="do not fit together") as error:
        saved.load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert value is not None or key in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, '{"model": '])
def test_a_damaged_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / saved.CONFIG_FILE).write_text(text)
    with pytest.raises(InputError, match=r"config.json is damaged"):
        saved.load(folder)


@pytest.mark.parametrize(
    "change", [{"posterior.bias": None}, {"another": torch.zeros(2)}, {"posterior.bias": torch.zeros(3)}]
)
def test_weights_of_another_model_are_refused(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    path = folder / saved.WEIGHTS_FILE
    changed = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(InputError, match="do not fit together"):
        saved.load(folder)
