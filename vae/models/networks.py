"""Encoders and decoders of each architecture: (encoder, features, decoder).

The encoder maps (B, C, H, W) to (B, features), the decoder (B, Z) to (B, decoded, H, W).
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def convolutional(
    image_shape: tuple[int, int, int], latent_dim: int, widths: list[int], batch_norm: bool, decoded: int
) -> tuple[nn.Module, int, nn.Module]:
    """decoded: the decoder's output channels."""
    channels, *_ = image_shape
    sizes = halved_sizes(image_shape, len(widths))
    filters, mirrored = [channels, *widths], [decoded, *widths]
    features = widths[-1] * math.prod(sizes[-1])

    def normalised_silu(width: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(width), nn.SiLU()] if batch_norm else [nn.SiLU()]

    down: list[nn.Module] = []
    for before, after in itertools.pairwise(filters):
        down += [nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not batch_norm), *normalised_silu(after)]
    up: list[nn.Module] = [
        shiftable(nn.Linear(latent_dim, features, bias=not batch_norm)),
        Unflatten(1, (widths[-1], *sizes[-1])),
        *normalised_silu(widths[-1]),
    ]
    for level in range(len(widths), 0, -1):
        last = level == 1
        up.append(doubling(mirrored[level], mirrored[level - 1], sizes[level - 1], bias=last or not batch_norm))
        if not last:
            up += normalised_silu(mirrored[level - 1])
    *down, silu = down  # moved behind the change of memory order, so that its gradient has the order of its input
    return nn.Sequential(*down, nn.Flatten(), silu), features, nn.Sequential(*up)


def halved_sizes(image_shape: tuple[int, int, int], times: int) -> list[tuple[int, int]]:
    """Height and width of an image and after each halving: a 4×4 convolution of stride 2, padding 1, rounds down."""
    _, height, width = image_shape
    return [(height >> level, width >> level) for level in range(times + 1)]


def doubling(before: int, after: int, size: tuple[int, int], bias: bool = True) -> nn.ConvTranspose2d:
    """Undoes a halving; size: (height, width) of its output, whose odd row or column the halving lost."""
    odd = (size[0] % 2, size[1] % 2)
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, output_padding=odd, bias=bias)


def shiftable(first: nn.Linear) -> nn.Linear:
    """The decoder's first layer with a bias: 0 in training where batch norm follows, for `standardise` afterwards."""
    if first.bias is None:
        first.bias = nn.Parameter(torch.zeros(first.out_features), requires_grad=False)
        first.register_load_state_dict_pre_hook(_bias_of_older_models)
    return first


def _bias_of_older_models(first: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Models saved before latents were standardised lack it, which is a bias of 0."""
    assert isinstance(first, nn.Linear)
    weights.setdefault(f"{prefix}bias", torch.zeros_like(first.bias))


class Unflatten(nn.Unflatten):
    """Unflatten into channels-last memory, the order of the convolutions that follow (mixed orders are slow)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous(memory_format=torch.channels_last)


def fully_connected(
    image_shape: tuple[int, int, int], latent_dim: int, widths: list[int], batch_norm: bool, decoded: int, gated: bool
) -> tuple[nn.Module, int, nn.Module]:
    """decoded: the decoder's output channels. gated: hidden layers are `GatedLinear` instead of linear with a SiLU."""

    def hidden(units: list[int]) -> list[nn.Module]:
        return [part for before, after in itertools.pairwise(units) for part in dense(before, after, batch_norm, gated)]

    output = (decoded, *image_shape[1:])
    encoder = nn.Sequential(nn.Flatten(), *hidden([math.prod(image_shape), *widths]))
    decoder = nn.Sequential(
        *hidden([latent_dim, *reversed(widths)]), nn.Linear(widths[0], math.prod(output)), nn.Unflatten(1, output)
    )
    if isinstance(decoder[0], nn.Linear):
        shiftable(decoder[0])
    return encoder, widths[-1], decoder


def dense(before: int, after: int, batch_norm: bool, gated: bool) -> list[nn.Module]:
    """A hidden layer."""
    norm: list[nn.Module] = [nn.BatchNorm1d(after)] if batch_norm else []
    if gated:
        return [GatedLinear(before, after), *norm]
    return [nn.Linear(before, after, bias=not batch_norm), *norm, nn.SiLU()]


class GatedLinear(nn.Module):
    """h = (Wx + b) ⊙ sigmoid(Vx + c) (Dauphin 2017, section 2; Tomczak & Welling 2018 use it in VAEs)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, 2 * after)

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(self.linear(x), dim=1)
