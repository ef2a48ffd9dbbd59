"""Which optimiser has which weights, and that a state continues to the bit."""

import io
from typing import Any

import pytest
import torch
from helpers.parameters import Changes
from helpers.trainings import RECIPE, STEADY, params

from vae.models.vae import VAE, build
from vae.training.muon import Muon
from vae.training.optimiser import Optimiser

FROZEN = {"mean_norm.weight", "decoder.0.bias", "decoder.conditions.0.bias"}  # the biases before batch norm


def made(changes: Changes) -> tuple[VAE, Optimiser]:
    p = params(changes)
    model = build(p)
    return model, Optimiser(model, p.train)


def groups(model: VAE, optimiser: Optimiser) -> dict[str, dict[str, Any]]:
    """The group of each weight, with the class of its optimiser; a weight has one."""
    found = [
        (weight, {"class": type(part), **group})
        for part in optimiser.parts for group in part.param_groups for weight in group["params"]
    ]  # fmt: skip
    names = {weight: name for name, weight in model.named_parameters()}
    assert len(found) == len({weight for weight, _ in found})
    return {names[weight]: group for weight, group in found}


def decays(found: dict[str, dict[str, Any]]) -> set[str]:
    """Names of the weights that decay, all by the same."""
    assert {group["weight_decay"] for group in found.values()} == {0.0, 0.1}
    return {name for name, group in found.items() if group["weight_decay"] == 0.1}


ODD = {"model.mean_batch_norm": 0.5, "objective.sigma": "learned", "train.weight_decay": 0.1}


@pytest.mark.parametrize(
    ("architecture", "layers", "double"),
    [
        ("conv", 6, {"posterior"}),  # two convolutions, the posterior, a linear layer and two convolutions back
        ("residual", 14, {"posterior"}),  # and two in each of four blocks
        ("mlp", 6, {"posterior"}),
        ("gated_mlp", 6, {"posterior", "encoder.1", "encoder.3", "decoder.0", "decoder.2"}),
        ("autoregressive", 17, {"posterior"}),  # and eleven in the PixelCNN
    ],
)
def test_muon_has_the_weights_of_layers_and_adamw_the_rest(architecture: str, layers: int, double: set[str]) -> None:
    model, optimiser = made(RECIPE | ODD | {"model.architecture": architecture, "model.batch_norm": True})
    found = groups(model, optimiser)
    frozen = FROZEN - ({"decoder.0.bias"} if architecture == "residual" else set())
    assert found.keys() == {name for name, _ in model.named_parameters()} - frozen
    muon = {name: group for name, group in found.items() if group["class"] is Muon}
    assert len(muon) == layers and all(name.endswith("weight") for name in muon)
    assert {model.get_parameter(name).dim() for name in muon} <= {2, 4}
    twice = {name.removesuffix(".weight").removesuffix(".linear") for name, g in muon.items() if g["maps"] == 2}
    assert twice == double
    rest = {name: group for name, group in found.items() if name not in muon}
    assert {group["class"] for group in rest.values()} == {torch.optim.AdamW}
    assert {model.get_parameter(name).dim() for name in rest} == {0, 1}
    assert decays(found) == muon.keys()


def test_of_two_levels_muon_takes_every_mean_apart_from_its_variance() -> None:
    changes = {"model.latent_dim": 5, "model.lower_latents": 3, "model.architecture": "mlp"}
    found = groups(*made(RECIPE | changes))
    twice = {name.rsplit(".", 1)[0] for name, group in found.items() if group.get("maps") == 2}
    assert twice == {"posterior", "lower.last", "decoder.prior.2"}


def test_adamw_has_them_all_where_it_is_asked_for() -> None:
    model, optimiser = made(STEADY | ODD)
    found = groups(model, optimiser)
    assert found.keys() == {name for name, _ in model.named_parameters()} - FROZEN
    assert {group["class"] for group in found.values()} == {torch.optim.AdamW}
    assert decays(found) == {name for name, weight in model.named_parameters() if weight.dim() > 1}


@pytest.mark.parametrize("recipe", [RECIPE, STEADY])
def test_one_learning_rate_for_all(recipe: Changes) -> None:
    model, optimiser = made(recipe)
    optimiser.set_learning_rate(0.125)
    assert {group["lr"] for group in groups(model, optimiser).values()} == {0.125}


@pytest.mark.parametrize(("recipe", "learning_rate"), [(RECIPE, 0.0125), (STEADY, 0.125)])
def test_the_head_of_an_alignment_has_adamw_at_a_rate_of_its_own(recipe: Changes, learning_rate: float) -> None:
    p = params(recipe)
    head = torch.nn.Linear(3, 5)
    optimiser = Optimiser(build(p), p.train, head)
    optimiser.set_learning_rate(0.125)
    [(part, group)] = [
        (type(part), group)
        for part in optimiser.parts for group in part.param_groups if any(w is head.weight for w in group["params"])
    ]  # fmt: skip
    assert part is torch.optim.AdamW
    assert group["lr"] == pytest.approx(learning_rate) and group["weight_decay"] == 0
    assert any(weight is head.bias for weight in group["params"])


def descend(model: VAE, optimiser: Optimiser, steps: range) -> None:
    for step in steps:
        optimiser.zero_grad()
        for number, weight in enumerate(model.parameters()):
            random = torch.Generator().manual_seed(1000 * step + number)
            weight.grad = torch.randn(weight.shape, generator=random) if weight.requires_grad else None
        optimiser.set_learning_rate(1e-3 * (step + 1))
        optimiser.step()


@pytest.mark.parametrize("recipe", [RECIPE, STEADY])
def test_a_state_that_was_saved_continues_to_the_bit(recipe: Changes) -> None:
    model, optimiser = made(recipe | ODD)
    descend(model, optimiser, range(2))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed = made(recipe | ODD)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimiser"])
    for one, other in ((model, optimiser), (again, resumed)):
        descend(one, other, range(2, 4))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
    forgetful, anew = made(recipe | ODD)
    forgetful.load_state_dict(saved["model"])
    descend(forgetful, anew, range(2, 4))
    assert not torch.equal(forgetful.posterior.weight, model.posterior.weight), "without its state it goes elsewhere"


@pytest.mark.parametrize(("recipe", "other"), [(RECIPE, STEADY), (STEADY, RECIPE)])
def test_the_state_of_the_other_optimiser_is_refused(recipe: Changes, other: Changes) -> None:
    """Checkpoints have folders by their parameters, so no training meets one."""
    with pytest.raises(ValueError, match="parameter group"):
        made(recipe)[1].load_state_dict(made(other)[1].state_dict())
