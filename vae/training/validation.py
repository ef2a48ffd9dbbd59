"""An epoch's validation: on the whole validation split, at the final β, with the likelihood of that epoch."""

import math
from dataclasses import dataclass

import numpy as np

from vae.compute.devices import Compute
from vae.config.resolved import ResolvedParameters
from vae.metrics.measurement import Measurement, fitted_sigma, measure
from vae.models.likelihood import Likelihood, known_likelihood
from vae.models.vae import VAE
from vae.training.history import Row
from vae.training.step import memory_errors_explained

SIGMA_IMAGES = 512  # of the training split, for the σ of each epoch's validation; all of it for the kept model


@dataclass(frozen=True)
class EpochValidation:
    """Of the model that would be kept; likelihood: p(x|z) with the σ of this epoch."""

    measured: Measurement
    likelihood: Likelihood

    def row(self, p: ResolvedParameters) -> Row:
        """The validation columns of the history. The loss uses the final β, whatever the ramp or a control does."""
        return {
            "valid/loss": self.measured.distortion + p.elbo.beta * self.measured.rate,
            "valid/reconstruction": self.measured.distortion,
            "valid/kl": self.measured.rate,
            "valid/elbo": self.measured.elbo,
            "valid/mse": self.measured.mse,
            "valid/mse_sampled": self.measured.mse_sampled,
            "valid/active_units": self.measured.active_units(),
            "valid/informative_units": self.measured.informative_units(),
        }


def sigma_sample(train_images: np.ndarray) -> np.ndarray:
    """Up to `SIGMA_IMAGES` images, evenly spaced."""
    return train_images[:: math.ceil(len(train_images) / SIGMA_IMAGES)]


def validate(
    p: ResolvedParameters, model: VAE, valid_images: np.ndarray, train_sample: np.ndarray, compute: Compute
) -> EpochValidation:
    """train_sample: images of the training split that an optimal σ is fitted to."""
    with memory_errors_explained(p.train):
        likelihood = likelihood_of(p, model, train_sample, compute)
        return EpochValidation(measure(model, valid_images, likelihood, compute, p.seed), likelihood)


def likelihood_of(p: ResolvedParameters, model: VAE, train_images: np.ndarray, compute: Compute) -> Likelihood:
    """p(x|z) with its σ: known from the parameters, learned, or fitted to training images."""
    known = known_likelihood(p.elbo, model.log_sigma)
    if known is not None:
        return known
    kind = p.objective.likelihood
    return Likelihood(kind, fitted_sigma(model, train_images, compute, p.seed, kind))
