"""The objective that the parameters amount to: the negative ELBO with its rate weighted by β.

With N pixels (C·H·W), Z latents, distortion D and rate R in nats per image (`vae.losses.elbo`), the loss is D + β·R
(Higgins 2017), and β = 1 is the ELBO. `objective.reduction: mean` writes its loss with a KL weight w of its own:

    Gaussian:   error/N + w·KL/Z = (2σ²/N) · (error/(2σ²) + KL)  with σ² = wN/(2Z): β = 1 at this σ
    Bernoulli:  BCE/N + w·KL/Z   = (1/N) · (BCE + (wN/Z)·KL):                       β = wN/Z
"""

import math
from dataclasses import dataclass
from typing import Literal

from vae.config.constants import SMALLEST_SIGMA
from vae.config.parameters import Parameters
from vae.config.sections import LikelihoodKind


@dataclass(frozen=True)
class BetaELBO:
    """The objective of a training at one KL weight.

    Attributes:
        likelihood: of a pixel (`vae.models.likelihood`).
        sigma: its standard deviation, in pixels of [0, 1]: `optimal` (Rybkin 2021), `learned`, of each `channel` or
            `pixel`, or a number. Without meaning for `bernoulli` and `logistic_mixture`.
        beta: the weight of the rate against the distortion, in nats.
        scale: from nats to the loss as `reduction` writes it; the optimum is the same, the gradient smaller.
        pixels: N.
        free_bits: nats that each latent may cost, averaged over a batch, before the loss sees its rate (Kingma 2016,
            equation 14). free_bits_total: the same for all latents together, or for those of each level.
        components: of a mixture; None of other likelihoods.
        lower_from: of two levels of latents, the index of the lower one's first; else empty.
    """

    likelihood: LikelihoodKind
    sigma: Literal["optimal", "learned", "channel", "pixel"] | float
    beta: float
    scale: float
    pixels: int
    free_bits: float = 0.0
    free_bits_total: float = 0.0
    components: int | None = None
    lower_from: tuple[int, ...] = ()

    @classmethod
    def of(cls, p: Parameters, weight: float) -> "BetaELBO":
        """At a given KL weight, whatever `kl.max_weight` is."""
        likelihood, sigma = p.objective.likelihood, p.objective.sigma
        pixels, latents = math.prod(p.data.image_shape), p.model.latent_dim
        beta, scale = float(weight), 1.0
        if p.objective.reduction == "mean" and likelihood == "bernoulli":
            beta, scale = weight * pixels / latents, 1 / pixels
        elif p.objective.reduction == "mean":
            sigma, beta, scale = math.sqrt(weight * pixels / (2 * latents)), 1.0, weight / latents
        components = p.objective.mixture_components if likelihood == "logistic_mixture" else None
        lower_from = () if p.model.lower_latents is None else (p.model.top_latents,)
        free = (p.kl.free_bits, p.kl.free_bits_total)
        return cls(likelihood, sigma, beta, scale, pixels, *free, components, lower_from)

    @property
    def has_sigma(self) -> bool:
        return self.likelihood not in ("bernoulli", "logistic_mixture")

    @property
    def fixed_sigma(self) -> float | None:
        """σ, where it is a number from the start."""
        return None if isinstance(self.sigma, str) or not self.has_sigma else self.sigma

    def effective_beta(self, mse_sampled: float) -> float:
        """The β of a VAE with optimal σ that is equivalent at this error: β·σ²/MSE where σ is fixed."""
        if self.fixed_sigma is None:
            return self.beta
        return self.beta * self.fixed_sigma**2 / max(mse_sampled, SMALLEST_SIGMA**2)
