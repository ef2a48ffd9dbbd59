"""The importance-weighted bound as a loss: more samples of z, a tighter bound (Burda 2016)."""

import math

import torch
from torch import Tensor

from vae.config.beta_elbo import BetaELBO
from vae.losses.elbo import Beside, Logs, kl_per_latent, sampled_rate, variance
from vae.models.likelihood import form
from vae.models.vae import VAE
from vae.priors.learned import Density


class ImportanceWeightedLoss:
    """−L_k (Burda 2016, equation 8) with its KL part weighted by β; called as `ELBOLoss`, with noise (k, B, Z).

    There is no rate apart for a control or free bits to act on: the parameters refuse both.
    """

    def __init__(self, elbo: BetaELBO, compiled: bool = False) -> None:
        self.elbo = elbo
        self.terms = torch.compile(importance_weighted_terms) if compiled else importance_weighted_terms

    def __call__(
        self, model: VAE, x: Tensor, noise: Tensor, beta: float, steer: bool = True, beside: Beside | None = None
    ) -> tuple[Tensor, Logs]:
        """steer, beside: only `ELBOLoss` has any."""
        assert beside is None
        # A tensor, since a compiled function would be compiled anew for each number.
        weight = torch.full((), beta, device=x.device)
        loss, distortion, rate = self.terms(self.elbo, model, x, noise, weight, model.density())
        return loss, {"loss": loss.detach(), "reconstruction": distortion.detach(), "kl": rate.detach()}


def importance_weighted_terms(
    elbo: BetaELBO, model: VAE, x: Tensor, noise: Tensor, beta: Tensor, prior: Density | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, distortion and rate.

    ln w = ln p(x|z) + β·(ln p(z) − ln q(z|x)); with z = μ + σ·ε the bracket is ½ Σ (ε² + ln σ² − z²) for N(0, I).

    An optimal σ is of a batch, not of an image: the parameters refuse it. prior: None is N(0, I).
    """
    mu, logvar = model.infer(x)(noise)
    z = mu + torch.exp(0.5 * logvar) * noise
    repeated = x.repeat(len(noise), 1, 1, 1)
    output = model.decode(z.flatten(0, 1), repeated)
    log_likelihood = form(elbo).log_prob(repeated, output, variance(elbo, model.log_sigma))
    log_likelihood = log_likelihood.view(len(noise), len(x))
    if prior is None:
        log_ratio, rate = 0.5 * (noise.square() + logvar - z.square()).sum(2), kl_per_latent(mu, logvar).sum(-1)
    else:
        log_ratio = -sampled_rate(prior, mu, logvar, noise)
        rate = -log_ratio
    bound = torch.logsumexp(log_likelihood + beta * log_ratio, 0) - math.log(len(noise))
    return -bound.mean(), -log_likelihood.mean(), rate.mean()
