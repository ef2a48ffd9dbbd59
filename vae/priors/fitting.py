"""A prior fitted to the latents after training (ex-post density estimation, Ghosh 2020, section 4).

Where a model encodes and decodes well but its aggregate posterior q(z) is not the prior that it was trained with,
samples from that prior are of places that no image was encoded to. A density fitted to q(z) of the training split is
a prior without those holes; encoder and decoder are unchanged. Among N(0, I), Gaussian mixtures and a flow, the
likelihood of held-out images chooses. A prior that was learned with the model takes the place of N(0, I): it stays
unless a fitted one is better.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae.priors import flow, mixture
from vae.priors.aggregate import Posteriors, draw
from vae.priors.mixture import Matrix, PrincipalAxes
from vae.priors.standard import STANDARD, Prior, StandardNormal

FEWEST_IMAGES = 40  # of which four are held out
MOST_IMAGES = 20_000
HELD_OUT = 10  # one image in so many
POINTS = 5_000  # samples of z to fit a mixture to: several of each image where there are fewer images
HELD_OUT_DRAWS = 4
OTHER_NOISE = 1_000  # a seed this far: with the same noise, z of other images are alike where posteriors are wide
DIRECTIONS = (8, 16, 32, 64)
COMPONENTS = (2, 5, 10, 20, 40, 80)
SHRINKAGE = (0.0, 0.05, 0.15, 0.4)  # of the covariance towards I: more for few images of many latents
SMOOTHING = (0.05, 0.02, 0.005)  # of the best mixture the last two are tried as well
IMAGES_PER_NUMBER = 2  # for each direction of each component
FLOW_IMAGES = 5_000  # with 1,300 digits a flow is worse than any mixture
BETTER = 0.1  # nats by which a fitted prior has to be better than the one that the model was trained with


@dataclass(frozen=True)
class Fitted:
    """The best candidate.

    Attributes:
        log_likelihood: E_q ln r(z) of held-out training images in nats, by candidate; empty where there were too few.
    """

    prior: Prior
    name: str
    log_likelihood: dict[str, float]


def fit(mu: Posteriors, logvar: Posteriors, seed: int, learned: tuple[str, Prior] | None = None) -> Fitted:
    """mu, logvar: (N, Z), of the training split. learned: the prior that the model was trained with, by its name;
    None is N(0, I)."""
    standard = StandardNormal(mu.shape[1])
    own, best = learned or (STANDARD, standard)
    name = own
    if len(mu) < FEWEST_IMAGES or not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        return Fitted(best, name, {})
    order = np.random.default_rng(seed).permutation(len(mu))[:MOST_IMAGES]
    held_out, fitted_to = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    judged = _samples(mu[held_out], logvar[held_out], HELD_OUT_DRAWS, seed)

    found = {STANDARD: likelihood(standard, judged), own: likelihood(best, judged)}
    for candidate, prior, reached in _candidates(mu[fitted_to], logvar[fitted_to], judged, seed):
        if reached > found[name] + (BETTER if name == own else 0):
            best, name = prior, candidate
        found[candidate] = max(reached, found.get(candidate, -np.inf))
    return Fitted(best, name, found)


def likelihood(prior: Prior, z: NDArray[np.float64]) -> float:
    """E ln p(z), in nats. z: (N, Z)."""
    return float(prior.log_prob(torch.from_numpy(z)).mean())


def _candidates(
    mu: Posteriors, logvar: Posteriors, judged: NDArray[np.float64], seed: int
) -> Iterator[tuple[str, Prior, float]]:
    """Name, prior, and `likelihood` of the held-out samples."""
    images, latents = mu.shape
    axes = _axes(mu.astype(np.float64), logvar.astype(np.float64), judged)
    gaussian = mixture.fit_gaussian(axes)
    yield "Gaussian", gaussian, likelihood(gaussian, judged)
    w = axes.coordinates(_samples(mu, logvar, -(-POINTS // images), seed + OTHER_NOISE))
    best, of_best = -np.inf, (0, 0)
    for directions in sorted({min(d, latents) for d in DIRECTIONS}):
        before = -np.inf
        for components in COMPONENTS:
            if components * directions * IMAGES_PER_NUMBER > images:
                break
            fitted = mixture.fit(axes, w[:, :directions], components, SMOOTHING[0], seed)
            reached = likelihood(fitted, judged)
            yield _named(components, directions, latents), fitted, reached
            if reached > best:
                best, of_best = reached, (directions, components)
            if reached < before:
                break  # more components fit these images, not others
            before = reached
    directions, components = of_best
    for smoothing in SMOOTHING[1:] if components else ():
        fitted = mixture.fit(axes, w[:, :directions], components, smoothing, seed)
        yield _named(components, directions, latents), fitted, likelihood(fitted, judged)
    if images >= FLOW_IMAGES and latents > 1:
        fitted_flow = flow.fit(mu, logvar, judged, seed)
        yield "masked autoregressive flow", fitted_flow, likelihood(fitted_flow, judged)


def _axes(mu: Matrix, logvar: Matrix, judged: Matrix) -> PrincipalAxes:
    """Of a covariance shrunk towards I as far as the held-out images ask for."""
    tried = [PrincipalAxes.of(mu, logvar, shrinkage) for shrinkage in SHRINKAGE]
    return max(tried, key=lambda axes: likelihood(mixture.fit_gaussian(axes), judged))


def _named(components: int, directions: int, latents: int) -> str:
    where = "" if directions == latents else f" in {directions} of {latents} directions"
    return f"mixture of {components} Gaussians{where}"


def _samples(mu: Posteriors, logvar: Posteriors, draws: int, seed: int) -> NDArray[np.float64]:
    """(draws·N, Z)."""
    return np.concatenate([draw(mu, logvar, seed + number) for number in range(draws)])
