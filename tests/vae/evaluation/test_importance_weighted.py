"""The bound on the likelihood of a linear model, whose evidence has a closed form."""

import math

import numpy as np
import pytest
import torch
from helpers.by_hand import Plain
from helpers.trainings import CPU, blobs
from scipy.stats import multivariate_normal

from vae.evaluation.importance_weighted import importance_weighted_bound, is_binary
from vae.metrics.measurement import measure
from vae.models.likelihood import Likelihood

LATENTS, PIXELS, SIGMA = 3, 64, 0.1
LIKELIHOOD = Likelihood("gaussian", SIGMA)


class Linear(Plain):
    """Probabilistic PCA with its exact posterior; `spread` makes the posterior's variance wrong."""

    latent_dim = LATENTS

    def __init__(self, spread: float = 1.0) -> None:
        super().__init__()
        orthogonal, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(PIXELS, LATENTS)))
        self.weight = torch.tensor(orthogonal * [1.5, 0.8, 0.3], dtype=torch.float32)
        self.offset = torch.full((PIXELS,), 0.5)
        precision = 1 + self.weight.square().sum(0) / SIGMA**2
        self.mu_of = self.weight / SIGMA**2 / precision
        self.logvar = math.log(spread) - precision.log()

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu = (x.flatten(1) - self.offset) @ self.mu_of
        return mu, self.logvar.expand_as(mu)

    def decode(self, z: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        return (z @ self.weight.T + self.offset).reshape(-1, 1, 8, 8)

    def log_evidence(self, images: np.ndarray, latents: int = LATENTS) -> float:
        """ln p(x) of x ~ N(offset, WWᵀ + σ²I), averaged over images; W of the first latents only."""
        weight = self.weight.double().numpy()[:, :latents]
        covariance = weight @ weight.T + SIGMA**2 * np.eye(PIXELS)
        x = images.reshape(len(images), -1) / 255
        return float(multivariate_normal(self.offset.double().numpy(), covariance).logpdf(x).mean())


@pytest.mark.parametrize("kept", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("samples", [1, 7])
def test_with_the_exact_posterior_the_bound_is_the_evidence(kept: int | None, samples: int) -> None:
    """Pruned, it is that of the smaller model: W's columns are orthogonal, so each latent's posterior stays exact."""
    model, images = Linear(), blobs(300, 0)
    active = None if kept is None else np.arange(LATENTS) < kept
    bound = importance_weighted_bound(model, images, LIKELIHOOD, CPU, samples, 3, active)
    assert bound == pytest.approx(model.log_evidence(images, LATENTS if kept is None else kept), rel=1e-6)


def test_with_a_wrong_posterior_the_bound_lies_between_elbo_and_evidence() -> None:
    model, images = Linear(spread=2.5), blobs(300, 0)
    elbo = measure(model, images, LIKELIHOOD, CPU, 0).elbo
    few, many = (importance_weighted_bound(model, images, LIKELIHOOD, CPU, k, 0) for k in (5, 200))
    evidence = model.log_evidence(images)
    assert elbo + 0.3 < few < many < evidence
    assert evidence - many < 0.02


def test_the_bound_repeats_and_follows_the_seed() -> None:
    model, images = Linear(spread=2.5), blobs(20, 0)
    first, again, other = (importance_weighted_bound(model, images, LIKELIHOOD, CPU, 3, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_is_binary() -> None:
    images = np.zeros((700, 8, 8, 1), dtype=np.uint8)
    images[::2] = 255
    assert is_binary(images)
    images[-1, 0, 0] = 254
    assert not is_binary(images)
