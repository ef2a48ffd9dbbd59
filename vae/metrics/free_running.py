"""An autoregressive decoder without teacher forcing: what it draws from z alone, and what z is worth to it.

With the pixels of the image itself before it, such a decoder predicts the next one well without any latents: the
teacher-forced error says little about them.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vae.compute.batches import in_order
from vae.compute.devices import Compute
from vae.compute.random import generator
from vae.metrics.mean_image import MeanImage
from vae.models.likelihood import Likelihood, squared_error
from vae.models.pixelcnn import PixelCNN
from vae.models.vae import VAE

MOST_IMAGES = 128  # a picture takes a pass for each of its pixels


@dataclass(frozen=True)
class FreeRunning:
    """Of a sample of a split.

    Attributes:
        mse: mean squared error of a pixel in [0, 1], each predicted from z and the decoder's own pixels before it.
        mean_image_mse: of the mean image, for the same sample.
        gain: how much the teacher-forced distortion grows where z is another image's, in nats per image. 0 where the
            decoder ignores z. With the exact posterior it is at least I(x; z).
    """

    mse: float
    mean_image_mse: float
    gain: float


@torch.no_grad()
def free_running(
    model: VAE, images: np.ndarray, mean_image: MeanImage, likelihood: Likelihood, compute: Compute, seed: int
) -> FreeRunning | None:
    """Of at most 128 images, evenly spaced, one draw of z each; None if the decoder is not autoregressive.

    images: uint8 (N, H, W, C), N at least 2. The other image is the one half the sample away, since neighbours in a
    split may be alike.
    """
    if not isinstance(model.decoder, PixelCNN):
        return None
    sample = np.asarray(images[:: -(-len(images) // MOST_IMAGES)])
    training = model.training
    model.eval()
    (x,) = in_order(sample, MOST_IMAGES, compute.device)
    noise = torch.randn(
        len(x), model.latent_dim, generator=generator(seed, "free running", 0, compute.device), device=compute.device
    )
    with compute.autocast():
        mu, logvar = model.infer(x)(noise)
        z = mu + torch.exp(0.5 * logvar) * noise
        drawn = likelihood.mean(model.decode(z))
        own, others = (model.decode(latents, x) for latents in (z, z.roll(len(x) // 2, 0)))
    model.train(training)
    gain = (likelihood.log_prob(x, own) - likelihood.log_prob(x, others)).double().mean()
    mse = squared_error(x, drawn).double().mean() / x[0].numel()
    return FreeRunning(float(mse), mean_image.mse(sample), float(gain))
