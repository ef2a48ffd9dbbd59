"""Maximum mean discrepancy between samples of q(z) and of the prior: one number without a unit."""

import numpy as np
import torch
from numpy.typing import NDArray

from vae.priors.standard import Prior

IMAGES, LATENTS = 10_000, 10_000 * 4096  # the estimate is quadratic in images; all their latents, in memory
BLOCK = 256  # rows and columns of a kernel matrix at a time: it stays in the cache
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Points = NDArray[np.float64]


def mmd_to_prior(
    mu: NDArray[np.float32], logvar: NDArray[np.float32], seed: int, prior: Prior | None = None
) -> float | None:
    """Unbiased MMD² between z ~ q(z), one per image, and as many samples of the prior; None for fewer than 2 images.

    If q(z) is the prior it is around 0, and as often below as above (Tolstikhin 2018 train with it).

    prior: fitted after training; None is N(0, I).
    mu, logvar: (N, Z), finite; of more than 10,000 images, fewer of more than 4,096 latents, a seeded sample is taken.
    """
    if len(mu) < 2:
        return None
    random = np.random.default_rng(seed)
    most = min(IMAGES, LATENTS // mu.shape[1])
    if len(mu) > most:
        chosen = np.sort(random.choice(len(mu), most, replace=False))
        mu, logvar = mu[chosen], logvar[chosen]
    mu, logvar = mu.astype(np.float64), logvar.astype(np.float64)
    z = mu + np.exp(0.5 * logvar) * random.standard_normal(mu.shape)
    if prior is None:
        return mmd2(z, random.standard_normal(mu.shape))
    drawn = prior.sample(len(z), torch.Generator().manual_seed(seed))
    return mmd2(z, drawn.double().numpy())


def mmd2(x: Points, y: Points) -> float:
    """E k(x, x') + E k(y, y') − 2 E k(x, y), without the diagonals (Gretton 2012, equation 3).

    x: (N, Z), y: (M, Z), at least 2 points each. No matrix is larger than a block.
    """
    within = sum((_sum_of_pairs(points) / (len(points) * (len(points) - 1)) for points in (x, y)), 0.0)
    return within - 2 * _sum_across(x, y) / (len(x) * len(y))


def kernel(x: Points, y: Points) -> Points:
    """k(x, y) = Σ_s C_s / (C_s + ‖x − y‖²), C_s = 2Z·s, seven scales s from 0.1 to 10: (N, M), each from 0 to 7.

    Inverse multiquadratics as WAE has them (Tolstikhin 2018). Two draws of N(0, I) are 2Z apart in mean
    square, so the kernel is as sharp at 2 latents as at 256. Its heavy tails still distinguish a q(z) far from
    the prior from one farther away, where a Gaussian kernel is 0 for both.
    """
    distance = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    np.maximum(distance, 0, out=distance)
    total = np.zeros_like(distance)
    for scale in SCALES:
        c = 2 * x.shape[1] * scale
        total += c / (c + distance)
    return total


def _sum_of_pairs(x: Points) -> float:
    """Σ_{i≠j} k(x_i, x_j): twice the blocks above the diagonal, and those on it without their own diagonal."""
    total = 0.0
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        total += float(kernel(rows, rows).sum()) - len(SCALES) * len(rows)
        total += 2 * _sum_across(rows, x[start + BLOCK :])
    return total


def _sum_across(x: Points, y: Points) -> float:
    return sum(
        float(kernel(x[row : row + BLOCK], y[column : column + BLOCK]).sum())
        for row in range(0, len(x), BLOCK)
        for column in range(0, len(y), BLOCK)
    )
