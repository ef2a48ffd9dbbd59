"""The mutual information of images and latents, estimated on a sample."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from vae.losses.elbo import kl_per_latent

MOST_IMAGES, MOST_LATENTS = 10_000, 10_000 * 4096  # the estimate is quadratic in images; all their latents, in memory
WIDEST = 0.2  # nats between the two bounds: their mean is then within 0.1 of the expectation


@dataclass(frozen=True)
class MutualInformation:
    """I_q(x; z) = R − KL(q(z) ‖ p(z)) (Hoffman & Johnson 2016), in nats.

    No sample of n shows more than ln n of it (He 2019), and the bias begins about 4 nats below that: where the two
    bounds of `mutual_information` are more than 0.2 nats apart, `value` and `aggregate_kl` are None and
    `saturated_at` is ln n.

    R and p are those of N(0, I), also where the model has learned another prior; I itself does not depend on it.
    """

    value: float | None
    aggregate_kl: float | None
    saturated_at: float | None


def mutual_information(mu: np.ndarray, logvar: np.ndarray, seed: int) -> MutualInformation:
    """I_q = E_x E_q(z|x) [ln q(z|x) − ln q(z)], the mean of two bounds that hold in expectation over samples of n.

    With q(z_i) the mixture of all posteriors of the sample, x_i's own among them, the estimate is too low (Poole 2019,
    "On variational bounds of mutual information", equation 10 with the known conditional); with the mixture of the
    n − 1 others it is too high (equation 13). For q(z) = N(0, I), where I is known, the mean of the two is off by less
    than 0.1 nats wherever they are at most 0.2 apart, for 2 to 32 latents.

    mu, logvar: (N, Z); of more than 10,000 images, fewer of more than 4,096 latents, a seeded sample is taken.
    """
    random = np.random.default_rng(seed)
    most = min(MOST_IMAGES, MOST_LATENTS // mu.shape[1])
    if len(mu) > most:
        chosen = np.sort(random.choice(len(mu), most, replace=False))
        mu, logvar = mu[chosen], logvar[chosen]
    mu, logvar = mu.astype(np.float64), logvar.astype(np.float64)
    n, latents = mu.shape

    noise = random.standard_normal(mu.shape)
    z = mu + np.exp(0.5 * logvar) * noise
    log_normaliser = -0.5 * (latents * math.log(2 * math.pi) + logvar.sum(1))
    own = log_normaliser - 0.5 * (noise**2).sum(1)  # ln q(z_i|x_i)
    precision = np.exp(-logvar)
    constant = log_normaliser - 0.5 * (mu**2 * precision).sum(1)
    others = np.empty(n)  # ln Σ_j≠i q(z_i|x_j)
    for start in range(0, n, 1024):
        part = z[start : start + 1024]
        # ln q(z_i|x_j) with the square multiplied out, so that it is two matrix products
        all_pairs = -0.5 * part**2 @ precision.T + part @ (mu * precision).T + constant
        all_pairs[np.arange(len(part)), np.arange(start, start + len(part))] = -math.inf
        others[start : start + 1024] = np.logaddexp.reduce(all_pairs, axis=1)
    lower = float((own - np.logaddexp(others, own)).mean()) + math.log(n)
    upper = float((own - others).mean()) + math.log(max(n - 1, 1))  # infinite for a single image
    if not upper - lower <= WIDEST:
        return MutualInformation(None, None, math.log(n))
    information = 0.5 * (lower + upper)
    rate = float(kl_per_latent(torch.from_numpy(mu), torch.from_numpy(logvar)).sum(1).mean())
    return MutualInformation(information, rate - information, None)
