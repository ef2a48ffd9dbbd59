"""The network of latent diffusion's first stage (Rombach 2022, after Esser 2021), as diffusers' `AutoencoderKL` has it.

Modules bear the names that diffusers gives their weights, so that a model can be written as one of its own
(`vae.diffusers`): `vae.models.vae.VAE.posterior` is its `quant_conv`, and the decoder's first layer `post_quant_conv`.

Of n widths the image is halved n − 1 times: each but the last ends in a stride-2 convolution.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

from vae.models.residual import branched

EPSILON = 1e-6
GROUPS = 32  # of every group norm, or their greatest common divisor with the widths


def groups_of(widths: list[int]) -> int:
    """One number for the whole network, as diffusers' configuration has it."""
    return math.gcd(GROUPS, *widths)


def autoencoder_kl(
    channels: int, latents: int, widths: list[int], decoded: int, blocks: int, attention: bool
) -> tuple[nn.Module, int, nn.Module]:
    """Encoder, features and decoder, as in `vae.models.networks`, of a map of latents.

    channels: of the images. latents: channels of the map; the encoder gives twice as many features. decoded: the
    decoder's output channels. blocks: of each width; the decoder has one more. attention: at the lowest scale.
    """
    groups = groups_of(widths)
    encoder = Encoder(channels, 2 * latents, widths, blocks, attention, groups)
    decoder = Decoder(latents, decoded, widths, blocks, attention, groups)
    return encoder, 2 * latents, nn.Sequential(nn.Conv2d(latents, latents, 1), decoder)


class Encoder(nn.Module):
    """Pixels in [0, 1], which it takes to [−1, 1] as diffusers' pipelines do: (B, C, H, W) → (B, features, h, w)."""

    def __init__(
        self, channels: int, features: int, widths: list[int], blocks: int, attention: bool, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        before = widths[0]
        for level, width in enumerate(widths):
            self.down_blocks.append(DownBlock(before, width, blocks, level < len(widths) - 1, groups))
            before = width
        self.mid_block = MidBlock(widths[-1], attention, groups)
        self.conv_norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(2 * x - 1)
        for block in self.down_blocks:
            h = block(h)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(h))))


class Decoder(nn.Module):
    """(B, c, h, w) → (B, decoded, H, W): the network's [−1, 1] taken to [0, 1]."""

    def __init__(
        self, latents: int, decoded: int, widths: list[int], blocks: int, attention: bool, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latents, widths[-1], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        before = widths[-1]
        for level, width in enumerate(reversed(widths)):
            self.up_blocks.append(UpBlock(before, width, blocks + 1, level < len(widths) - 1, groups))
            before = width
        self.mid_block = MidBlock(widths[-1], attention, groups)
        self.conv_norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], decoded, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return 0.5 * (self.conv_out(functional.silu(self.conv_norm_out(h))) + 1)


class DownBlock(nn.Module):
    def __init__(self, before: int, width: int, blocks: int, halves: bool, groups: int) -> None:
        super().__init__()
        self.resnets = _resnets(before, width, blocks, groups)
        self.downsamplers = nn.ModuleList([Halving(width)] if halves else [])

    def forward(self, x: Tensor) -> Tensor:
        for module in (*self.resnets, *self.downsamplers):
            x = module(x)
        return x


class UpBlock(nn.Module):
    def __init__(self, before: int, width: int, blocks: int, doubles: bool, groups: int) -> None:
        super().__init__()
        self.resnets = _resnets(before, width, blocks, groups)
        self.upsamplers = nn.ModuleList([Doubling(width)] if doubles else [])

    def forward(self, x: Tensor) -> Tensor:
        for module in (*self.resnets, *self.upsamplers):
            x = module(x)
        return x


class MidBlock(nn.Module):
    def __init__(self, width: int, attention: bool, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(width, groups)] if attention else [])
        self.resnets = _resnets(width, width, 2, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class ResnetBlock(nn.Module):
    """x + f(x), f = conv(silu(norm(conv(silu(norm(x)))))); x by a 1×1 convolution where the width changes. At first
    f = 0.

    Attributes:
        checkpointing: as of `vae.models.residual.ResidualBlock`.
    """

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.checkpointing = False
        self.norm1 = _norm(before, groups)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = _norm(width, groups)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else None

    @property
    def last(self) -> nn.Conv2d:
        return self.conv2

    def forward(self, x: Tensor) -> Tensor:
        branch = branched(self._branch, x, self.checkpointing)
        return branch + (x if self.conv_shortcut is None else self.conv_shortcut(x))

    def _branch(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        return self.conv2(functional.silu(self.norm2(h)))


class Attention(nn.Module):
    """x + attention between all places of a map, in one head; at first 0 is added.

    Its maps are 1×1 convolutions where diffusers has linear layers of the same weights.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = _norm(width, groups)
        self.to_q, self.to_k, self.to_v = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Conv2d(width, width, 1)])

    @property
    def last(self) -> nn.Conv2d:
        last = self.to_out[0]
        assert isinstance(last, nn.Conv2d)
        return last

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x)
        query, key, value = (to(h).flatten(2).transpose(1, 2)[:, None] for to in (self.to_q, self.to_k, self.to_v))
        attended = functional.scaled_dot_product_attention(query, key, value)
        return x + self.last(attended[:, 0].transpose(1, 2).reshape(x.shape))


class Halving(nn.Module):
    """A stride-2 convolution, padded at the lower and the right edge alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Doubling(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def _resnets(before: int, width: int, blocks: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResnetBlock(before if block == 0 else width, width, groups) for block in range(blocks))


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=EPSILON)
