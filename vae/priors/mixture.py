"""A Gaussian mixture over the leading principal directions of the latents, and a Gaussian over the others.

Few images do not bear full covariances in many latents. Along the principal axes of the aggregate posterior, scaled to
variance 1, the clusters of the images lie in the first axes, and N(0, I) describes the rest.
"""

import warnings
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

ITERATIONS = 60  # of expectation maximisation, at most

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mixture:
    """z = mean + basis·w, with the first d of w from a mixture of K Gaussians and the others from N(0, 1); float64.

    mean: (Z,). basis: (Z, Z). weights: (K,), of sum 1. means: (K, d). scales: (K, d, d), Cholesky factors.
    """

    mean: Tensor
    basis: Tensor
    weights: Tensor
    means: Tensor
    scales: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """ln p(z): (..., Z) → (...), in nats."""
        w = torch.linalg.solve(self.basis.T, z.double().cpu() - self.mean, left=False)
        modelled = self.means.shape[1]
        of_rest = -0.5 * (np.log(2 * np.pi) + w[..., modelled:].square()).sum(-1)
        return self._distribution.log_prob(w[..., :modelled]) + of_rest - torch.linalg.slogdet(self.basis).logabsdet

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, Z), float32, on the CPU."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        w = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        modelled = self.means.shape[1]
        w[:, :modelled] = self.means[component] + (self.scales[component] @ w[:, :modelled, None])[..., 0]
        return (self.mean + w @ self.basis.T).float()

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def is_valid(self, latents: int) -> bool:
        """Whether the tensors, which may come from a stranger's file, are a density over this many latents."""
        if self.means.dim() != 2 or not 1 <= self.means.shape[1] <= latents:
            return False
        components, modelled = self.means.shape
        shapes = ((latents,), (latents, latents), (components,), (components, modelled), (components, *[modelled] * 2))
        if any(t.shape != shape for t, shape in zip(self.tensors().values(), shapes, strict=True)):
            return False
        if not all(t.dtype == torch.float64 and bool(t.isfinite().all()) for t in self.tensors().values()):
            return False
        cholesky = torch.equal(self.scales, self.scales.tril())
        positive = bool((self.scales.diagonal(dim1=-2, dim2=-1) > 0).all() and (self.weights >= 0).all())
        invertible = bool(torch.linalg.slogdet(self.basis).logabsdet.isfinite())
        return cholesky and positive and invertible and abs(float(self.weights.sum()) - 1) <= 1e-6

    @property
    def _distribution(self) -> Any:
        components = MultivariateNormal(self.means, scale_tril=self.scales, validate_args=False)
        return MixtureSameFamily(Categorical(self.weights, validate_args=False), components, validate_args=False)


@dataclass(frozen=True)
class PrincipalAxes:
    """z = mean + basis·w, with w of mean 0 and covariance I; the first w has the largest variance in z."""

    mean: Matrix
    basis: Matrix

    @classmethod
    def of(cls, mu: Matrix, logvar: Matrix, shrinkage: float = 0.0) -> "PrincipalAxes":
        """Of the aggregate posterior, whose covariance is Cov_x(μ) + diag E_x[σ²].

        mu, logvar: (N, Z), float64. shrinkage: share of I in the covariance (Ledoit & Wolf 2004).
        """
        covariance = np.atleast_2d(np.cov(mu.T, bias=True)) + np.diag(np.exp(logvar).mean(0))
        covariance = (1 - shrinkage) * covariance + shrinkage * np.eye(len(covariance))
        variances, axes = np.linalg.eigh(covariance)
        variances = np.maximum(variances, np.finfo(np.float64).eps * variances[-1])  # rounding can make them negative
        return cls(mu.mean(0), (axes * np.sqrt(variances))[:, ::-1])

    def coordinates(self, z: Matrix) -> Matrix:
        """w: (N, Z) → (N, Z)."""
        return np.linalg.solve(self.basis, (z - self.mean).T).T.astype(np.float64, copy=False)


def fit_gaussian(axes: PrincipalAxes) -> Mixture:
    """The Gaussian with the moments of q(z)."""
    return _mixture(axes, np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1)))


def fit(axes: PrincipalAxes, w: Matrix, components: int, smoothing: float, seed: int) -> Mixture:
    """By expectation maximisation.

    w: (N, d), samples of q(z) in the first d coordinates of `axes`. smoothing: added to each variance of the
    components, where that of all images is 1; it keeps a component from shrinking onto a single image.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    model = GaussianMixture(components, reg_covar=smoothing, max_iter=ITERATIONS, random_state=seed)
    # One thread: their number would decide the last bits. Limited after the imports, which load the libraries.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # held-out images judge it either way
        model.fit(w)
    return _mixture(axes, model.weights_, model.means_, np.linalg.cholesky(model.covariances_))


def _mixture(axes: PrincipalAxes, weights: Matrix, means: Matrix, scales: Matrix) -> Mixture:
    arrays = (axes.mean, axes.basis, weights, means, scales)
    return Mixture(*(torch.from_numpy(array.copy()) for array in arrays))  # in C order, which files need
