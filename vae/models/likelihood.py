"""p(x|z): a Gaussian with one σ for all pixels, or a Bernoulli distribution for each pixel."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

from vae.config.beta_elbo import BetaELBO
from vae.config.constants import SMALLEST_SIGMA


@dataclass(frozen=True)
class Likelihood:
    """p(x|z) with everything fixed, as a saved model is judged.

    Attributes:
        sigma: the Gaussian's standard deviation, in pixels of [0, 1]; None for Bernoulli.
    """

    kind: Literal["gaussian", "bernoulli"]
    sigma: float | None = None

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """ln p(x|z) in nats, constants included. x, output: (B, C, H, W) → (B,)."""
        if self.kind == "bernoulli":
            return bernoulli_log_prob(x, output)
        return gaussian_log_prob(squared_error(x, output), x[0].numel(), self.variance)

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z] from the decoder's output: pixels, about [0, 1]."""
        return output.sigmoid() if self.kind == "bernoulli" else output

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


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Σ x·ln p + (1 − x)·ln(1 − p) over pixels: (B, C, H, W) → (B,). Of grey pixels it is a cross-entropy."""
    return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def optimal_sigma(mse: float) -> float:
    """The maximum-likelihood σ for a mean squared error, not below `SMALLEST_SIGMA` (Rybkin 2021)."""
    return max(math.sqrt(mse), SMALLEST_SIGMA)


def known_likelihood(elbo: BetaELBO, log_sigma: Tensor | None = None) -> Likelihood | None:
    """p(x|z) where nothing has to be measured for it; None for an optimal σ.

    log_sigma: of the model, where σ is learned.
    """
    if elbo.likelihood == "bernoulli":
        return Likelihood("bernoulli")
    if elbo.sigma == "optimal":
        return None
    if elbo.sigma == "learned":
        assert log_sigma is not None, "a learned sigma lives in the model"
        return Likelihood("gaussian", max(math.exp(float(log_sigma.detach())), SMALLEST_SIGMA))
    return Likelihood("gaussian", elbo.sigma)
