"""Tiles: exact where the network looks no further than a place, and away from seams; any size; bounded memory."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import CPU
from torch import nn
from torch.nn import functional

from vae.config.errors import InputError
from vae.inference import tiled
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE

NOISE = Likelihood("gaussian", 0.2)
SIZES = [(16, 16), (16, 40), (48, 32), (40, 44), (8, 64), (52, 20)]


def network(places: int = 4, attention: bool = False) -> VAE:
    torch.manual_seed(0)
    shape, latents = (3, 4 * places, 4 * places), (places, places, 3)
    made = VAE(shape, "residual", 3 * places**2, [6, 8], True, attention=attention, latent_shape=latents).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return made


class Local(nn.Module):
    """A place's mean is its latent, and the picture of a latent is a square of it: no neighbour matters."""

    image_shape, latent_map = (3, 16, 16), (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def encode_map(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.largest = max(self.largest, x[0, 0].numel())
        return functional.avg_pool2d(x, 4), functional.max_pool2d(x, 4)

    def decode_map(self, z: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(z, scale_factor=4, mode="nearest")


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_a_network_that_looks_at_single_places_are_exact(size: tuple[int, int]) -> None:
    model: Any = Local()
    x = torch.rand(2, 3, *size)
    mu, logvar = tiled.encode(model, x, CPU)
    torch.testing.assert_close(mu, functional.avg_pool2d(x, 4))
    torch.testing.assert_close(logvar, functional.max_pool2d(x, 4))
    whole = functional.interpolate(mu, scale_factor=4, mode="nearest")
    torch.testing.assert_close(tiled.decode(model, mu, NOISE, CPU), whole)
    assert model.largest <= 16 * 16, "no more than a tile at a time"


@torch.no_grad()
def test_the_larger_the_tiles_the_nearer_the_whole() -> None:
    """The same weights with tiles of 4, 8 and 16 places; of noise, whose neighbours say nothing."""
    z, x = torch.randn(1, 3, 24, 20), torch.rand(1, 3, 96, 80)
    apart = []
    for places in (4, 8, 16, 32):
        model = network(places)
        whole, copy = model.encode_map(x)[0], model.decode_map(z)
        pairs = ((tiled.encode(model, x, CPU)[0], whole), (tiled.decode(model, z, NOISE, CPU), copy))
        assert all(part.shape == all_of_it.shape for part, all_of_it in pairs)
        apart.append([float((part - one).square().mean() / one.var()) for part, one in pairs])
    for errors in zip(*apart, strict=True):
        assert errors[0] > errors[1] > errors[2] > errors[3] == 0 and errors[2] < 0.02


@torch.no_grad()
def test_a_tile_that_is_large_beside_what_the_network_sees_is_exact_in_its_middle() -> None:
    large = VAE((3, 128, 128), "residual", 3072, [6, 8], True, latent_shape=(32, 32, 3)).eval()
    x = torch.rand(1, 3, 128, 224)  # tiles from 0, and from 96 pixels
    mu, _ = tiled.encode(large, x, CPU)
    whole, _ = large.encode_map(x)
    assert tiled.starts(56, 32) == [0, 24]
    torch.testing.assert_close(mu[..., :24], whole[..., :24])
    torch.testing.assert_close(mu[..., 32:], whole[..., 32:])
    assert not torch.equal(mu[..., 24:32], whole[..., 24:32])


@pytest.mark.parametrize(("whole", "tile"), [(4, 4), (5, 4), (9, 4), (100, 32), (33, 32), (7, 1), (3, 2)])
def test_tiles_cover_everything_and_overlap(whole: int, tile: int) -> None:
    found = tiled.starts(whole, tile)
    assert found[0] == 0 and found[-1] == whole - tile and found == sorted(set(found))
    assert all(after - before <= tile - tile // 4 for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("size", [(17, 16), (21, 50), (3, 5)])
def test_odd_sizes_are_filled_up_with_their_edge_and_cut_off_again(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    model = network(attention=True)
    assert tiled.reconstruct(model, image, NOISE, CPU).shape == image.shape
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    mu, _ = tiled.encode(model, x, CPU)
    assert mu.shape == (1, 3, -(-size[0] // 4), -(-size[1] // 4))
    local: Any = Local()
    edge = tiled.encode(local, x, CPU)[1][0, :, -1, -1]
    rest = image[(size[0] - 1) // 4 * 4 :, (size[1] - 1) // 4 * 4 :].reshape(-1, 3).max(0) / 255
    np.testing.assert_allclose(edge, rest, rtol=1e-6)


def test_a_vector_of_latents_is_refused() -> None:
    model = VAE((3, 16, 16), "conv", 4, [6, 8], True)
    with pytest.raises(InputError, match=r"model\.latent_shape"):
        tiled.encode(model, torch.rand(1, 3, 32, 32), CPU)
