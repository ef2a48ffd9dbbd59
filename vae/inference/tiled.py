"""Encoding and decoding of images of any size by a network with a map of latents: in tiles, so that memory is bounded.

A tile has the size of the training images and overlaps the next by a quarter. Where tiles overlap, their results are
averaged with weights that rise linearly from a tile's edge, as diffusers blends its tiles. What the network takes from
far away (group norm, attention) it then takes from the tile, as in training, not from the whole image.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vae.compute.batches import to_pixels
from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.inference.grids import as_bytes
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE

OVERLAP = 4  # one part in so many of a tile


def factor(model: VAE) -> int:
    """Pixels to the side of a latent's place.

    Raises:
        InputError: the latents are a vector, which has no places.
    """
    if model.latent_map is None:
        raise InputError(
            "this model's latents are a vector, for images of one size: train one with model.latent_shape for others"
        )
    return model.image_shape[1] // model.latent_map[1]


@torch.no_grad()
def encode(model: VAE, x: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """x: (B, C, H, W), pixels in [0, 1], of any size → mu, logvar: (B, c, ⌈H/f⌉, ⌈W/f⌉) each, f the `factor`.

    Where a side is no multiple of f, the last row or column is repeated.
    """
    f = factor(model)
    padding = (0, -x.shape[3] % f, 0, -x.shape[2] % f)
    padded = functional.pad(x, padding, mode="replicate") if any(padding) else x

    def both(tile: Tensor) -> Tensor:
        with compute.autocast():
            return torch.cat(model.encode_map(tile), 1)

    model.eval()
    return _blended(padded, both, _tile(model), f, 1).chunk(2, 1)  # type: ignore[return-value]  # two chunks


@torch.no_grad()
def decode(model: VAE, z: Tensor, likelihood: Likelihood, compute: Compute) -> Tensor:
    """The mean of p(x|z): maps (B, c, h, w) of any size → (B, C, h·f, w·f), f the `factor`."""

    def pictures(tile: Tensor) -> Tensor:
        with compute.autocast():
            return likelihood.mean(model.decode_map(tile))

    f = factor(model)
    model.eval()
    return _blended(z, pictures, _tile(model), 1, f)


def reconstruct(model: VAE, image: NDArray[np.uint8], likelihood: Likelihood, compute: Compute) -> NDArray[np.uint8]:
    """The mean of p(x|z = μ), in the size of the image: uint8 (H, W, C) → uint8 (H, W, C)."""
    mu, _ = encode(model, to_pixels(image[None], compute.device), compute)
    copy = decode(model, mu, likelihood, compute)[0, :, : image.shape[0], : image.shape[1]]
    return as_bytes(copy.permute(1, 2, 0).cpu().numpy())


def _tile(model: VAE) -> tuple[int, int]:
    """Height and width in places: those of the training images."""
    assert model.latent_map is not None
    return model.latent_map[1:]


def _blended(x: Tensor, apply: Callable[[Tensor], Tensor], tile: tuple[int, int], before: int, after: int) -> Tensor:
    """`apply` to tiles of x, (B, …, H, W), blended.

    tile: in places, which are squares of `before` pixels of x and of `after` pixels of the result.
    """
    places = [side // before for side in x.shape[2:]]
    sides = [min(one, whole) for one, whole in zip(tile, places, strict=True)]
    result: Tensor | None = None
    total = torch.zeros([places[0] * after, places[1] * after], device=x.device)
    for top, left in itertools.product(*map(starts, places, sides)):
        rows, columns = slice(top, top + sides[0]), slice(left, left + sides[1])
        found = apply(x[:, :, _scaled(rows, before), _scaled(columns, before)]).float()
        if result is None:
            result = found.new_zeros([*found.shape[:2], *total.shape])
        down, across = (_weights(part, whole, after) for part, whole in zip((rows, columns), places, strict=True))
        weights = (down[:, None] * across).to(found)
        result[:, :, _scaled(rows, after), _scaled(columns, after)] += weights * found
        total[_scaled(rows, after), _scaled(columns, after)] += weights
    assert result is not None
    return result.div_(total)


def starts(whole: int, tile: int) -> list[int]:
    """Where tiles begin, in places: a quarter of a tile less than a tile apart; the last one ends where all ends."""
    step = tile - tile // OVERLAP
    return [*range(0, whole - tile, step), whole - tile]


def _weights(part: slice, whole: int, scale: int) -> Tensor:
    """Along one axis of a tile: 1, but for a linear rise over the overlap from an edge inside of the image."""
    size = (part.stop - part.start) * scale
    place, rise = torch.arange(size) + 0.5, max((part.stop - part.start) // OVERLAP, 1) * scale
    ones = torch.ones(size)
    from_start = (place / rise).clamp_max(1) if part.start > 0 else ones
    from_stop = ((size - place) / rise).clamp_max(1) if part.stop < whole else ones
    return torch.minimum(from_start, from_stop)


def _scaled(part: slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)
