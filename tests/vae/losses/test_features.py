"""Losses on the features of a frozen network: their equations, and that they reach the right weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.frozen import small_network
from helpers.parameters import Changes
from helpers.trainings import CPU, RECIPE, TRAIN, VALID, assert_same_bits, interrupted, params, run
from torch.nn import functional

from vae.compute.batches import to_pixels
from vae.config.errors import InputError
from vae.features.network import FrozenNetwork, load
from vae.losses.features import RIDGE, FeatureLoss, moments, perceptual_distance
from vae.training.state import TrainState

DEVICE = torch.device("cpu")
X, OTHER = (to_pixels(images[:6], DEVICE) for images in (TRAIN, VALID))


@pytest.fixture
def network(tmp_path: Path) -> FrozenNetwork:
    return load(str(small_network(tmp_path / "small.pt2")), DEVICE)


def test_alignment_without_a_prediction_is_one_whatever_the_network_scales(network: FrozenNetwork) -> None:
    """Over the training split; and each feature keeps its share of the variance."""
    loss = FeatureLoss(network, 1.0, 0.0, 3, TRAIN, DEVICE)
    images = to_pixels(TRAIN, DEVICE)
    found, raw = loss.targets(images), network.pooled(images)
    raw -= raw.mean(0)
    assert float(found.square().mean()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(found / found.norm(), raw / raw.norm(), rtol=1e-3, atol=1e-5)


def test_features_that_never_vary_are_no_infinity(network: FrozenNetwork) -> None:
    same = np.repeat(TRAIN[:1], 5, axis=0)
    mean, scale = moments(network, same, DEVICE)
    assert not ((network.pooled(to_pixels(same, DEVICE)) - mean) / scale).any()


def test_the_perceptual_distance_by_its_equation(network: FrozenNetwork) -> None:
    found = perceptual_distance(network, X, OTHER)
    expected = torch.zeros(6)
    for one, other in zip(network.maps(X), network.maps(OTHER), strict=True):
        cosine = functional.cosine_similarity(one, other, dim=1)  # |a − b|² = 2 − 2·cos of unit vectors
        expected += (2 - 2 * cosine).mean((1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not perceptual_distance(network, X, X).any()
    assert bool((found > 0).all())


def test_alignment_is_the_mean_squared_error_of_a_ridge_regression(network: FrozenNetwork) -> None:
    """Of every second image. What the history shows is without the ridge."""
    loss = FeatureLoss(network, 10.0, 0.0, 3, TRAIN, DEVICE)
    mu = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    found, logs = loss(X, OTHER, mu)
    assert loss.head is not None
    expected = (mu @ loss.head.weight.T + loss.head.bias - loss.targets(X))[[0, 2, 4]].square().mean()
    torch.testing.assert_close(found, 10 * (expected + RIDGE * loss.head.weight.square().sum(1).mean()))
    assert logs.keys() == {"alignment"} and float(logs["alignment"]) == pytest.approx(expected.item())


def test_the_distance_is_of_every_second_image(network: FrozenNetwork) -> None:
    loss = FeatureLoss(network, 0.0, 10.0, 3, TRAIN, DEVICE)
    found, logs = loss(X, OTHER, torch.zeros(6, 3))
    expected = perceptual_distance(network, X, OTHER)[[0, 2, 4]].mean()
    torch.testing.assert_close(found, 10 * expected)
    assert logs.keys() == {"perceptual"} and float(logs["perceptual"]) == pytest.approx(expected.item())


@pytest.mark.parametrize(("align", "perceptual"), [(1.0, 0.0), (0.0, 1.0)])
def test_alignment_teaches_the_encoder_and_the_distance_both(tmp_path: Path, align: float, perceptual: float) -> None:
    p = params({**named(tmp_path), "objective.align": align, "objective.perceptual": perceptual})
    state = TrainState(p, TRAIN, DEVICE, None)
    output, mu, _ = state.model(X, torch.zeros(6, p.model.latent_dim))
    assert state.features is not None
    loss, _ = state.features(X, picture=output, mu=mu)
    loss.backward()
    taught = {name for name, weight in state.model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any(name.startswith("encoder") for name in taught)
    assert any(name.startswith("decoder") for name in taught) is (perceptual > 0)
    assert not any(weight.requires_grad for weight in state.features.network.parameters())
    assert (state.features.head is not None) is (align > 0)


def named(tmp_path: Path) -> Changes:
    return {"objective.features": str(small_network(tmp_path / "small.pt2"))}


@pytest.mark.parametrize("changes", [{}, RECIPE, {"train.ema": 0.9, "data.augment": "dihedral", "data.shift": 2}])
def test_interruptions_change_no_bit_of_an_aligned_training(tmp_path: Path, changes: dict[str, Any]) -> None:
    p = params({**changes, **named(tmp_path), "objective.align": 30.0, "objective.perceptual": 5.0})
    undisturbed = run(p)
    assert_same_bits(interrupted(p, tmp_path / "run" / "state.pt", [2, 9], [2, 3]), undisturbed)
    for name in ("train/alignment", "train/perceptual"):
        values = [row[name] for row in undisturbed.history]
        assert values[-1] < values[0]


def test_alignment_makes_latents_predict_the_features(tmp_path: Path) -> None:
    """And the ELBO is reported without it."""
    plain, aligned = (
        run(params({**RECIPE, **named(tmp_path), "train.epochs": 8, "objective.align": align}))
        for align in (0.0, 300.0)
    )
    assert aligned.history[-1]["train/alignment"] < 0.9 * aligned.history[0]["train/alignment"]
    row = aligned.history[-1]
    assert row["train/loss"] > row["train/reconstruction"] + row["train/kl"]
    assert row["valid/elbo"] == pytest.approx(-row["valid/reconstruction"] - row["valid/kl"])
    assert "train/alignment" not in plain.history[-1]


def test_a_network_that_is_missing_ends_the_training_before_it_starts(tmp_path: Path) -> None:
    p = params({"objective.features": str(tmp_path / "none.pt2"), "objective.align": 1.0})
    with pytest.raises(InputError, match=r"objective.features = .*none.pt2"):
        TrainState(p, TRAIN, CPU.device, None)
