"""The convolution that halves an image (4×4, stride 2, padding 1) and its mirror, which doubles it.

They are PyTorch's layers. In bf16 on a CPU, where oneDNN computes them, three parts are far from the machine's rate;
there the same sums are taken in another way (docs/benchmarks.md has what that gave):

- the gradient of the weights where the halved map is small: the product of two matrices, patches and gradients;
- a transposed convolution to few channels, an image's: a convolution of stride 1 that gives the four pixels of each
  2×2 block as channels, which are then put side by side (Shi 2016, "sub-pixel convolution");
- a transposed convolution's bias: added, and its gradient summed, apart.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALL = 36  # positions of the halved map, up to which the product of matrices is the faster
FEW = 4  # channels
STRIDE, PADDING = 2, 1


class Halving(nn.Conv2d):
    """(B, C, H, W) → (B, C', ⌊H/2⌋, ⌊W/2⌋)."""

    def __init__(self, before: int, after: int, bias: bool = True) -> None:
        super().__init__(before, after, 4, STRIDE, PADDING, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not _is_bf16_on_cpu(x) or not _is_small(x.shape[-2] // 2, x.shape[-1] // 2):
            return super().forward(x)
        return _Halved.apply(*_in_bf16(x, self.weight, self.bias))


class Doubling(nn.ConvTranspose2d):
    """(B, C', h, w) → (B, C, 2h, 2w), and a row or a column more where `odd` says 1."""

    def __init__(self, before: int, after: int, odd: tuple[int, int] = (0, 0), bias: bool = True) -> None:
        super().__init__(before, after, 4, STRIDE, PADDING, output_padding=odd, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not _is_bf16_on_cpu(x) or output_size is not None:
            return super().forward(x, output_size)
        return _Doubled.apply(*_in_bf16(x, self.weight, self.bias), self.output_padding)


def _is_small(height: int, width: int) -> bool:
    return height * width <= SMALL


def _is_bf16_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _in_bf16(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.bfloat16() for tensor in tensors]


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, bias, STRIDE, PADDING)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return _gradients(ctx, gradient)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, odd: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.odd = odd
        if weight.shape[1] <= FEW:
            output = _in_blocks(x, weight, odd)
        else:
            output = functional.conv_transpose2d(x, weight, None, STRIDE, PADDING, odd)
        return output if bias is None else output.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return *_gradients(ctx, gradient, ctx.odd), None


def _in_blocks(x: Tensor, weight: Tensor, odd: tuple[int, int]) -> Tensor:
    """The transposed convolution of x: (B, C', h, w) by weight: (C', C, 4, 4), a block of 2×2 pixels at a time.

    With a border of one, y[2i + r] = Σₐ x[i − a]·w[2a + r], and likewise across; r: the place in the block, a: the tap.
    """
    (images, before, height, width), after = x.shape, weight.shape[1]
    taps = weight.view(before, after, 2, 2, 2, 2).flip(2, 4)  # C', C, a, r, a, r
    kernel = taps.permute(3, 5, 1, 0, 2, 4).reshape(4 * after, before, 2, 2)
    y = functional.conv2d(x, kernel.contiguous(memory_format=torch.channels_last), padding=1)
    y = y.permute(0, 2, 3, 1).reshape(images, height + 1, width + 1, 2, 2, after).transpose(2, 3)
    y = y.reshape(images, 2 * height + 2, 2 * width + 2, after).permute(0, 3, 1, 2)
    y = y[:, :, 1 : 2 * height + odd[0] + 1, 1 : 2 * width + odd[1] + 1]
    return y.contiguous(memory_format=torch.channels_last)


def _gradients(ctx: Any, gradient: Tensor, odd: tuple[int, int] | None = None) -> tuple[Tensor | None, ...]:
    """Of x, of the weights, of the bias; odd: of a transposed convolution."""
    (x, weight), (of_x, of_weight, of_bias, *_) = ctx.saved_tensors, ctx.needs_input_grad
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    large, small = (x, gradient) if odd is None else (gradient, x)
    is_small = _is_small(*small.shape[2:])
    wanted = [of_x, of_weight and not is_small, False]
    x_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        [STRIDE] * 2,
        [PADDING] * 2,
        [1, 1],
        odd is not None,
        odd or (0, 0),
        1,
        wanted,
    )
    if of_weight and is_small:
        weight_gradient = _patches(large, small.shape[2:]).T @ small.permute(0, 2, 3, 1).flatten(0, 2)
        weight_gradient = weight_gradient.view(4, 4, large.shape[1], small.shape[1]).permute(3, 2, 0, 1)
    return x_gradient, weight_gradient, gradient.sum((0, 2, 3)) if of_bias else None


def _patches(large: Tensor, positions: torch.Size) -> Tensor:
    """What the kernel sees at each position: (B, C, H, W) → (B·h·w, 16·C)."""
    padded = functional.pad(large, (PADDING,) * 4).permute(0, 2, 3, 1).contiguous()
    images, _, _, channels = padded.shape
    image, row, column, _ = padded.stride()
    rows = padded.as_strided(
        (images, *positions, 4, 4 * channels), (image, STRIDE * row, STRIDE * column, row, 1)
    )
    return rows.reshape(-1, 16 * channels)
