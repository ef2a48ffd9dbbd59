"""Standardised latents: an exact change of a trained model after which q(z) has mean 0 and variance 1.

With m and s the mean and standard deviation of each latent over the training split, z' = (z − m)/s is folded into the
posterior layer and the decoder's first layer. Every picture stays as it was, and so does I(x; z); the rate falls by
½ Σ (s² + m² − 1 − ln s²), the part of KL(q(z) ‖ N(0, I)) that lies in these moments (Hoffman & Johnson 2016).

Of a map of latents m and s are those of a channel, over all images and places: one affine map of each channel.

Of two levels nothing changes: the coordinates of the lower one are relative to p(z₁|z₂), in which N(0, 1) is that
prior itself, and z₂ passes several layers.

A learned prior changes with the latents, so that the rate against it stays as it was. What is measured against N(0, I)
besides (MMD, traversals from −3 to 3) keeps its meaning.
"""

import math

import numpy as np
import torch
from torch import nn

from vae.metrics.measurement import Measurement
from vae.models.networks import GatedLinear
from vae.models.pixelcnn import PixelCNN
from vae.models.vae import VAE

ROUNDING = 0.002  # of an error, in bf16: 0.0003 of digits


@torch.no_grad()
def standardise(model: VAE, train: Measurement) -> bool:
    """Changes the weights in place; returns whether it did.

    Not of two levels of latents, nor where the parameters fix the scale of the latents (mean batch norm, a ceiling of
    the log variance below 0), nor where moments are not finite. Exact but where a log variance is at its bounds:
    `is_exact` finds out.

    train: of the training split.
    """
    moments = (train.aggregate_mean, train.aggregate_variance)
    if model.lower is not None:
        return False
    if model.mean_norm is not None or model.logvar_max < 0 or not all(np.isfinite(m).all() for m in moments):
        return False
    weight = model.posterior.weight
    mean = torch.from_numpy(train.aggregate_mean).to(weight)
    deviation = torch.from_numpy(np.sqrt(train.aggregate_variance)).to(weight)
    if not bool((deviation > 0).all()):
        return False
    first = first_layer(model)
    assert first.bias is not None
    first.bias.add_(first.weight.flatten(1) @ mean)
    first.weight.mul_(deviation.view(1, -1, *[1] * (first.weight.dim() - 2)))
    scale = torch.cat([1 / deviation, torch.ones_like(deviation)])
    shift = torch.cat([-mean / deviation, -2 * deviation.log()])
    assert model.posterior.bias is not None
    model.posterior.weight.mul_(scale.view(-1, *[1] * (model.posterior.weight.dim() - 1)))
    model.posterior.bias.mul_(scale).add_(shift)
    if model.prior is not None:
        model.prior.standardise(mean, deviation)
    return True


def is_exact(before: Measurement, after: Measurement) -> bool:
    """Whether the pictures stayed: a log variance that was cut off at its bounds is cut off elsewhere afterwards."""
    return math.isclose(after.mse_sampled, before.mse_sampled, rel_tol=ROUNDING)


def first_layer(model: VAE) -> nn.Linear | nn.Conv2d:
    """The decoder's, which takes the latents; of a map a 1×1 convolution."""
    decoder = model.decoder.conditions if isinstance(model.decoder, PixelCNN) else model.decoder
    assert isinstance(decoder, nn.Sequential)
    first = decoder[0].linear if isinstance(decoder[0], GatedLinear) else decoder[0]
    assert isinstance(first, nn.Linear | nn.Conv2d)
    return first
