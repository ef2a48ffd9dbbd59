import numpy as np
import torch
from helpers.by_hand import NOISE, ByHand, pictures
from helpers.trainings import CPU

from vae.inference.generate import reconstruct
from vae.metrics.measurement import encode
from vae.models.likelihood import Likelihood


def test_encode_and_reconstruct() -> None:
    images = pictures(5)
    model = ByHand([1.0, 3.0], [0.5, 0.1], lambda z: z[:, 0] * 2 - 0.5)
    mu, logvar = encode(model, images, CPU)
    np.testing.assert_allclose(mu, images[:, 0, :2, 0] / 255 * [1, 3], rtol=1e-6)
    np.testing.assert_allclose(logvar, np.log([[0.5, 0.1]] * 5), rtol=1e-6)
    decoded = reconstruct(model, images, NOISE, CPU)
    assert decoded.dtype == np.uint8 and decoded.shape == images.shape
    assert [int(picture[0, 0, 0]) for picture in decoded] == [0, 255, 0, 255, 0]  # −0.5 and 1.5, cut off
    grey = ByHand([0.0], [0.5], lambda z: torch.zeros(len(z)))
    assert (reconstruct(grey, images, Likelihood("bernoulli"), CPU) == 128).all()
