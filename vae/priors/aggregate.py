"""The aggregate posterior q(z) = E_x q(z|x): samples of it, and how far it is from a prior.

mu, logvar: (N, Z) each, of q(z|x), throughout.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae.priors.standard import Prior

DRAWS = 8  # of z for each image, in a bound

Posteriors = NDArray[np.float32]


def draw(mu: Posteriors, logvar: Posteriors, seed: int) -> NDArray[np.float64]:
    """One z ~ q(z|x) of each image: (N, Z)."""
    noise = np.random.default_rng(seed).standard_normal(mu.shape)
    return mu.astype(np.float64) + np.exp(0.5 * logvar.astype(np.float64)) * noise


def rate(mu: Posteriors, logvar: Posteriors, prior: Prior, seed: int) -> float:
    """E_x KL(q(z|x) ‖ p(z)) in nats per image, with one sample of z an image."""
    z, logvar = draw(mu, logvar, seed), logvar.astype(np.float64)
    own = -0.5 * (np.log(2 * np.pi) + logvar + (z - mu) ** 2 / np.exp(logvar)).sum(1)
    return float((own - prior.log_prob(torch.from_numpy(z)).numpy()).mean())


@dataclass(frozen=True)
class LowerBound:
    """In nats, with the standard error that the number of images leaves: NaN of a single image."""

    value: float
    standard_error: float


def kl_to_prior(mu: Posteriors, logvar: Posteriors, prior: Prior, fitted: Prior, seed: int) -> LowerBound:
    """A lower bound on KL(q(z) ‖ p), in nats, from any density r fitted to other images' latents.

    KL(q ‖ p) = E_q[ln r − ln p] + KL(q ‖ r), and the last term is not negative. The rate against p holds this much that
    no image needs (R = I(x; z) + KL(q(z) ‖ p), Hoffman & Johnson 2016), and about a share exp(−KL) of p lies where q(z)
    has its mass.

    prior: p, that of the ELBO. fitted: r.
    """
    differences = np.zeros(len(mu))
    for number in range(DRAWS):
        z = torch.from_numpy(draw(mu, logvar, seed + number))
        differences += (fitted.log_prob(z) - prior.log_prob(z)).numpy() / DRAWS
    error = math.sqrt(differences.var() / (len(mu) - 1)) if len(mu) > 1 else math.nan
    return LowerBound(float(differences.mean()), error)
