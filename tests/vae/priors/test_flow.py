"""The flow over latents: a density, what it draws, how it is fitted and kept."""

import numpy as np
import pytest
import torch
from helpers.priors import axes_of

from vae.priors import flow, mixture
from vae.priors.aggregate import Posteriors, draw
from vae.priors.flow import Flow


def ring(images: int, seed: int) -> tuple[Posteriors, Posteriors]:
    """Around (0, 0) at a radius of 2."""
    random = np.random.default_rng(seed)
    angle, radius = random.uniform(0, 2 * np.pi, images), 2 + 0.1 * random.standard_normal(images)
    mu = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    return mu, np.full_like(mu, np.log(0.1**2))


HELD_OUT = draw(*ring(500, 1), seed=0)


@pytest.fixture(scope="module")
def fitted() -> Flow:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "STEPS", 500)
        return flow.fit(*ring(3_000, 0), HELD_OUT, seed=0)


def test_the_density_integrates_to_1(fitted: Flow) -> None:
    side, step = torch.linspace(-6, 6, 601), 12 / 600
    grid = torch.cartesian_prod(side, side)
    density = fitted.log_prob(grid.reshape(601, 601, 2)).exp()
    assert density.shape == (601, 601) and density.dtype == torch.float64
    assert float(density.sum()) * step**2 == pytest.approx(1, abs=0.01)


def test_samples_are_of_the_density(fitted: Flow) -> None:
    """Its entropy, once by its samples and once by quadrature."""
    z = fitted.sample(20_000, torch.Generator().manual_seed(0))
    assert z.shape == (20_000, 2) and z.dtype == torch.float32 and not z.requires_grad
    side, step = torch.linspace(-6, 6, 601), 12 / 600
    log_density = fitted.log_prob(torch.cartesian_prod(side, side))
    entropy = -float((log_density.exp() * log_density).sum()) * step**2
    assert -float(fitted.log_prob(z).mean()) == pytest.approx(entropy, abs=0.03)
    assert torch.equal(z, fitted.sample(20_000, torch.Generator().manual_seed(0)))


def test_a_ring_is_fitted_better_than_by_a_gaussian(fitted: Flow) -> None:
    """The Gaussian of the same latents is a disc: 1.2 nats wide of them."""
    others = torch.from_numpy(draw(*ring(2_000, 2), seed=3))
    gaussian = mixture.fit_gaussian(axes_of(*ring(3_000, 0)))
    assert float(fitted.log_prob(others).mean()) > float(gaussian.log_prob(others).mean()) + 0.5
    radius = fitted.sample(5_000, torch.Generator().manual_seed(1)).norm(dim=1)
    assert float(((radius > 1.5) & (radius < 2.5)).double().mean()) > 0.8


def test_a_fit_repeats_to_the_bit_and_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "STEPS", 100)
    before = torch.get_rng_state()
    one, other, third = (flow.fit(*ring(600, 0), HELD_OUT, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert not torch.equal(one.log_prob(torch.zeros(1, 2)), third.log_prob(torch.zeros(1, 2)))


def test_the_step_that_is_best_on_other_images_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 images a flow learns each one: later steps are worse on others than the kept one."""
    monkeypatch.setattr(flow, "STEPS", 300)
    monkeypatch.setattr(flow, "BATCH", 64)
    few = ring(40, 0)
    few = few[0], np.full_like(few[1], -12.0)
    kept = flow.fit(*few, HELD_OUT, seed=0)
    monkeypatch.setattr(flow, "CHECK", 300)  # the last step alone
    last = flow.fit(*few, HELD_OUT, seed=0)
    judged = torch.from_numpy(HELD_OUT)
    assert float(kept.log_prob(judged).mean()) > float(last.log_prob(judged).mean()) + 0.5


def test_tensors_come_back_as_the_same_flow(fitted: Flow) -> None:
    read = flow.read({name: tensor.clone() for name, tensor in fitted.tensors().items()}, latents=2)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(read.log_prob(z), fitted.log_prob(z))
    one, other = (prior.sample(9, torch.Generator().manual_seed(5)) for prior in (read, fitted))
    assert torch.equal(one, other)


def test_tensors_that_are_no_such_flow_are_refused(fitted: Flow) -> None:
    tensors = {name: tensor.clone() for name, tensor in fitted.tensors().items()}
    for latents in (1, 3):
        with pytest.raises(RuntimeError, match="size mismatch"):
            flow.read(tensors, latents)
    first = next(name for name in tensors if name.endswith("weight"))
    with pytest.raises(RuntimeError, match="Missing key"):
        flow.read({name: tensor for name, tensor in tensors.items() if name != first}, latents=2)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        flow.read(tensors | {"more": torch.zeros(1)}, latents=2)
    with pytest.raises(ValueError, match="not finite"):
        flow.read(tensors | {first: tensors[first] * torch.nan}, latents=2)


@pytest.mark.parametrize("part", ["mask", "order", "base.scale", "base.loc"])
def test_parts_that_training_does_not_change_have_to_be_as_built(fitted: Flow, part: str) -> None:
    """With other masks it is no density: each latent would be predicted from itself."""
    tensors = {name: tensor.clone() for name, tensor in fitted.tensors().items()}
    name = next(name for name in tensors if name.endswith(part))
    tensors[name] = torch.ones_like(tensors[name]) if part == "mask" else tensors[name] * 0 - 1
    with pytest.raises(ValueError, match=f"{name} "):
        flow.read(tensors, latents=2)
