"""p(x|z): of a pixel's value, or of its 8-bit level (`vae.models.discretised`)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vae.config.beta_elbo import BetaELBO
from vae.config.constants import SMALLEST_SIGMA
from vae.config.sections import LikelihoodKind
from vae.models import discretised


@dataclass(frozen=True)
class Likelihood:
    """p(x|z) with everything fixed, as a saved model is judged.

    Attributes:
        sigma: the standard deviation in pixels of [0, 1], of all pixels or of each channel, (C,). None of `bernoulli`
            and `logistic_mixture`; of other kinds None means that the decoder gives one for each pixel.
        components: K of `logistic_mixture`; None of the others.
    """

    kind: LikelihoodKind
    sigma: float | tuple[float, ...] | None = None
    components: int | None = None

    def log_prob(self, x: Tensor, output: Tensor, variance: Tensor | float | None = None) -> Tensor:
        """ln p(x|z) in nats, constants included. x: (B, C, H, W), output: (B, `outputs`, H, W) → (B,).

        variance: in place of σ², while that is not fixed yet: () or (C, 1, 1).
        """
        if self.kind == "bernoulli":
            return bernoulli_log_prob(x, output)
        if self.components is not None:
            return discretised.mixture(x, output, self.components).flatten(1).sum(1)
        variance = self.variance if variance is None else variance
        if self.kind == "gaussian" and (isinstance(variance, float) or (variance is not None and variance.dim() == 0)):
            return gaussian_log_prob(squared_error(x, output), x[0].numel(), variance)
        if variance is None:
            output, raw = output.chunk(2, 1)
            sigma = discretised.bounded_sigma(raw, smallest_sigma(self.kind))
        elif isinstance(variance, float):
            sigma = output.new_full((), math.sqrt(variance))  # filled on the device, which a copy would wait for
        else:
            sigma = variance.to(output).sqrt()
        kinds = {"gaussian": pixel_log_density, "discretised_gaussian": discretised.gaussian}
        return kinds.get(self.kind, discretised.logistic)(x, output, sigma).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z] from the decoder's output: (B, `outputs`, …) → (B, C, …), pixels, about [0, 1].

        Of a discretised Gaussian or logistic its location, within [0, 1]: whatever lies beyond is black or white.
        """
        if self.kind == "bernoulli":
            return output.sigmoid()
        if self.components is not None:
            return discretised.mixture_mean(output, self.components)
        mean = output.chunk(2, 1)[0] if self.sigma is None else output
        return mean.clamp(0, 1) if self.is_discretised else mean

    def outputs(self, channels: int) -> int:
        """How many channels the decoder's output has, for images of so many."""
        if self.components is not None:
            return discretised.mixture_outputs(channels, self.components)
        return 2 * channels if self.sigma is None and self.kind != "bernoulli" else channels

    def start(self, channels: int, sigma: float) -> Tensor | None:
        """What to add to the decoder's output at first, for its σ to start there: (`outputs`,); None if it has none."""
        if self.components is not None:
            return discretised.mixture_start(channels, self.components, sigma)
        if self.outputs(channels) == channels:
            return None
        return torch.cat([torch.zeros(channels), torch.full((channels,), math.log(sigma))])

    @property
    def variance(self) -> float | Tensor | None:
        """σ²: a number, or (C, 1, 1) of each channel; None where there is no σ outside the decoder."""
        if isinstance(self.sigma, tuple):
            return torch.tensor(self.sigma, dtype=torch.float64).square().view(-1, 1, 1)
        return None if self.sigma is None else self.sigma**2

    @property
    def is_discretised(self) -> bool:
        """Whether it gives probabilities of 8-bit levels, and not a density: then bits per dimension have a meaning."""
        return self.kind not in ("gaussian", "bernoulli")

    def fits(self, channels: int) -> bool:
        """Whether σ and components are those of a likelihood of this kind."""
        if (self.components is None) == (self.kind == "logistic_mixture") or not 1 <= (self.components or 1) <= 100:
            return False
        if self.sigma is None or self.kind in ("bernoulli", "logistic_mixture"):
            return self.sigma is None
        sigmas = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,) * channels
        return len(sigmas) == channels and min(sigmas) > 0


GAUSSIAN = Likelihood("gaussian", 1.0)


def form(elbo: BetaELBO, channels: int = 1) -> Likelihood:
    """p(x|z) as far as a network has to know it: σ, where it is no output of the decoder, is 1."""
    if not elbo.has_sigma:
        return Likelihood(elbo.likelihood, None, elbo.components)
    if elbo.sigma == "pixel":
        return Likelihood(elbo.likelihood)
    return Likelihood(elbo.likelihood, (1.0,) * channels if elbo.sigma == "channel" else 1.0)


def squared_error(x: Tensor, mean: Tensor) -> Tensor:
    """Σ (x − mean)² over pixels: (B, C, H, W) → (B,)."""
    return (x - mean).square().flatten(1).sum(1)


def gaussian_log_prob(error: Tensor, pixels: int, variance: Tensor | float) -> Tensor:
    """ln N(x; mean, σ²I) from the squared error: −(N/2)·ln 2πσ² − error/(2σ²)."""
    log_variance = variance.log() if isinstance(variance, Tensor) else math.log(variance)
    return -0.5 * pixels * (math.log(2 * math.pi) + log_variance) - error / (2 * variance)


def pixel_log_density(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """ln N(x; mean, σ²) of each pixel: the shape of x."""
    return -0.5 * ((x - mean) / sigma).square() - sigma.log() - 0.5 * math.log(2 * math.pi)


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Σ x·ln p + (1 − x)·ln(1 − p) over pixels: (B, C, H, W) → (B,). Of grey pixels it is a cross-entropy."""
    return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def optimal_sigma(mse: float) -> float:
    """The maximum-likelihood σ for a mean squared error, not below `SMALLEST_SIGMA` (Rybkin 2021)."""
    return max(math.sqrt(mse), SMALLEST_SIGMA)


def smallest_sigma(kind: str) -> float:
    """Of a σ that is learned: a density may not be surer than rounding allows, a probability has its own limit."""
    return SMALLEST_SIGMA if kind == "gaussian" else discretised.SMALLEST_DISCRETISED_SIGMA


def bits_per_dim(nats: float, pixels: int) -> float:
    """−log₂ p of an image for each of its N numbers (C·H·W); nats: ln p, or a bound on it, of 8-bit levels."""
    return -nats / (pixels * math.log(2))


def known_likelihood(elbo: BetaELBO, log_sigma: Tensor | None = None) -> Likelihood | None:
    """p(x|z) where nothing has to be measured for it; None for an optimal σ.

    log_sigma: of the model, where σ is learned.
    """
    if not elbo.has_sigma or elbo.sigma == "pixel":
        return form(elbo)
    if elbo.sigma == "optimal":
        return None
    if isinstance(elbo.sigma, float):
        return Likelihood(elbo.likelihood, elbo.sigma)
    assert log_sigma is not None, "a learned sigma lives in the model"
    sigmas = [max(math.exp(log), smallest_sigma(elbo.likelihood)) for log in log_sigma.detach().flatten().tolist()]
    return Likelihood(elbo.likelihood, tuple(sigmas) if elbo.sigma == "channel" else sigmas[0])
