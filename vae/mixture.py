"""A prior fitted to the latents after training (ex-post density estimation, Ghosh 2020, section 4).

Where a model encodes and decodes well but its aggregate posterior q(z) is not N(0, I), samples from N(0, I) are of
places that no image was encoded to. A Gaussian mixture, fitted to q(z) of the training split, is a prior without
those holes; encoder and decoder stay as they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

COMPONENTS = 10  # as Ghosh 2020 has it; fewer where the images are few
IMAGES_A_COMPONENT = 20
SMALLEST_VARIANCE = 1e-4  # added to each: a component must not shrink onto a single image


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over z.

    weights: (K,), of sum 1. means: (K, Z). scales: (K, Z, Z), Cholesky factors of the covariances. float64.
    """

    weights: Tensor
    means: Tensor
    scales: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """ln p(z): (..., Z) → (...), in nats."""
        return self._distribution.log_prob(z.double().cpu())

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, Z), float32, on the CPU."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[component] + (self.scales[component] @ noise[:, :, None])[:, :, 0]).float()

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each latent: (Z,) each."""
        variance = self.scales.square().sum(2)
        mean = self.weights @ self.means
        return mean.numpy(), (self.weights @ (variance + self.means.square()) - mean.square()).numpy()

    def gap(self, mean: np.ndarray, variance: np.ndarray) -> float:
        """How far q(z) with these moments is from this prior: `Measurement.prior_gap` with the prior's own moments.

        ½ Σ_j (r_j + d_j² − 1 − ln r_j), r_j the ratio of the variances, d_j the distance of the means in the
        prior's standard deviations.
        """
        m, s2 = self.moments()
        ratio = np.maximum(variance / s2, 1e-30)
        return float(0.5 * np.sum(ratio + (mean - m) ** 2 / s2 - 1 - np.log(ratio)))

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "means": self.means, "scales": self.scales}

    @property
    def _distribution(self) -> Any:
        components = MultivariateNormal(self.means, scale_tril=self.scales)
        return MixtureSameFamily(Categorical(self.weights), components)


def fit(mu: np.ndarray, logvar: np.ndarray, seed: int) -> Mixture:
    """Fitted to one z ~ q(z|x) of each image. mu, logvar: (N, Z), of the training split."""
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # has no stubs

    z = draw(mu, logvar, seed)
    components = int(np.clip(len(z) // IMAGES_A_COMPONENT, 1, COMPONENTS))
    with threadpool_limits(1):  # the number of threads would decide the last bits
        model = GaussianMixture(components, reg_covar=SMALLEST_VARIANCE, random_state=seed).fit(z)
    return Mixture(
        torch.from_numpy(model.weights_),
        torch.from_numpy(model.means_),
        torch.linalg.cholesky(torch.from_numpy(model.covariances_)).contiguous(),  # safetensors asks for it
    )


def draw(mu: np.ndarray, logvar: np.ndarray, seed: int) -> np.ndarray:
    """One z ~ q(z|x) of each image: (N, Z), float64."""
    noise = np.random.default_rng(seed).standard_normal(mu.shape)
    return mu.astype(np.float64) + np.exp(0.5 * logvar.astype(np.float64)) * noise


def rate(mu: np.ndarray, logvar: np.ndarray, mixture: Mixture | None, seed: int) -> float:
    """E_x KL(q(z|x) ‖ p(z)) in nats per image, one sample of z an image; against N(0, I) without a mixture."""
    z, logvar = draw(mu, logvar, seed), logvar.astype(np.float64)
    own = -0.5 * (np.log(2 * np.pi) + logvar + (z - mu) ** 2 / np.exp(logvar)).sum(1)
    if mixture is None:
        prior = -0.5 * (np.log(2 * np.pi) + z**2).sum(1)
    else:
        prior = mixture.log_prob(torch.from_numpy(z)).numpy()
    return float((own - prior).mean())
