"""What is minimised: the negative ELBO of a batch, its rate weighted by β, in nats per image.

    loss = D + β·R                        (Higgins 2017; β = 1: the ELBO of Kingma & Welling 2014, equation 3)
    D = −E_q[ln p(x|z)]                   the distortion, with one z = μ + σ·ε
    R = Σ_j KL(q(z_j|x) ‖ N(0, 1))        the rate, less what free bits hide
    R = ln q(z|x) − ln p(z)               the same for a learned prior, with that z (`vae.priors.learned`)

`vae.losses.kl_control` replaces β·R where a control steers the rate, `vae.losses.importance_weighted` all of it
where there are more samples of z. `vae.config.beta_elbo` says what β the parameters amount to.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vae.config.beta_elbo import BetaELBO
from vae.config.constants import SMALLEST_SIGMA
from vae.losses.kl_control import KLControl
from vae.models.likelihood import form, gaussian_log_prob, smallest_sigma, squared_error
from vae.models.vae import VAE
from vae.priors.learned import Density

Logs = dict[str, Tensor]  # of a batch, detached, in nats per image: loss, reconstruction (the distortion), kl
Beside = Callable[..., tuple[Tensor, Logs]]  # of `picture` and `mu`: a loss beside the negative ELBO, with its logs


class Terms(NamedTuple):
    """Of a batch, averaged over its images: () each. The rate as it is, and as the loss sees it."""

    distortion: Tensor
    rate: Tensor
    penalised_rate: Tensor
    mse: Tensor  # of a pixel
    picture: Tensor  # E[x|z], (B, C, H, W)
    mu: Tensor  # (B, Z)


class ELBOLoss:
    """`loss, logs = elbo_loss(model, x, noise, beta)`; x: (B, C, H, W), noise: ε, (1, B, Z)."""

    def __init__(self, elbo: BetaELBO, control: KLControl, compiled: bool = False) -> None:
        self.elbo, self.control = elbo, control
        self.terms = torch.compile(elbo_terms) if compiled else elbo_terms

    def __call__(
        self, model: VAE, x: Tensor, noise: Tensor, beta: float, steer: bool = True, beside: Beside | None = None
    ) -> tuple[Tensor, Logs]:
        """steer: let the control see this batch; else it stays as it stands. beside: what else is minimised."""
        terms = self.terms(self.elbo, model, x, noise[0], model.density())
        if steer:
            self.control.update(terms.rate, terms.mse)
        loss = self.control.loss(terms.distortion, terms.penalised_rate, terms.mse, beta)
        if self.control.kl.control == "geco" and model.log_sigma is not None:
            loss = loss + sigma_fit(self.elbo, terms.mse, model.log_sigma)
        logs: Logs = {}
        if beside is not None:
            more, logs = beside(picture=terms.picture, mu=terms.mu)
            loss = loss + more
        return loss, {
            "loss": loss.detach(), "reconstruction": terms.distortion.detach(), "kl": terms.rate.detach(), **logs
        }  # fmt: skip


def elbo_terms(elbo: BetaELBO, model: VAE, x: Tensor, noise: Tensor, prior: Density | None) -> Terms:
    """prior: None is N(0, I)."""
    output, mu, logvar = model(x, noise)
    rates = kl_per_latent(mu, logvar) if prior is None else sampled_rate(prior, mu, logvar, noise)[:, None]
    picture = form(elbo).mean(output)
    error = squared_error(x, picture).mean()
    return Terms(
        distortion=-_log_prob(elbo, x, output, error, model.log_sigma),
        rate=rates.sum(1).mean(),
        penalised_rate=penalised_rate(elbo, rates),
        mse=error / elbo.pixels,
        picture=picture,
        mu=mu,
    )


def kl_per_latent(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) of each latent, in nats (Kingma & Welling 2014, appendix B): (…, Z) → (…, Z)."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def sampled_rate(prior: Density, mu: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """ln q(z|x) − ln p(z) with z = μ + σ·ε, whose mean over ε is KL(q(z|x) ‖ p): (…, Z) → (…), in nats, float32."""
    posterior = -0.5 * (math.log(2 * math.pi) + noise.square() + logvar).sum(-1)
    return (posterior.double() - prior.log_prob(mu + torch.exp(0.5 * logvar) * noise)).float()


def penalised_rate(elbo: BetaELBO, rates: Tensor) -> Tensor:
    """The rate with free bits of each group of latents (Kingma 2016, equation 14 and appendix C.8): (B, Z) → ().

    A group is a latent; or, with `free_bits_total`, all of them, or those of a level.
    Of a learned prior, which has one rate for all latents, (B, 1) → ().
    """
    per_latent = rates.mean(0)
    if elbo.free_bits_total:
        levels = [level.sum() for level in per_latent.tensor_split(elbo.lower_from)]
        return torch.stack(levels).clamp_min(elbo.free_bits_total).sum()
    return per_latent.clamp_min(elbo.free_bits).sum() if elbo.free_bits else per_latent.sum()


def _log_prob(elbo: BetaELBO, x: Tensor, output: Tensor, error: Tensor, log_sigma: Tensor | None) -> Tensor:
    """ln p(x|z), averaged over the batch; error: its mean squared error, summed over pixels."""
    noise = variance(elbo, log_sigma, error / elbo.pixels)
    if elbo.likelihood == "gaussian" and noise is not None and elbo.sigma != "channel":
        return gaussian_log_prob(error, elbo.pixels, noise)
    return form(elbo).log_prob(x, output, noise).mean()


def sigma_fit(elbo: BetaELBO, mse: Tensor, log_sigma: Tensor) -> Tensor:
    """D of an error that is given, so that it has a gradient for σ alone: GECO's loss leaves a learned σ out.

    Its minimum over σ is at σ² = MSE; the networks' gradient stays GECO's.
    """
    noise = variance(elbo, log_sigma)
    assert noise is not None, "GECO has one sigma"
    return -gaussian_log_prob(mse.detach() * elbo.pixels, elbo.pixels, noise)


def variance(elbo: BetaELBO, log_sigma: Tensor | None, mse: Tensor | None = None) -> Tensor | float | None:
    """σ²: fixed, learned as (), or as (C, 1, 1) of each channel; None where it is an output of the decoder, or none.

    log_sigma: of the model. mse: of the batch, which is the optimal σ²: the gradient of a Gaussian's ln p is then that
    of −(N/2)·ln MSE (Rybkin 2021, equation 5).
    """
    if not elbo.has_sigma or elbo.sigma == "pixel":
        return None
    if elbo.fixed_sigma is not None:
        return elbo.fixed_sigma**2
    if elbo.sigma == "optimal":
        assert mse is not None, "an optimal sigma is that of an error"
        return mse.clamp_min(SMALLEST_SIGMA**2)
    assert log_sigma is not None, "a learned sigma lives in the model"
    learned = (2 * log_sigma).exp().clamp_min(smallest_sigma(elbo.likelihood) ** 2)
    return learned.view(-1, 1, 1) if elbo.sigma == "channel" else learned
