"""The importance-weighted bound on ln p(x) (Burda 2016)."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.compute.devices import Compute
from vae.compute.random import generator
from vae.losses.elbo import sampled_rate
from vae.metrics.measurement import BATCH, evaluation_batches, evaluation_density
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE


@torch.no_grad()
def importance_weighted_bound(
    model: VAE,
    images: NDArray[np.uint8] | Tensor,
    likelihood: Likelihood,
    compute: Compute,
    samples: int,
    seed: int,
    active: NDArray[np.bool_] | None = None,
) -> float:
    """L_k = E ln (1/k) Σ_i p(x, z_i)/q(z_i|x), z_i ~ q(z|x) (Burda 2016, equation 8), averaged over images.

    It is at least the ELBO, at most ln p(x), and grows with k in expectation. The k terms of a batch are
    summed one after another, in float64, so that memory does not grow with k. The noise follows the seed.

    images: uint8 (N, H, W, C). samples: k. active: (units,), or None for all; the other latents are set to their
    prior mean 0 and left out of the weights, which gives the bound of the model without them; for N(0, I) only.
    """
    kept = torch.ones(model.latent_dim, device=compute.device)
    if active is not None:
        kept = torch.from_numpy(active).to(kept).repeat_interleave(model.places)
    total, prior = 0.0, evaluation_density(model, compute)
    assert active is None or prior is None, "a learned prior has no latents to leave out"
    for index, x in enumerate(evaluation_batches(model, images, compute.device)):
        random = generator(seed, "importance", index, compute.device)
        with compute.autocast():
            posterior = model.infer(x)
        log_sum = torch.full((len(x),), -math.inf, dtype=torch.float64, device=compute.device)
        for _ in range(samples):
            noise = kept * torch.randn(len(x), model.latent_dim, generator=random, device=compute.device)
            with compute.autocast():
                # μ = 0, ln σ² = 0 and ε = 0 make z 0 and its term of the log ratio 0
                mu, logvar = (kept * part for part in posterior(noise))
                z = mu + torch.exp(0.5 * logvar) * noise
                output = model.decode(z, x)
            if prior is None:  # ln p(z) − ln q(z|x): the normalisers cancel but for ln σ
                log_ratio = 0.5 * (noise.double().square() + logvar.double() - z.double().square()).sum(1)
            else:
                log_ratio = -sampled_rate(prior, mu, logvar, noise).double()
            log_sum = torch.logaddexp(log_sum, likelihood.log_prob(x, output).double() + log_ratio)
        total += float((log_sum - math.log(samples)).sum())
    return total / len(images)


def is_binary(images: NDArray[np.uint8]) -> bool:
    """Whether all pixels are 0 or 255: only then is a Bernoulli likelihood a probability."""
    return all(bool(np.isin(images[start : start + BATCH], (0, 255)).all()) for start in range(0, len(images), BATCH))
