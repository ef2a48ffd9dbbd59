"""Latents and priors over them, made up."""

import numpy as np

from vae.priors import mixture
from vae.priors.aggregate import Posteriors
from vae.priors.mixture import Mixture, PrincipalAxes


def two_clusters(images: int, latents: int = 3, seed: int = 1) -> tuple[Posteriors, Posteriors]:
    """μ and ln σ² of images of two kinds, as an encoder may lay them: (N, Z) each."""
    random = np.random.default_rng(seed)
    side = np.where(np.arange(images) % 2, 3.0, -3.0)[:, None]
    mu = side + 0.5 * random.standard_normal((images, latents))
    return mu.astype(np.float32), np.full((images, latents), -2.0, np.float32)


def axes_of(mu: Posteriors, logvar: Posteriors) -> PrincipalAxes:
    return PrincipalAxes.of(mu.astype(np.float64), logvar.astype(np.float64))


def gaussian(latents: int) -> Mixture:
    """That of the two clusters."""
    return mixture.fit_gaussian(axes_of(*two_clusters(50, latents)))
