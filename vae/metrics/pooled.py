"""A map of latents as a few features, for classifiers and pictures whose cost grows with the number of latents."""

import math

import numpy as np
from numpy.typing import NDArray

MOST = 1024  # numbers of an image


def pooled(z: NDArray[np.floating], latent_map: tuple[int, int, int] | None) -> NDArray[np.floating]:
    """Means over squares of places, as small as give at most 1,024 numbers: (N, Z) → (N, F); a vector stays as it is.

    The means of independent standard normal numbers are scaled to a variance of 1, so that those of N(0, I) are
    N(0, I) again. Places beyond the last whole square are left out.

    latent_map: (c, h, w), whose Z latents these are, flattened; None of a vector.
    """
    if latent_map is None:
        return z
    c, h, w = latent_map
    side = next(k for k in range(1, max(h, w) + 1) if c * max(h // k, 1) * max(w // k, 1) <= MOST or k == max(h, w))
    down, right = min(side, h), min(side, w)
    whole = z.reshape(-1, c, h, w)[:, :, : h // down * down, : w // right * right]
    squares = whole.reshape(len(z), c, h // down, down, w // right, right)
    return (squares.mean((3, 5)) * math.sqrt(down * right)).reshape(len(z), -1)
