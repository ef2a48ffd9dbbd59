"""Priors that are trained with the model, by the same ELBO.

With them the rate has no closed form; the sample of z that is decoded estimates it:

    R = E_q(z|x)[ln q(z|x) − ln p(z)]
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vae.priors import flow

LOGVAR_MIN, LOGVAR_MAX = -20.0, 10.0  # of a mixture's components, as of posteriors


@dataclass(frozen=True, eq=False)
class DiagonalMixture:
    """Σ_k w_k N(z; μ_k, diag σ_k²). log_weights: (K,). means, logvars: (K, Z)."""

    log_weights: Tensor
    means: Tensor
    logvars: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """ln p(z): (..., Z) → (...), in nats, float64.

        With the square multiplied out it is two matrix products; their terms cancel, hence float64.
        """
        z, means, logvars = z.double(), self.means.double(), self.logvars.double()
        precision = torch.exp(-logvars)
        normaliser = -0.5 * (math.log(2 * math.pi) + logvars + means.square() * precision).sum(1)
        exponent = z @ (means * precision).T - 0.5 * z.square() @ precision.T
        return torch.logsumexp(self.log_weights.double() + normaliser + exponent, -1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, Z), float32, on the CPU."""
        component = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        return (self.means[component] + torch.exp(0.5 * self.logvars[component]) * noise).float()

    def fixed(self) -> "DiagonalMixture":
        """A copy on the CPU, without gradients."""
        return DiagonalMixture(*(t.detach().cpu().double() for t in (self.log_weights, self.means, self.logvars)))


class VampPrior(nn.Module):
    """p(z) = 1/K Σ_k q(z|u_k), the mixture of the posteriors of K learned pseudo-inputs u_k (Tomczak & Welling 2018,
    equations 9 to 12).

    The model passes the u_k through its own encoder, once a step (`VAE.density`): the prior holds no encoder.
    """

    def __init__(self, image_shape: tuple[int, int, int], components: int) -> None:
        super().__init__()
        self.pseudo_inputs = nn.Parameter(torch.full((components, *image_shape), 0.5))

    @property
    def name(self) -> str:
        return f"learned VampPrior of {len(self.pseudo_inputs)} pseudo-inputs"

    @torch.no_grad()
    def start(self, images: NDArray[np.uint8], seed: int) -> None:
        """Starts the pseudo-inputs as training images, uint8 (N, H, W, C); some more than once where N < K."""
        chosen = np.random.default_rng(seed).permutation(len(images))
        pixels = torch.from_numpy(np.ascontiguousarray(images[np.resize(chosen, len(self.pseudo_inputs))]))
        self.pseudo_inputs.copy_(pixels.permute(0, 3, 1, 2).float().div(255))

    def images(self) -> Tensor:
        """u_k: (K, C, H, W), in [0, 1]: what a step moved out is set back (projected gradient descent).

        The authors' hardtanh has no gradient outside, so a pixel that has left stays black or white for good: after 27
        epochs of binary MNIST, that was 95% of them.
        """
        self.pseudo_inputs.data.clamp_(0, 1)
        return self.pseudo_inputs

    def density(self, mu: Tensor, logvar: Tensor) -> DiagonalMixture:
        """mu, logvar: (K, Z), of q(z|u_k)."""
        return DiagonalMixture(mu.new_full((len(mu),), -math.log(len(mu))), mu, logvar)

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Nothing: the posteriors of the pseudo-inputs follow the encoder."""


class LearnedMixture(nn.Module):
    """A mixture of K diagonal Gaussians with learned weights, means and variances.

    It starts with the mean and the variance of N(0, I), half of the variance between its components.
    """

    def __init__(self, latents: int, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(math.sqrt(0.5) * torch.randn(components, latents))
        self.logvars = nn.Parameter(torch.full((components, latents), math.log(0.5)))

    @property
    def name(self) -> str:
        return f"learned mixture of {len(self.logits)} diagonal Gaussians"

    def density(self) -> DiagonalMixture:
        return DiagonalMixture(self.logits.log_softmax(0), self.means, self.logvars.clamp(LOGVAR_MIN, LOGVAR_MAX))

    @torch.no_grad()
    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """The same density of z' = (z − mean)/deviation."""
        self.means.sub_(mean).div_(deviation)
        self.logvars.sub_(2 * deviation.log())


class LearnedFlow(nn.Module):
    """A masked autoregressive flow (Papamakarios 2017) over scale·z + shift, which are 1 and 0 until training ends."""

    scale: Tensor
    shift: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.network = flow.build(latents)
        self.register_buffer("scale", torch.ones(latents))
        self.register_buffer("shift", torch.zeros(latents))

    @property
    def name(self) -> str:
        return "learned masked autoregressive flow"

    def log_prob(self, z: Tensor) -> Tensor:
        """ln p(z): (..., Z) → (...), in nats, float64; computed in fp32 in every precision of the training."""
        with torch.autocast(z.device.type, enabled=False):
            inner = self.network().log_prob(z.float() * self.scale + self.shift)
        return inner.double() + self.scale.double().log().sum()

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, Z), float32, of a copy on the CPU."""
        drawn = flow.Flow(self.network).sample(count, generator)
        return (drawn - self.shift) / self.scale

    @torch.no_grad()
    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """The same density of z' = (z − mean)/deviation."""
        self.shift.add_(self.scale * mean)
        self.scale.mul_(deviation)


Learned = VampPrior | LearnedMixture | LearnedFlow
Density = DiagonalMixture | LearnedFlow


def fewest_weights(prior: str, components: int, latents: int, pixels: int) -> int:
    """A lower bound on how many numbers the prior holds."""
    hidden, out = flow.HIDDEN
    return {
        "standard": 0,
        "vamp": components * pixels,
        "mixture": 2 * components * latents,
        "flow": flow.TRANSFORMS * (latents * hidden + hidden * out + out * 2 * latents),
    }[prior]
