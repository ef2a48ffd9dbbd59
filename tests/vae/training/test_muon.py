"""Muon against an SVD and against PyTorch's own, which takes matrices alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vae.models.pixelcnn import MaskedConv2d
from vae.training.muon import ITERATIONS, A, B, C, Muon, orthogonal

NOTHING = 0.75 / A**ITERATIONS  # of the norm: a singular value below it may stay below the band
RATE, DECAY = 0.02, 0.3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix_of(kernel: Tensor) -> Tensor:
    """(out, in, h, w) → (out, in·h·w)."""
    return kernel.reshape(len(kernel), -1)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.floats(-5, 15), st.integers(0, 99))
@example(12, 12, 12, 0.0, 0)
@example(12, 3, 3, 15.0, 1)
@example(3, 12, 2, -5.0, 2)
@example(1, 12, 1, 0.0, 3)
def test_it_changes_singular_values_alone(height: int, width: int, rank: int, exponent: float, seed: int) -> None:
    """Each becomes the polynomial of itself, over and over; those of a size to speak of end near 1."""
    product = drawn(height, rank, seed=seed) @ drawn(rank, width, seed=seed + 100)
    found = orthogonal(product * 10**exponent)
    left, values, right = torch.linalg.svd((product / product.norm()).double(), full_matrices=False)
    expected = values
    for _ in range(ITERATIONS):
        expected = A * expected + B * expected**3 + C * expected**5
    torch.testing.assert_close(found.double(), left @ expected.diag() @ right, rtol=0, atol=2e-3)
    sizeable = torch.linalg.svdvals(found)[: int((values > NOTHING).sum())]
    assert ((sizeable > 0.68) & (sizeable < 1.21)).all()  # 0.7 to 1.2


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_next_to_nothing_stays_next_to_nothing(shape: tuple[int, int]) -> None:
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))
    assert 0 < orthogonal(1e-12 * drawn(*shape)).norm() < 0.1


def moved(weight: Tensor, gradients: list[Tensor], optimiser: Callable[[nn.Parameter], Any]) -> Tensor:
    """The weight after a step for each gradient, the learning rate falling."""
    parameter = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    made = optimiser(parameter)
    for number, gradient in enumerate(gradients):
        made.param_groups[0]["lr"] = RATE / (1 + number)
        parameter.grad = gradient.clone(memory_format=torch.preserve_format)
        made.step()
    return parameter.detach()


def ours(maps: int = 1, decay: float = DECAY) -> Callable[[nn.Parameter], Muon]:
    return lambda weight: Muon([{"params": [weight], "maps": maps}], lr=RATE, weight_decay=decay)


def pytorchs(weight: nn.Parameter) -> torch.optim.Muon:
    return torch.optim.Muon([weight], lr=RATE, weight_decay=DECAY, ns_steps=ITERATIONS, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize(("rounds", "tolerance"), [(True, 0.03), (False, 1e-4)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16), (1, 9)])
def test_its_steps_are_those_of_pytorchs_muon(
    shape: tuple[int, int], rounds: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rounds to bf16, unless it is kept from it."""
    if not rounds:
        monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    for steps in (1, 4):
        weight, gradients = drawn(*shape), [drawn(*shape, seed=seed) for seed in range(1, steps + 1)]
        found, expected = moved(weight, gradients, ours()), moved(weight, gradients, pytorchs)
        assert (found - expected).norm() < tolerance * (expected - weight).norm()


ORDERS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (30, 2, 3, 3), (7, 8, 1, 1)])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("of_gradients", ORDERS)
def test_a_kernel_moves_as_its_matrix_does_in_any_order_of_memory(
    shape: tuple[int, ...], order: torch.memory_format, of_gradients: torch.memory_format
) -> None:
    weight, gradients = drawn(*shape), [drawn(*shape, seed=seed) for seed in (1, 2, 3)]
    arranged = [gradient.contiguous(memory_format=of_gradients) for gradient in gradients]
    found = moved(weight.contiguous(memory_format=order), arranged, ours())
    assert found.is_contiguous(memory_format=order)
    expected = moved(matrix_of(weight), [matrix_of(gradient) for gradient in gradients], ours())
    torch.testing.assert_close(matrix_of(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 5), (10, 20), (8, 3, 2, 2)])
def test_two_maps_in_one_weight_move_as_two_weights(shape: tuple[int, ...]) -> None:
    weight, gradients = drawn(*shape), [drawn(*shape, seed=seed) for seed in (1, 2)]
    halves = [
        moved(weight.chunk(2)[half], [gradient.chunk(2)[half] for gradient in gradients], ours()) for half in (0, 1)
    ]
    assert torch.equal(moved(weight, gradients, ours(maps=2)), torch.cat(halves))
    assert not torch.allclose(moved(weight, gradients, ours()), torch.cat(halves), atol=1e-3)


@pytest.mark.parametrize(("before", "after"), [(2, 40), (9, 3)])
def test_what_a_mask_hides_does_not_move(before: int, after: int) -> None:
    layer = MaskedConv2d("B", before, after, 3)
    start = layer.weight.detach().clone()
    optimiser = ours(decay=0.0)(layer.weight)
    for seed in range(3):
        optimiser.zero_grad()
        layer(drawn(2, before, 6, 6, seed=seed)).square().sum().backward()
        optimiser.step()
    same = layer.weight == start
    assert torch.equal(same, (layer.mask == 0).expand_as(same))


def test_a_weight_without_a_gradient_stays() -> None:
    weights = [nn.Parameter(drawn(3, 4)) for _ in range(2)]
    optimiser = Muon([{"params": weights}], lr=RATE, weight_decay=DECAY)
    weights[0].grad = drawn(3, 4, seed=1)
    optimiser.step()
    assert torch.equal(weights[1], drawn(3, 4)) and not torch.equal(weights[0], drawn(3, 4))
    assert weights[1] not in optimiser.state
