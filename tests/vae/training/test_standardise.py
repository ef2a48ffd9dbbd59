"""Standardised latents: the same pictures, the same information, and a KL that is lower by the gap of the moments."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import CPU, TRAIN, VALID, params, run

from vae.metrics.measurement import Measurement, measure
from vae.models.likelihood import Likelihood
from vae.models.networks import GatedLinear
from vae.models.vae import VAE, build
from vae.training import loop
from vae.training.standardise import first_layer, standardise

LATENTS, NOISE = 3, Likelihood("gaussian", 0.2)
KINDS: list[dict[str, Any]] = [
    {"model.architecture": "conv", "model.batch_norm": True},
    {"model.architecture": "conv", "model.batch_norm": False},
    {"model.architecture": "residual", "model.batch_norm": True, "model.attention": True},
    {"model.architecture": "residual", "model.batch_norm": False},
    {"model.architecture": "residual", "model.latent_dim": 12, "model.latent_shape": [2, 2, 3]},
    {
        "model.architecture": "residual",
        "model.latent_dim": 12,
        "model.latent_shape": [2, 2, 3],
        "model.attention": True,
    },
    {
        "model.architecture": "autoencoder_kl",
        "model.latent_shape": [4, 4, 3],
        "model.latent_dim": 48,
        "model.batch_norm": False,
        "model.attention": True,
    },
    {"model.architecture": "mlp", "model.batch_norm": True},
    {"model.architecture": "mlp", "model.batch_norm": False},
    {"model.architecture": "gated_mlp", "model.batch_norm": True},
    {"model.architecture": "gated_mlp", "model.batch_norm": False},
    {"model.architecture": "autoregressive", "model.batch_norm": True},
    {"model.architecture": "autoregressive", "model.batch_norm": False},
]


def model(changes: dict[str, Any]) -> VAE:
    """Its latents far from N(0, 1), each in another way, as after a training with a small KL weight."""
    made = build(params(changes))
    x = torch.from_numpy(TRAIN).permute(0, 3, 1, 2) / 255
    for _ in range(20):
        made(
            x, torch.randn(len(x), made.latent_dim, generator=torch.Generator().manual_seed(0))
        )  # statistics of batch norm
    with torch.no_grad():
        scale = torch.tensor([5.0, 0.2, 1.0, 1.0, 0.5, 0.1])
        made.posterior.weight.mul_(scale.view(-1, *[1] * (made.posterior.weight.dim() - 1)))
        made.posterior.bias.copy_(torch.tensor([3.0, -1.0, 0.0, -2.0, 0.5, 0.0]))
    return made.eval()


def measured(made: VAE, images: np.ndarray = TRAIN) -> Measurement:
    return measure(made, images, NOISE, CPU, seed=0)


@pytest.mark.parametrize("changes", KINDS)
def test_it_is_exact_but_for_rounding(changes: dict[str, Any]) -> None:
    made = model(changes)
    before, unseen = measured(made), measured(made, VALID)
    assert before.prior_gap > 3 and standardise(made, before)
    after, unseen_after = measured(made), measured(made, VALID)
    for one, other in ((before, after), (unseen, unseen_after)):
        assert other.distortion == pytest.approx(one.distortion, rel=1e-4)
        assert other.mse == pytest.approx(one.mse, rel=1e-4)
        np.testing.assert_allclose(other.posterior_share, one.posterior_share, rtol=1e-3)
    np.testing.assert_allclose(after.aggregate_mean, 0, atol=1e-4)
    np.testing.assert_allclose(after.aggregate_variance, 1, rtol=1e-4)
    assert after.rate == pytest.approx(before.rate - before.prior_gap, abs=1e-3)
    assert after.prior_gap == pytest.approx(0, abs=1e-6)
    # Of other images the rate falls by the gap of the moments of the training split, seen from theirs.
    m, s2 = before.aggregate_mean, before.aggregate_variance
    second = unseen.aggregate_variance + unseen.aggregate_mean**2
    scaled = unseen.aggregate_variance / s2 + (unseen.aggregate_mean - m) ** 2 / s2
    assert unseen.rate - unseen_after.rate == pytest.approx(
        0.5 * made.places * (second - scaled - np.log(s2)).sum(), abs=1e-3
    )


@pytest.mark.parametrize("changes", KINDS)
def test_pictures_of_the_same_place_stay(changes: dict[str, Any]) -> None:
    """z = m + s·z' before is z' afterwards."""
    made = model(changes)
    before = measured(made)
    place = torch.randn(6, made.latent_dim, generator=torch.Generator().manual_seed(1))
    moments = (before.aggregate_mean, np.sqrt(before.aggregate_variance))
    m, s = (torch.from_numpy(a).float().repeat_interleave(made.places) for a in moments)
    with torch.no_grad():
        pictures = made.decode(m + s * place)
        assert standardise(made, before)
        torch.testing.assert_close(made.decode(place), pictures, rtol=1e-3, atol=1e-4)


def test_a_second_time_it_changes_nothing_but_rounding() -> None:
    made = model(KINDS[0])
    standardise(made, measured(made))
    once = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    standardise(made, measured(made))
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(tensor, once[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{"model.mean_batch_norm": 0.5}, {"model.logvar_max": -0.5}])
def test_where_the_parameters_fix_the_scale_it_is_left_alone(changes: dict[str, Any]) -> None:
    made = build(params(changes)).eval()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    assert not standardise(made, measured(made))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize(
    ("moment", "value"),
    [
        ("aggregate_mean", np.nan),
        ("aggregate_variance", np.inf),
        ("aggregate_variance", np.nan),
        ("aggregate_variance", 0.0),
    ],
)
def test_moments_that_no_scale_follows_from_leave_it_alone(moment: str, value: float) -> None:
    made = model(KINDS[0])
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    wrong = np.array([1.0, value, 1.0])
    assert not standardise(made, dataclasses.replace(measured(made), **{moment: wrong}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize("changes", KINDS)
def test_the_shift_of_the_first_layer_has_no_part_in_training(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where batch norm follows it stays 0 and untrained: the bits of the trained weights are those without it."""
    p = params({**changes, "train.epochs": 1})
    first = first_layer(build(p))
    shifted = p.model.batch_norm and p.model.architecture not in ("gated_mlp", "residual")
    assert first.bias.requires_grad is not shifted and not first.bias.any()
    kept: list[VAE] = []
    monkeypatch.setattr(loop, "standardise", lambda model, train: bool(kept.append(model)))
    run(p)
    bias = first_layer(kept[0]).bias
    assert not bias.requires_grad and not bias.any() if shifted else bias.any()


def test_the_kept_model_of_a_training_is_standardised() -> None:
    """Its measurements are those of the changed weights; the history is of the training itself."""
    trained = run(params({"kl.max_weight": 0.1}))
    np.testing.assert_allclose(trained.train.aggregate_mean, 0, atol=1e-4)
    np.testing.assert_allclose(trained.train.aggregate_variance, 1, rtol=1e-4)
    again = measure(trained.model, TRAIN, trained.likelihood, CPU, seed=0)
    assert again.rate == trained.train.rate and again.distortion == trained.train.distortion
    valid = measure(trained.model, VALID, trained.likelihood, CPU, seed=0)
    row = trained.history[trained.kept_epoch - 1]
    assert valid.mse_sampled == pytest.approx(row["valid/mse_sampled"], rel=1e-4)
    assert valid.rate < row["valid/kl"] - 0.01


@pytest.mark.parametrize("prior", ["standard", "vamp", "mixture", "flow"])
def test_where_the_ceiling_of_the_log_variance_would_change_pictures_they_stay(prior: str) -> None:
    """Means spread widely and a log variance cut off at 0: standardised, it would have to be about −3."""
    p = params(
        {"model.logvar_max": 0.0, "model.prior": prior, "model.prior_components": 5, "train.learning_rate": 1e-9}
    )
    made = build(p)
    with torch.no_grad():
        made.posterior.weight[:LATENTS].mul_(60)
        made.posterior.bias[LATENTS:].fill_(5)
    weights = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    trained = run(p, initial_weights=weights)
    assert trained.train.aggregate_variance.max() > 5
    torch.testing.assert_close(trained.model.posterior.weight, weights["posterior.weight"], rtol=1e-4, atol=1e-5)
    valid, row = measure(trained.model, VALID, trained.likelihood, CPU, seed=0), trained.history[trained.kept_epoch - 1]
    assert (valid.mse_sampled, valid.rate) == pytest.approx((row["valid/mse_sampled"], row["valid/kl"]), rel=1e-4)


def test_the_first_layer_takes_the_latents() -> None:
    for changes in KINDS:
        made = build(params(changes))
        assert first_layer(made).weight.shape[1] == LATENTS
        inside = any(isinstance(m, GatedLinear) for m in made.decoder.modules())
        assert inside is (changes["model.architecture"] == "gated_mlp")
