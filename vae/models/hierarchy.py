"""Two levels of latents: z₂, then z₁ given z₂, in coordinates in which the prior is N(0, I).

    p(z₂) = N(0, I)          p(z₁|z₂) = N(μ_p(z₂), σ_p²(z₂))          z₁ = μ_p(z₂) + σ_p(z₂)·u,  u ~ N(0, I)
    q(z₂|x) = N(μ₂, σ₂²)     q(u|x, z₂) = N(μ_u, σ_u²)

The flat z = [z₂ | u] has the prior N(0, I), so that all that draws, decodes or moves along z works as with one level.
The KL does not change with the coordinates, KL(q(z₁|x, z₂) ‖ p(z₁|z₂)) = KL(q(u|x, z₂) ‖ N(0, I)), and q(u|x, z₂) is
the posterior relative to the prior of Vahdat & Kautz 2020 (NVAE, section 3.2). Only this is new: μ_u and σ_u follow a
sample of z₂.

`hvae`: the lower posterior has an encoder of its own (Tomczak & Welling 2018, "VAE with a VampPrior", section 4).
`ladder`: it joins the encoder's map of one scale with the decoder's (Sønderby 2016, "Ladder variational
autoencoders"); z₁ is a map of that scale.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae.models.networks import Unflatten, convolutional, dense, fully_connected, halved_sizes
from vae.models.residual import ResidualBlock, activation, residual

HIDDEN = 256  # units of the layers between z₂ and z₁ of a convolutional network


class Hierarchy(NamedTuple):
    """The networks of a VAE of two levels.

    Attributes:
        encoder: x → (features for q(z₂|x), features for q(u|x, z₂)).
        features: how many of the former.
        lower: q(u|x, z₂).
        decoder: [z₂ | u] → output.
    """

    encoder: nn.Module
    features: int
    lower: "LowerPosterior"
    decoder: "TopDown"


class Apart(nn.Module):
    """x → (above(x), beside(x)): two encoders."""

    def __init__(self, above: nn.Module, beside: nn.Module) -> None:
        super().__init__()
        self.above, self.beside = above, beside

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.above(x), self.beside(x)


class Shared(nn.Module):
    """x → (above(h), h), h = first(x): one encoder, of which the lower level takes a map on the way."""

    def __init__(self, first: nn.Module, above: nn.Module) -> None:
        super().__init__()
        self.first, self.above = first, above

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(x)
        return self.above(h), h


class LowerPosterior(nn.Module):
    """q(u|x, z₂): the features of x, and the context of z₂, joined.

    Attributes:
        last: gives μ_u and ln σ_u².
    """

    def __init__(self, of_context: nn.Module, joined: nn.Module, last: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.of_context, self.joined, self.last = of_context, joined, last

    def forward(self, features: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of B images → μ_u, ln σ_u²: (B, Z₁) each, float32."""
        together = torch.cat([features, self.of_context(context)], 1)
        mu, logvar = self.last(self.joined(together)).float().chunk(2, 1)
        return mu.flatten(1), logvar.flatten(1)


class TopDown(nn.Module):
    """[z₂ | u] → z₁ = μ_p(z₂) + σ_p(z₂)·u → p(x|z₁, z₂)'s output.

    Attributes:
        context: of z₂, for both levels.
        prior: the context → μ_p, ln σ_p².
    """

    def __init__(
        self,
        top: int,
        lower_shape: tuple[int, ...],
        context: nn.Module,
        prior: nn.Sequential,
        of_lower: nn.Module,
        of_context: nn.Module,
        output: nn.Module,
    ) -> None:
        super().__init__()
        self.top, self.lower_shape = top, lower_shape
        self.context, self.prior = context, prior
        self.of_lower, self.of_context, self.output = of_lower, of_context, output

    @property
    def last_of_prior(self) -> nn.Linear | nn.Conv2d:
        """Gives μ_p and ln σ_p²."""
        last = self.prior[-1]
        assert isinstance(last, nn.Linear | nn.Conv2d)
        return last

    def lower_prior(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """μ_p, ln σ_p²: (B, Z₁) each, float32; the latter within ±10."""
        mu, logvar = self.prior(context).float().chunk(2, 1)
        return mu.flatten(1), logvar.flatten(1).clamp(-10.0, 10.0)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, Z₂ + Z₁) → (B, outputs, H, W). context: of z₂, where it is there already."""
        if context is None:
            context = self.context(z[:, : self.top])
        mu, logvar = self.lower_prior(context)
        z1 = (mu + torch.exp(0.5 * logvar) * z[:, self.top :]).unflatten(1, self.lower_shape)
        return self.output(torch.cat([self.of_lower(z1), self.of_context(context)], 1))


def two_levels(
    image_shape: tuple[int, int, int],
    architecture: str,
    latent_dim: int,
    lower_latents: int | tuple[int, int, int],
    widths: list[int],
    batch_norm: bool,
    decoded: int,
    blocks: int,
    attention: bool,
) -> Hierarchy:
    """`hvae` for a number of lower latents, `ladder` for the shape of a map; latent_dim counts both levels."""
    if isinstance(lower_latents, int):
        top, rest = latent_dim - lower_latents, (widths, batch_norm, decoded, blocks, attention)
        return hvae(image_shape, architecture, top, lower_latents, *rest)
    top = latent_dim - math.prod(lower_latents)
    return ladder(image_shape, top, lower_latents, widths, batch_norm, decoded, blocks, attention)


def hvae(
    image_shape: tuple[int, int, int],
    architecture: str,
    top: int,
    lower: int,
    widths: list[int],
    batch_norm: bool,
    decoded: int,
    blocks: int,
    attention: bool,
) -> Hierarchy:
    """Two vectors of latents, of Z₂ = top and Z₁ = lower. Where layers of x and of z₂ meet, their features are joined.

    Of an MLP the layer before the last is the joined one: as many layers from x to z₂, and from x to z₁.
    """

    def pair(latents: int, widths: list[int]) -> tuple[nn.Module, int, nn.Module]:
        """Encoder, features and decoder of a VAE of one level."""
        if architecture == "conv":
            return convolutional(image_shape, latents, widths, batch_norm, decoded)
        if architecture == "residual":
            return residual(image_shape, latents, widths, batch_norm, decoded, blocks, attention)
        return fully_connected(image_shape, latents, widths, batch_norm, decoded, gated)

    def layer(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(*dense(before, after, batch_norm, gated))

    gated, is_mlp = architecture == "gated_mlp", "mlp" in architecture
    hidden = widths[-1] if is_mlp else HIDDEN
    above, features, _ = pair(1, widths)
    beside, found, output = pair(2 * hidden, (widths[:-1] or widths) if is_mlp else widths)
    return Hierarchy(
        Apart(above, beside),
        features,
        LowerPosterior(layer(top, hidden), layer(found + hidden, hidden), nn.Linear(hidden, 2 * lower)),
        TopDown(
            top,
            (lower,),
            context=nn.Identity(),
            prior=nn.Sequential(layer(top, hidden), layer(hidden, hidden), nn.Linear(hidden, 2 * lower)),
            of_lower=layer(lower, hidden),
            of_context=layer(top, hidden),
            output=output,
        ),
    )


def ladder(
    image_shape: tuple[int, int, int],
    top: int,
    lower_shape: tuple[int, int, int],
    widths: list[int],
    batch_norm: bool,
    decoded: int,
    blocks: int,
    attention: bool,
) -> Hierarchy:
    """A vector z₂ and a map z₁, (h, w, c), of the scale of a residual network that has h×w places."""
    sizes = halved_sizes(image_shape, len(widths))
    level = sizes.index(lower_shape[:2])
    width, channels, places = widths[level - 1], lower_shape[2], math.prod(sizes[-1])

    def several(width: int) -> list[nn.Module]:
        return [ResidualBlock(width, batch_norm) for _ in range(blocks)]

    # The flat network below the map, whose "latents" are the joined features; and above it, whose "image" they are.
    first, _, output = residual(
        image_shape, 1, widths[:level], batch_norm, decoded, blocks, attention and level == len(widths),
        channels=2 * width,
    )  # fmt: skip
    if level == len(widths):
        above: nn.Module = nn.Flatten()
        context: list[nn.Module] = [nn.Linear(top, width * places), Unflatten(1, (width, *sizes[-1]))]
    else:
        above, _, down = residual(
            (width, *sizes[level]), top, widths[level:], batch_norm, width, blocks, attention
        )  # fmt: skip
        context = [down]
    return Hierarchy(
        Shared(first, above),
        widths[-1] * places,
        LowerPosterior(
            nn.Identity(),
            nn.Sequential(nn.Conv2d(2 * width, width, 1), *several(width), *activation(width, batch_norm)),
            nn.Conv2d(width, 2 * channels, 3, padding=1),
        ),
        TopDown(
            top,
            (channels, *lower_shape[:2]),
            context=nn.Sequential(*context),
            prior=nn.Sequential(*activation(width, batch_norm), nn.Conv2d(width, 2 * channels, 3, padding=1)),
            of_lower=nn.Conv2d(channels, width, 1),
            of_context=nn.Identity(),
            output=output,
        ),
    )
