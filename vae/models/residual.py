"""Residual networks with pre-activation (He 2016, "Identity mappings in deep residual networks").

Each width is a scale: a stride-2 convolution, then residual blocks of that width. The decoder is its mirror.

Latents are a vector, by linear layers, or a map (Rombach 2022, "High-resolution image synthesis with latent diffusion
models"), by convolutions: then the same weights encode and decode images of other sizes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vae.models.networks import Unflatten, doubling, halved_sizes, shiftable

GROUPS, CHANNELS_OF_GROUP = 32, 4  # of group norm (Wu & He 2018): 32 groups, fewer where they had under 4 channels
CHANNELS_OF_HEAD = 64


def residual(
    image_shape: tuple[int, int, int],
    latent_dim: int,
    widths: list[int],
    batch_norm: bool,
    decoded: int,
    blocks: int,
    attention: bool,
    channels: int | None = None,
) -> tuple[nn.Module, int, nn.Module]:
    """Encoder, features and decoder, as in `vae.models.networks`.

    batch_norm: instead of group norm. decoded: the decoder's output channels. blocks: of each scale. attention: after
    the blocks of the lowest scale. channels: of a map of latents; the encoder then gives a map of `features` channels,
    and the decoder takes one of `channels`.
    """
    sizes = halved_sizes(image_shape, len(widths))
    features = widths[-1] * math.prod(sizes[-1])

    def scale(level: int) -> list[nn.Module]:
        width, lowest = widths[level], level == len(widths) - 1
        attended = [SelfAttention(width, batch_norm)] if attention and lowest else []
        return [*(ResidualBlock(width, batch_norm) for _ in range(blocks)), *attended]

    down: list[nn.Module] = []
    up: list[nn.Module] = []
    above, restored = image_shape[0], decoded
    for level, width in enumerate(widths):
        down += [nn.Conv2d(above, width, 4, stride=2, padding=1), *scale(level)]
        before = [] if level else activation(width, batch_norm)
        up = [*scale(level), *before, doubling(width, restored, sizes[level]), *up]
        above = restored = width
    *norm, silu = activation(widths[-1], batch_norm)
    if channels is not None:
        # 1×1: beside the zeros around a map, no shift of latents (`standardise`) would be exact.
        return (
            nn.Sequential(*down, *norm, silu),
            widths[-1],
            nn.Sequential(nn.Conv2d(channels, widths[-1], 1), *up),
        )
    encoder = nn.Sequential(*down, *norm, nn.Flatten(), silu)  # as in `convolutional`
    first = shiftable(nn.Linear(latent_dim, features))
    return encoder, features, nn.Sequential(first, Unflatten(1, (widths[-1], *sizes[-1])), *up)


class ResidualBlock(nn.Module):
    """x + f(x), f = conv(silu(norm(conv(silu(norm(x)))))); at first f = 0.

    Attributes:
        checkpointing: the backward pass computes f again instead of keeping its parts in memory (Chen 2016, "Training
            deep nets with sublinear memory cost"). Only with group norm: a batch norm would count a batch twice.
    """

    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.checkpointing = False
        self.branch = nn.Sequential(
            *activation(width, batch_norm), nn.Conv2d(width, width, 3, padding=1, bias=False),
            *activation(width, batch_norm), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    @property
    def last(self) -> nn.Conv2d:
        last = self.branch[-1]
        assert isinstance(last, nn.Conv2d)
        return last

    def forward(self, x: Tensor) -> Tensor:
        return x + branched(self.branch, x, self.checkpointing)


def branched(branch: Callable[[Tensor], Tensor], x: Tensor, checkpointing: bool) -> Tensor:
    """branch(x), whose parts the backward pass finds in memory, or computes again."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(branch, x, use_reentrant=False)
    return branch(x)


class SelfAttention(nn.Module):
    """x + attention between all places of a map, in heads of up to 64 channels (Vaswani 2017); at first 0 is added."""

    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        fewest = math.ceil(width / CHANNELS_OF_HEAD)
        self.heads = next(heads for heads in range(fewest, width + 1) if width % heads == 0)
        self.norm = _norm(width, batch_norm)
        self.projection = nn.Conv2d(width, 3 * width, 1)  # to queries, keys and values
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) → (B, F, H, W)."""
        projected = self.projection(self.norm(x)).flatten(2).transpose(1, 2)
        query, key, value = projected.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return x + self.last(attended.permute(0, 1, 3, 2).reshape(x.shape))


def _norm(width: int, batch_norm: bool) -> nn.Module:
    if batch_norm:
        return nn.BatchNorm2d(width)
    return nn.GroupNorm(math.gcd(width, min(GROUPS, max(width // CHANNELS_OF_GROUP, 1))), width)


def activation(width: int, batch_norm: bool) -> list[nn.Module]:
    return [_norm(width, batch_norm), nn.SiLU()]
