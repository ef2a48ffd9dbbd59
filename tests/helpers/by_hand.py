"""Models whose posterior and decoder are written down, so that every number is known by hand."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vae.models.likelihood import Likelihood
from vae.models.vae import VAE, Posterior

SIDE = 4
PIXELS = SIDE * SIDE
NOISE = Likelihood("gaussian", 0.2)


class Plain(nn.Module):
    """A VAE whose `encode` and `decode` a test gives."""

    forward, density, own_prior, units, places = VAE.forward, VAE.density, VAE.own_prior, VAE.units, VAE.places
    prior = latent_map = lower = None
    image_shape = (1, SIDE, SIDE)

    def infer(self, x: Tensor) -> Posterior:
        found = self.encode(x)
        return lambda noise: found


class ByHand(Plain):
    """μ_j is a multiple of the j-th pixel, σ² is given; the decoder answers with `decoder(z)` everywhere."""

    def __init__(
        self,
        slopes: list[float],
        variances: list[float],
        decoder: Callable[[Tensor], Tensor] = lambda z: torch.full((len(z),), 0.5),
    ) -> None:
        super().__init__()
        self.latent_dim = len(slopes)
        self.slopes, self.logvar = torch.tensor(slopes), torch.tensor(variances).log()
        self.decoder = decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert not self.training
        mu = x.flatten(1)[:, : self.latent_dim] * self.slopes
        return mu, self.logvar.expand_as(mu)

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        return self.decoder(z).reshape(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)


def pictures(count: int = 60) -> np.ndarray:
    """The first pixel is black and white by turns; the rest is random."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8)
    images[0::2, 0, 0], images[1::2, 0, 0] = 0, 255
    return images
