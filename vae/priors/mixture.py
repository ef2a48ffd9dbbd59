"""A Gaussian mixture over the latents."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

ITERATIONS = 60  # of EM, at most
# Added to each variance of latents whose own is 1. The best of 0.01, 0.03 and 0.1 on held-out digits, and it keeps a
# component from shrinking onto a single image.
SMOOTHING = 0.05


@dataclass(frozen=True, eq=False)
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
        drawn = torch.empty_like(noise)
        for k in component.unique():  # one scale at a time: gathered for each sample, they take gigabytes
            here = component == k
            drawn[here] = self.means[k] + noise[here] @ self.scales[k].T
        return drawn.float()

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


def fit(z: NDArray[np.float64], components: int, covariance: Literal["full", "diag"], seed: int) -> Mixture:
    """By expectation maximisation. z: (N, Z), of variance about 1."""
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    model = GaussianMixture(
        components, covariance_type=covariance, reg_covar=SMOOTHING, max_iter=ITERATIONS, random_state=seed
    )
    with threadpool_limits(1):  # the number of threads would decide the last bits
        model.fit(z)
        full = covariance == "full"
        scales = (
            np.linalg.cholesky(model.covariances_)
            if full
            else np.stack([np.diag(np.sqrt(variance)) for variance in model.covariances_])
        )
    return Mixture(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (model.weights_, model.means_, scales)))
