"""A model that encodes images far from N(0, I), and its images."""

import numpy as np
import torch
from helpers.by_hand import SIDE, Plain
from torch import Tensor

FAR = 6.0  # where images are encoded


class Far(Plain):
    """Two latents: the first two pixels, moved to (6, 6). Elsewhere the decoder's pictures are black and white."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim, self.decoder = 2, None
        self.asked: list[int] = []

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = FAR + 8 * (x[:, 0, 0, :2] - 0.5)
        return mu, torch.full_like(mu, -6.0)

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        self.asked.append(len(z))
        near = (z - FAR).abs().amax(1, keepdim=True) < 4
        greys = torch.where(near, (z - FAR) / 8 + 0.5, (z > 0).float())
        return greys.repeat(1, SIDE * SIDE // 2).reshape(-1, 1, SIDE, SIDE)


def images(count: int, seed: int) -> np.ndarray:
    """Of two greys, neither black nor white, by turns from column to column: uint8 (count, 4, 4, 1)."""
    greys = np.random.default_rng(seed).integers(64, 192, (count, 1, 2, 1), dtype=np.uint8)
    return np.broadcast_to(np.tile(greys, (1, 1, SIDE // 2, 1)), (count, SIDE, SIDE, 1)).copy()
