"""A prior fitted to the latents after training (ex-post density estimation, Ghosh 2020, section 4).

Where a model encodes and decodes well but its aggregate posterior q(z) is not N(0, I), samples from N(0, I) are of
places that no image was encoded to. A Gaussian mixture, fitted to q(z) of the training split, is a prior without
those holes; encoder and decoder are unchanged.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

COMPONENTS = 10
IMAGES_PER_LATENT = 10  # for a full covariance
SMALLEST_VARIANCE = 1e-4  # added to each, so that no component shrinks onto a single image


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

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "means": self.means, "scales": self.scales}

    def is_valid(self, latents: int) -> bool:
        """Whether the tensors, which may come from a stranger's file, are a mixture over this many latents."""
        shape = (len(self.weights), latents)
        if self.means.shape != shape or self.scales.shape != (*shape, latents):
            return False
        if not all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in self.tensors().values()):
            return False
        cholesky = torch.equal(self.scales, self.scales.tril())
        positive = bool((self.scales.diagonal(dim1=-2, dim2=-1) > 0).all() and (self.weights >= 0).all())
        return cholesky and positive and abs(float(self.weights.sum()) - 1) <= 1e-6

    @property
    def _distribution(self) -> Any:
        components = MultivariateNormal(self.means, scale_tril=self.scales)
        return MixtureSameFamily(Categorical(self.weights), components)


def fit(mu: np.ndarray, logvar: np.ndarray, seed: int) -> Mixture:
    """Fitted to one z ~ q(z|x) of each image. mu, logvar: (N, Z), of the training split.

    Ten components with full covariances (Ghosh 2020), if there are ten images per latent and component; else fewer
    components, or diagonal covariances: one of fewer images than latents describes the images, not q(z).
    """
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    z = draw(mu, logvar, seed)
    images, latents = z.shape
    full = min(images // (IMAGES_PER_LATENT * latents), COMPONENTS)
    kind, components = ("full", full) if full else ("diag", int(np.clip(images // 100, 1, COMPONENTS)))
    with threadpool_limits(1):  # the number of threads would decide the last bits
        model = GaussianMixture(components, covariance_type=kind, reg_covar=SMALLEST_VARIANCE, random_state=seed)
        model.fit(z)
        covariances = model.covariances_ if full else np.stack([np.diag(v) for v in model.covariances_])
        scales = np.linalg.cholesky(covariances)
    return Mixture(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (model.weights_, model.means_, scales)))


def gap(prior_gap: float, mu: np.ndarray, logvar: np.ndarray, prior: Mixture, seed: int) -> float:
    """How far q(z) is from a fitted prior, in nats: KL(q(z) ‖ p) falls by what the rate falls by.

    R = I(x; z) + KL(q(z) ‖ p) (Hoffman & Johnson 2016), and I does not depend on p.

    prior_gap: of the same images from N(0, I). mu, logvar: (N, Z), of images that the prior was not fitted to.
    """
    z = draw(mu, logvar, seed)
    return max(prior_gap + float((_log_prior(z, None) - _log_prior(z, prior)).mean()), 0.0)


def draw(mu: np.ndarray, logvar: np.ndarray, seed: int) -> np.ndarray:
    """One z ~ q(z|x) of each image: (N, Z), float64."""
    noise = np.random.default_rng(seed).standard_normal(mu.shape)
    return mu.astype(np.float64) + np.exp(0.5 * logvar.astype(np.float64)) * noise


def rate(mu: np.ndarray, logvar: np.ndarray, mixture: Mixture | None, seed: int) -> float:
    """E_x KL(q(z|x) ‖ p(z)) in nats per image, one sample of z an image; against N(0, I) without a mixture."""
    z, logvar = draw(mu, logvar, seed), logvar.astype(np.float64)
    own = -0.5 * (np.log(2 * np.pi) + logvar + (z - mu) ** 2 / np.exp(logvar)).sum(1)
    return float((own - _log_prior(z, mixture)).mean())


def _log_prior(z: np.ndarray, mixture: Mixture | None) -> np.ndarray:
    if mixture is None:
        return -0.5 * (np.log(2 * np.pi) + z**2).sum(1)
    return mixture.log_prob(torch.from_numpy(z)).numpy()
