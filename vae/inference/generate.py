"""Images from a model: reconstructions, samples from the prior, traversals of its latents.

All are means of p(x|z): float32 (…, H, W, C), about [0, 1].
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.compute.batches import to_pixels
from vae.compute.devices import Compute
from vae.compute.random import generator
from vae.inference.grids import as_bytes
from vae.metrics.measurement import batch_size, evaluation_batches
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.models.vae import VAE
from vae.priors.standard import Prior

Pictures = NDArray[np.float32]


@torch.no_grad()
def reconstruct(model: VAE, images: np.ndarray | Tensor, likelihood: Likelihood, compute: Compute) -> np.ndarray:
    """The mean of p(x|z = μ): uint8 (N, H, W, C) → uint8 of the same shape.

    An autoregressive decoder generates it from μ alone, without the image.
    """
    parts = []
    for x in evaluation_batches(model, images, compute.device):
        with compute.autocast():
            pixels = likelihood.mean(model.decode(model.encode(x)[0]))
        parts.append(as_bytes(pixels.permute(0, 2, 3, 1).cpu().numpy()))
    return np.concatenate(parts)


@torch.no_grad()
def samples(saved: Saved, prior: Prior, count: int, compute: Compute, seed: int) -> Pictures:
    """With z from a prior: `saved.prior`, or N(0, I)."""
    z = prior.sample(count, generator(seed, "prior", 0))
    return decoded(saved.model, saved.likelihood, z, compute)


@torch.no_grad()
def traversals(
    saved: Saved, image: NDArray[np.uint8], latents: NDArray[np.int64], values: NDArray[np.float64], compute: Compute
) -> Pictures:
    """One latent at a time set to each of the values, the others at the image's own μ; of a map a channel, everywhere.

    image: uint8 (H, W, C). latents: which latents or channels, (L,). values: (V,). → (L·V, H, W, C), latent by latent.
    """
    with compute.autocast():
        mu, _ = saved.model.encode(to_pixels(image[None], compute.device))
    z = mu.unflatten(1, (saved.model.units, saved.model.places)).repeat(len(latents) * len(values), 1, 1)
    rows = torch.arange(len(z), device=z.device)
    z[rows, torch.as_tensor(np.repeat(latents, len(values)), device=z.device)] = torch.as_tensor(
        np.tile(values, len(latents)), dtype=z.dtype, device=z.device
    )[:, None]
    return decoded(saved.model, saved.likelihood, z.flatten(1), compute)


@torch.no_grad()
def decoded(model: VAE, likelihood: Likelihood, z: Tensor, compute: Compute) -> Pictures:
    """In batches, so that memory holds little more than the pictures. z: (N, Z)."""
    model.eval()
    parts = []
    for part in z.split(batch_size(*model.image_shape[1:])):
        with compute.autocast():
            output = model.decode(part.to(compute.device))
        parts.append(likelihood.mean(output).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)
