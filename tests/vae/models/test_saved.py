import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vae.config.errors import InputError
from vae.models import mixture_prior, saved
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE, to_device

SHAPE = (3, 9, 12)
NOISE = Likelihood("gaussian", 0.123)


def architecture(**changes: object) -> dict[str, Any]:
    return {"architecture": "conv", "latent_dim": 4, "widths": [6, 8], "batch_norm": True, **changes}


def model(learned_sigma: bool = False, **changes: object) -> VAE:
    torch.manual_seed(1)
    built = VAE(SHAPE, learned_sigma=learned_sigma, **architecture(**changes))
    built = to_device(
        built, torch.device("cpu")
    )  # as training has it: the memory order decides the last bits
    for _ in range(2):
        built(torch.rand(8, *SHAPE), torch.randn(8, 4))  # so that batch norm's statistics are its own
    return built.eval()


def write(folder: Path, built: VAE, likelihood: Likelihood = NOISE, **more: Any) -> str:
    return saved.save(
        folder,
        built,
        architecture(**more),
        SHAPE,
        likelihood,
        preprocessing={"height": 9, "width": 12},
        precision="fp32",
        kept_epoch=7,
        stopped="collapsed: a KL of 0.0000 nats",
        train={"elbo": -12.5},
    )


def outputs(built: VAE) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x, noise = torch.rand(5, *SHAPE, generator=random), torch.randn(5, 4, generator=random)
    with torch.no_grad():
        return list(built(x, noise))


@pytest.mark.parametrize("name", ["conv", "mlp"])
@pytest.mark.parametrize("learned_sigma", [True, False])
def test_a_round_trip_gives_the_same_bits(tmp_path: Path, name: str, learned_sigma: bool) -> None:
    built = model(learned_sigma, architecture=name)
    if built.log_sigma is not None:
        built.log_sigma.data.fill_(-1.7)
    sha256 = write(tmp_path / "models" / "vae", built, architecture=name)
    read = saved.load(tmp_path / "models" / "vae")
    assert not read.model.training
    for one, other in zip(outputs(built), outputs(read.model), strict=True):
        assert torch.equal(one, other)
    for key, value in built.state_dict().items():
        assert torch.equal(read.model.state_dict()[key], value)
    assert read.likelihood == NOISE
    assert (read.image_shape, read.pixels) == (SHAPE, 3 * 9 * 12)
    assert (read.kept_epoch, read.stopped) == (7, "collapsed: a KL of 0.0000 nats")
    assert read.preprocessing == {"height": 9, "width": 12} and read.train == {"elbo": -12.5}
    assert read.sha256 == sha256 and len(sha256) == 64
    assert read.compute().precision == "fp32" and read.compute().device.type == "cpu"


def test_the_ceiling_of_logvar_is_kept_and_older_models_have_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "new", model(logvar_max=-2.0), logvar_max=-2.0)
    write(tmp_path / "old", model())
    assert "logvar_max" not in saved.read_config(tmp_path / "old")["model"]
    ceilings = {}
    for name in ("new", "old"):
        read = saved.load(tmp_path / name).model
        with torch.no_grad():
            read.posterior.weight.mul_(1e6)
            ceilings[name] = float(read.encode(torch.rand(64, *SHAPE))[1].max())
    assert ceilings == {"new": -2.0, "old": 10.0}


def test_what_a_remedy_changed_and_a_fitted_prior_come_back(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    mu = random.normal(size=(50, 4)).astype(np.float32)
    prior = mixture_prior.fit(mu, np.full((50, 4), -1.0, np.float32), seed=0)
    changes = {"kl.max_weight": 1.0, "model.widths": [6, 8], "kl.capacity": None}
    remedies = [
        {"verdict": "collapsed", "reasons": ["a"], "changes": changes, "fitted_prior": True, "kept": True}
    ]
    for folder in (tmp_path, tmp_path / "again"):
        saved.save(
            folder, model(), architecture(), SHAPE, NOISE, {}, "fp32", 1, None, {},
            changes=changes, remedies=remedies, prior=prior,
        )  # fmt: skip
    read = saved.load(tmp_path)
    assert (read.changes, read.remedies) == (changes, remedies)
    assert read.prior is not None
    for name, tensor in prior.tensors().items():
        assert torch.equal(read.prior.tensors()[name], tensor), name
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read.prior.log_prob(z), prior.log_prob(z))
    assert (tmp_path / saved.PRIOR_FILE).read_bytes() == (tmp_path / "again" / saved.PRIOR_FILE).read_bytes()
    (tmp_path / saved.PRIOR_FILE).write_bytes(b"prior")
    with pytest.raises(InputError, match=r"prior.safetensors is not a safetensors file"):
        saved.load(tmp_path)


def test_a_model_without_a_remedy_has_none_and_neither_has_an_older_one(tmp_path: Path) -> None:
    write(tmp_path, model())
    assert not (tmp_path / saved.PRIOR_FILE).exists()
    config = saved.read_config(tmp_path)
    for older in (False, True):
        if older:
            del config["changes"], config["remedies"]
            (tmp_path / saved.CONFIG_FILE).write_text(json.dumps(config))
        read = saved.load(tmp_path)
        assert (read.changes, read.remedies, read.prior) == ({}, [], None)


def test_a_model_saved_over_one_with_a_fitted_prior_has_no_prior(tmp_path: Path) -> None:
    mu = np.zeros((50, 4), np.float32)
    saved.save(
        tmp_path, model(), architecture(), SHAPE, NOISE, {}, "fp32", 1, None, {},
        prior=mixture_prior.fit(mu, mu, seed=0),
    )  # fmt: skip
    write(tmp_path, model())
    assert saved.load(tmp_path).prior is None


def test_the_files_repeat_to_the_bit(tmp_path: Path) -> None:
    assert write(tmp_path / "one", model()) == write(tmp_path / "two", model())
    for name in (saved.WEIGHTS_FILE, saved.CONFIG_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_bernoulli_model_has_no_sigma(tmp_path: Path) -> None:
    write(tmp_path, model(), Likelihood("bernoulli"))
    assert saved.load(tmp_path).likelihood == Likelihood("bernoulli", None)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json is missing.*dvc repro train"):
        saved.load(tmp_path)
    write(tmp_path, model())
    (tmp_path / saved.WEIGHTS_FILE).unlink()
    with pytest.raises(InputError, match=r"weights.safetensors does not exist"):
        saved.load(tmp_path)


@pytest.mark.parametrize("damage", ["header", "length", "truncated", "empty", "text"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path, model())
    path = tmp_path / saved.WEIGHTS_FILE
    content = path.read_bytes()
    path.write_bytes(
        {
            "header": content.replace(b'"dtype":"F32"', b'"dtype":"F99"', 1),
            "length": b"\xff" * 8 + content[8:],
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "text": b"weights",
        }[damage]
    )
    with pytest.raises(InputError, match=r"weights.safetensors is not a safetensors file") as error:
        saved.load(tmp_path)
    assert "\n" not in str(error.value)


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_under_the_name_of_weights_does_not_run(tmp_path: Path, how: str) -> None:
    write(tmp_path, model())
    path, witness = tmp_path / saved.WEIGHTS_FILE, tmp_path / "it ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(witness)))
    else:
        torch.save(Malicious(witness), path)
    for read in (lambda: saved.load(tmp_path), lambda: saved.read_weights(path)):
        with pytest.raises(InputError, match="not a safetensors file"):
            read()
    assert not witness.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", architecture(latent_dim=5)),
        ("model", architecture(widths=[6, 9])),
        ("model", architecture(widths=[6])),
        ("model", architecture(widths=[])),
        ("model", architecture(batch_norm=False)),
        ("model", architecture(architecture="mlp")),
        ("model", architecture(architecture="__import__('os')")),
        ("model", architecture(surprise=1)),
        ("model", {}),
        ("model", None),
        ("image_shape", [1, 9, 12]),
        ("image_shape", [3, 9, 120]),
        ("image_shape", [9, 12]),
        ("image_shape", "3912"),
        ("likelihood", {"kind": "gaussian", "sigma": None}),
        ("likelihood", {"kind": "gaussian", "sigma": -0.1}),
        ("likelihood", {"kind": "gaussian", "sigma": "0.1"}),
        ("likelihood", {"kind": "bernoulli", "sigma": 0.1}),
        ("likelihood", {"kind": "poisson", "sigma": 0.1}),
        ("likelihood", {"kind": "gaussian"}),
        ("likelihood", None),
        ("precision", "fp8"),
        ("format", 2),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, key: str, value: object) -> None:
    write(tmp_path, model())
    config = saved.read_config(tmp_path)
    (tmp_path / saved.CONFIG_FILE).write_text(json.dumps({**config, key: value}))
    with pytest.raises(InputError, match="do not fit together") as error:
        saved.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("key", ["model", "image_shape", "likelihood", "precision", "format", "kept_epoch"])
def test_a_configuration_with_a_key_missing_is_refused(tmp_path: Path, key: str) -> None:
    write(tmp_path, model())
    config = saved.read_config(tmp_path)
    del config[key]
    (tmp_path / saved.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(InputError, match=key):
        saved.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, '{"model": '])
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, model())
    (tmp_path / saved.CONFIG_FILE).write_text(text)
    with pytest.raises(InputError, match=r"config.json is damaged"):
        saved.load(tmp_path)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_of_another_model_are_refused(tmp_path: Path, change: str) -> None:
    write(tmp_path, model())
    path = tmp_path / saved.WEIGHTS_FILE
    weights = load_file(path)
    if change == "missing":
        del weights["posterior.bias"]
    elif change == "unknown":
        weights["another"] = torch.zeros(2)
    else:
        weights["posterior.bias"] = torch.zeros(3)
    save_file(weights, path)
    with pytest.raises(InputError, match="do not fit together"):
        saved.load(tmp_path)
