"""The mutual information of images and latents, estimated on a sample."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from vae.losses.elbo import kl_per_latent

MOST_IMAGES = 10_000  # the estimate is quadratic in time


@dataclass(frozen=True)
class MutualInformation:
    """I_q(x; z) = R − KL(q(z) ‖ p(z)) (Hoffman & Johnson 2016).

    The estimate cannot exceed ln n of its sample (He 2019): where R comes within 2 nats of that, `value` and
    `aggregate_kl` are None and `saturated_at` is ln n.

    R and p are those of N(0, I), also where the model has learned another prior; I itself does not depend on it.
    """

    value: float | None
    aggregate_kl: float | None
    saturated_at: float | None


def mutual_information(mu: np.ndarray, logvar: np.ndarray, seed: int) -> MutualInformation:
    """I_q = E_x E_q(z|x) [ln q(z|x) − ln q(z)], q(z) the mixture over the sample's own posteriors.

    mu, logvar: (N, Z); of more than 10,000 images a seeded sample is taken.
    """
    random = np.random.default_rng(seed)
    if len(mu) > MOST_IMAGES:
        chosen = np.sort(random.choice(len(mu), MOST_IMAGES, replace=False))
        mu, logvar = mu[chosen], logvar[chosen]
    mu, logvar = mu.astype(np.float64), logvar.astype(np.float64)
    n, latents = mu.shape
    rate = float(kl_per_latent(torch.from_numpy(mu), torch.from_numpy(logvar)).sum(1).mean())
    if rate >= math.log(n) - 2:
        return MutualInformation(None, None, math.log(n))

    noise = random.standard_normal(mu.shape)
    z = mu + np.exp(0.5 * logvar) * noise
    log_normaliser = -0.5 * (latents * math.log(2 * math.pi) + logvar.sum(1))
    own = log_normaliser - 0.5 * (noise**2).sum(1)  # ln q(z_i|x_i)
    precision = np.exp(-logvar)
    constant = log_normaliser - 0.5 * (mu**2 * precision).sum(1)
    total = 0.0
    for start in range(0, n, 1024):
        part = z[start : start + 1024]
        # ln q(z_i|x_j) with the square multiplied out, so that it is two matrix products
        all_pairs = -0.5 * part**2 @ precision.T + part @ (mu * precision).T + constant
        total += float((own[start : start + 1024] - np.logaddexp.reduce(all_pairs, axis=1)).sum())
    information = total / n + math.log(n)
    return MutualInformation(information, rate - information, None)
