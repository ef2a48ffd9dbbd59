"""The two convolutions are PyTorch's, whichever way their sums are taken."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vae.compute.batches import to_pixels
from vae.models.convolution import Doubling, Halving, _Doubled, _gradients, _Halved
from vae.models.vae import VAE, to_device

CHANNELS = [(1, 6), (3, 5), (6, 8)]
# The halved map has 36 positions, fewer, or more.
SIDES = [(2, 3), (8, 8), (13, 7), (12, 13), (14, 16), (16, 19)]
every_case = pytest.mark.parametrize(
    ("few", "many", "size", "bias"),
    [(*channels, size, bias) for channels in CHANNELS for size in SIDES for bias in (True, False)],
)


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)
    return (
        tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
    ).requires_grad_()


def gradients(output: Tensor, of: list[Tensor]) -> list[Tensor]:
    return [output, *torch.autograd.grad(output, of, output.detach().cos().to(output.dtype))]


@every_case
def test_they_are_the_stock_layers_in_exact_arithmetic(
    few: int, many: int, size: tuple[int, int], bias: bool
) -> None:
    odd = (size[0] % 2, size[1] % 2)
    weight = drawn(many, few, 4, 4)
    large, small = drawn(2, few, *size), drawn(2, many, size[0] // 2, size[1] // 2)
    for x, units, ours, stock in (
        (large, many, _Halved.apply, lambda x, w, b: nn.functional.conv2d(x, w, b, 2, 1)),
        (
            small,
            few,
            lambda x, w, b: _Doubled.apply(x, w, b, odd),
            lambda x, w, b: nn.functional.conv_transpose2d(x, w, b, 2, 1, odd),
        ),
    ):
        added = drawn(units) if bias else None
        of = [x, weight] if added is None else [x, weight, added]
        found = zip(
            gradients(ours(x, weight, added), of), gradients(stock(x, weight, added), of), strict=True
        )
        for mine, theirs in found:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@every_case
def test_layers_in_bf16_are_the_stock_layers_but_for_rounding(
    few: int, many: int, size: tuple[int, int], bias: bool
) -> None:
    odd = (size[0] % 2, size[1] % 2)
    pairs: list[tuple[nn.Module, nn.Module, Tensor]] = [
        (
            Halving(few, many, bias),
            nn.Conv2d(few, many, 4, 2, 1, bias=bias),
            drawn(2, few, *size, dtype=torch.float32),
        ),
        (
            Doubling(many, few, odd, bias),
            nn.ConvTranspose2d(many, few, 4, 2, 1, odd, bias=bias),
            drawn(2, many, size[0] // 2, size[1] // 2, dtype=torch.float32),
        ),
    ]
    for ours, stock, x in pairs:
        stock.load_state_dict(ours.state_dict())
        assert torch.equal(ours(x), stock(x)), "in float32 it is the stock layer, to the bit"
        with torch.autocast("cpu", dtype=torch.float16):
            assert torch.equal(ours(x), stock(x)), "in float16 likewise"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, expected = ours(x), stock(x)
        assert output.dtype == torch.bfloat16
        found = gradients(output.float(), [x, *ours.parameters()])
        wanted = gradients(expected.float(), [x, *stock.parameters()])
        for mine, theirs in zip(found, wanted, strict=True):
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            assert (mine - theirs).abs().max() <= 0.02 * theirs.abs().max()


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("side", [4, 8])
def test_only_what_is_asked_for_is_differentiated(
    frozen: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[Tensor | None, ...]] = []

    def noted(*arguments: Any) -> tuple[Tensor | None, ...]:
        computed.append(_gradients(*arguments))
        return computed[-1]

    monkeypatch.setattr("vae.models.convolution._gradients", noted)
    large, small = drawn(2, 3, 2 * side, 2 * side), drawn(2, 5, side, side)
    for function, x, units in ((_Halved, large, 5), (_Doubled, small, 3)):
        of = [x.detach().requires_grad_(), drawn(5, 3, 4, 4), drawn(units)]
        of[frozen].requires_grad_(False)
        function.apply(*of, *([(0, 0)] if function is _Doubled else [])).sum().backward()
        assert [gradient is None for gradient in computed[-1]] == [index == frozen for index in range(3)]
    assert len(computed) == 2


class Orders(TorchDispatchMode):
    """Counts the gradients of SiLU whose two arguments lie differently in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.same = self.different = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.silu_backward.default:
            gradient, x = arguments
            if gradient.stride() == x.stride():
                self.same += 1
            else:
                self.different += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("batch_norm", "precision", "channels"),
    list(itertools.product([True, False], [torch.bfloat16, torch.float32], [1, 3])),
)
def test_no_gradient_meets_its_activation_in_another_memory_order(
    batch_norm: bool, precision: torch.dtype, channels: int
) -> None:
    """That costs as much as a small convolution."""
    model = to_device(VAE((channels, 32, 32), "conv", 4, [8, 12, 16], batch_norm), torch.device("cpu"))
    x = to_pixels(np.zeros((4, 32, 32, channels), np.uint8), torch.device("cpu"))
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        output, mu, logvar = model(x, torch.randn(4, 4))
    with Orders() as orders:
        ((output - x).square().mean() + mu.mean() + logvar.mean()).backward()
    assert (orders.same, orders.different) == (6, 0)
