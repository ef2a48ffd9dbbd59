"""The objective: distortion, rate, and how `reduction` and the KL weight combine them.

Everything is in nats per image: summed over pixels and latents. With N pixels (C·H·W) and Z latents,

    D = −E_q[ln p(x|z)]        the distortion
    R = Σ_j KL(q(z_j|x) ‖ p(z_j))     the rate
    ELBO = −D − R              (Kingma & Welling 2014, equation 3)
    loss = D + β·R             (Higgins 2017), β = 1 for the ELBO

What `reduction: mean` calls its KL weight w is not β: see `Objective.beta`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vae.config.parameters import Parameters

# A decoder can not be surer of a pixel than the rounding to 256 grey levels allows (uniform error of 1/255).
SMALLEST_SIGMA = 1 / (255 * math.sqrt(12))

COLLAPSED_BELOW_NATS = 1.0  # of KL per image, over all latents: what carries less carries nothing


def kl_per_latent(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) of each latent, in nats (Kingma & Welling 2014, appendix B).

    mu, logvar: (..., Z) → (..., Z).
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


@dataclass(frozen=True)
class Likelihood:
    """p(x|z), with everything fixed: what a saved model is judged by.

    Attributes:
        kind: `gaussian` with one σ for all pixels, or `bernoulli`.
        sigma: the Gaussian's standard deviation, in pixels of [0, 1]; None for Bernoulli.
    """

    kind: Literal["gaussian", "bernoulli"]
    sigma: float | None = None

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """ln p(x|z) in nats, constants included. x, output: (B, C, H, W) → (B,)."""
        if self.kind == "bernoulli":
            return -functional.binary_cross_entropy_with_logits(output, x, reduction="none").flatten(1).sum(1)
        return gaussian_log_prob(squared_error(x, output), x[0].numel(), self.variance)

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z], from what the decoder gives: pixels, in [0, 1] where the model has learnt so."""
        return torch.sigmoid(output) if self.kind == "bernoulli" else output

    @property
    def variance(self) -> float:
        assert self.sigma is not None, "a Bernoulli likelihood has no sigma"
        return self.sigma**2


def squared_error(x: Tensor, mean: Tensor) -> Tensor:
    """Σ (x − mean)² over pixels: (B, C, H, W) → (B,)."""
    return (x - mean).square().flatten(1).sum(1)


def gaussian_log_prob(error: Tensor, pixels: int, variance: Tensor | float) -> Tensor:
    """ln N(x; mean, σ²I) from the squared error: −(N/2)·ln 2πσ² − error/(2σ²)."""
    log_variance = variance.log() if isinstance(variance, Tensor) else math.log(variance)
    return -0.5 * pixels * (math.log(2 * math.pi) + log_variance) - error / (2 * variance)


@dataclass(frozen=True)
class Objective:
    """What training minimises, in nats per image.

    Attributes:
        likelihood: `gaussian` or `bernoulli`.
        sigma: `optimal` (Rybkin 2021), `learned`, or a number.
        reduction: `sum`, or `mean`: squared error per pixel + w · KL per latent.
        pixels: N. latents: Z.
        final_weight: w where the schedule ends; 1, the ELBO's own, where a control steers the rate.
        free_bits: nats that each latent may cost, averaged over a batch, before the KL term sees it (Kingma 2016,
            equation 14). free_bits_total: the same for all latents together.
    """

    likelihood: Literal["gaussian", "bernoulli"]
    sigma: Literal["optimal", "learned"] | float
    reduction: Literal["sum", "mean"]
    pixels: int
    latents: int
    final_weight: float
    free_bits: float = 0.0
    free_bits_total: float = 0.0

    @classmethod
    def of(cls, p: Parameters) -> "Objective":
        return cls(
            likelihood=p.objective.likelihood,
            sigma=p.objective.sigma,
            reduction=p.objective.reduction,
            pixels=math.prod(p.data.image_shape),
            latents=p.model.latent_dim,
            final_weight=p.kl.weight if p.kl.control == "schedule" else 1.0,
            free_bits=p.kl.free_bits,
            free_bits_total=p.kl.free_bits_total,
        )

    @property
    def equivalent_sigma(self) -> float | None:
        """The noise that makes the mean-reduced Gaussian loss an ELBO: σ²_eq = wN/(2Z); None elsewhere.

        error/N + w·KL/Z  =  (2σ²_eq/N) · (error/(2σ²_eq) + KL)
        """
        if self.reduction == "mean" and self.likelihood == "gaussian":
            return math.sqrt(self.final_weight * self.pixels / (2 * self.latents))
        return None

    def beta(self, weight: float) -> float:
        """The weight of the rate against the distortion, in nats, that a KL weight w amounts to."""
        if self.reduction == "sum":
            return weight
        if self.likelihood == "bernoulli":
            return weight * self.pixels / self.latents
        return weight / self.final_weight  # the distortion is that of σ_eq

    @property
    def scale(self) -> float:
        """From nats to the loss as its reduction writes it; its optimum is the same, its gradient smaller."""
        if self.reduction == "sum":
            return 1.0
        return self.final_weight / self.latents if self.likelihood == "gaussian" else 1 / self.pixels

    def known_likelihood(self, log_sigma: float | None = None) -> Likelihood | None:
        """p(x|z) where nothing of it has to be measured; None for an optimal σ."""
        if self.likelihood == "bernoulli":
            return Likelihood("bernoulli")
        if self.sigma == "learned":
            assert log_sigma is not None, "a learned sigma lives in the model"
            return Likelihood("gaussian", max(math.exp(log_sigma), SMALLEST_SIGMA))
        sigma = self.equivalent_sigma or self.sigma
        return None if sigma == "optimal" else Likelihood("gaussian", float(sigma))

    def distortion(self, x: Tensor, output: Tensor, log_sigma: Tensor | None) -> Tensor:
        """D of a batch, averaged over its images; differentiable. x, output: (B, C, H, W) → ()."""
        if self.likelihood == "bernoulli":
            return -Likelihood("bernoulli").log_prob(x, output).mean()
        error = squared_error(x, output).mean()
        if self.sigma == "learned":
            assert log_sigma is not None, "a learned sigma lives in the model"
            return -gaussian_log_prob(error, self.pixels, (2 * log_sigma).exp().clamp_min(SMALLEST_SIGMA**2))
        known = self.known_likelihood()
        if known is not None:
            return -gaussian_log_prob(error, self.pixels, known.variance)
        # Optimal σ: its gradient is that of (N/2)·ln MSE (Rybkin 2021, equation 5).
        return -gaussian_log_prob(error, self.pixels, (error / self.pixels).clamp_min(SMALLEST_SIGMA**2))

    def penalised_rate(self, kl: Tensor) -> Tensor:
        """The rate as the loss sees it. kl: (B, Z) → ()."""
        per_latent = kl.mean(0)
        rate = per_latent.clamp_min(self.free_bits).sum() if self.free_bits else per_latent.sum()
        return rate.clamp_min(self.free_bits_total) if self.free_bits_total else rate

    def log_weights(self, x: Tensor, output: Tensor, log_sigma: Tensor | None) -> Tensor:
        """ln p(x|z) of each image, differentiable in σ too. x, output: (B, C, H, W) → (B,)."""
        if self.sigma == "learned":
            assert log_sigma is not None, "a learned sigma lives in the model"
            variance = (2 * log_sigma).exp().clamp_min(SMALLEST_SIGMA**2)
            return gaussian_log_prob(squared_error(x, output), self.pixels, variance)
        known = self.known_likelihood()
        assert known is not None, "an optimal sigma is of a batch, not of an image"
        return known.log_prob(x, output)


def optimal_sigma(mse: float) -> float:
    """The maximum-likelihood σ for a mean squared error, not below `SMALLEST_SIGMA` (Rybkin 2021)."""
    return max(math.sqrt(mse), SMALLEST_SIGMA)


def effective_beta(objective: Objective, mse_sampled: float) -> float:
    """The β, of a VAE with optimal σ, that the loss amounts to at this error.

    Mean reduction: w·N/(2·Z·MSE); sum with a fixed σ: β·σ²/MSE; with an optimal or learned one, β itself.
    """
    if objective.likelihood == "bernoulli":
        return objective.beta(objective.final_weight)
    known = objective.equivalent_sigma or objective.sigma
    beta = objective.beta(objective.final_weight)
    return beta if isinstance(known, str) else beta * known**2 / max(mse_sampled, SMALLEST_SIGMA**2)
