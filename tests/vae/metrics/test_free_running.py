"""Decoders whose weights are set by hand: one that sees z alone, one that copies the pixel to the left."""

import numpy as np
import pytest
import torch
from helpers.trainings import CPU, VALID, params, run

from vae.collapse import linear_theory, restarts
from vae.metrics.free_running import MOST_IMAGES, free_running
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import measure
from vae.models.likelihood import Likelihood
from vae.models.pixelcnn import FIRST, PixelCNN
from vae.models.vae import VAE
from vae.priors.fitting import Fitted
from vae.priors.standard import STANDARD, StandardNormal

SIDE, FILTERS = 8, 4
NOISE = Likelihood("gaussian", 0.2)


def model(architecture: str = "autoregressive") -> VAE:
    torch.manual_seed(0)
    return VAE((1, SIDE, SIDE), architecture, 3, [FILTERS], batch_norm=False).eval()  # type: ignore[arg-type]


def decoder_of(made: VAE) -> PixelCNN:
    """Its masked layers do nothing."""
    decoder = made.decoder
    assert isinstance(decoder, PixelCNN)
    with torch.no_grad():
        for layer in (decoder.first, *decoder.hidden):
            for weights in layer.parameters():
                weights.zero_()
    return decoder


def flat(count: int) -> np.ndarray:
    """Images of one grey each: uint8 (count, 8, 8, 1)."""
    grey = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 1), dtype=np.uint8)
    return grey.repeat(SIDE, 1).repeat(SIDE, 2)


def test_of_a_decoder_that_sees_z_alone_it_is_the_usual_error() -> None:
    made, images = model(), flat(100)
    decoder = decoder_of(made)
    with torch.no_grad():
        decoder.output.weight.div_(10)
        decoder.output.bias.fill_(0.5)  # within [0, 1], where a drawn pixel is not clipped
        made.posterior.bias[3:].fill_(-30)  # σ near 0: z = μ, whatever the noise
    found = free_running(made, images, MeanImage.of(images), NOISE, CPU, seed=0)
    assert found is not None
    measured = measure(made, images, NOISE, CPU, seed=0)
    assert found.mse == pytest.approx(measured.mse, rel=1e-4)
    assert found.mean_image_mse == pytest.approx(np.var(images / 255), rel=1e-6)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        others = made.decode(made.encode(x)[0].roll(50, 0))
    assert found.gain == pytest.approx(-float(NOISE.log_prob(x, others).mean()) - measured.distortion, rel=1e-3)
    assert found.gain != 0


def test_a_decoder_that_copies_its_neighbour_looks_good_only_with_the_image_before_it() -> None:
    """Teacher forced, it misses the first column alone; by itself it copies black into black. z is worth nothing."""
    made, images = model(), flat(100)
    decoder, large = decoder_of(made), 20.0  # silu(20 + x) = 20 + x
    with torch.no_grad():
        for layer in (*decoder.condition, decoder.output):
            for weights in layer.parameters():
                weights.zero_()
        decoder.first.weight[0, 0, FIRST // 2, FIRST // 2 - 1] = 1
        decoder.first.bias[0] = large
        decoder.output.weight[0, 0] = 1
        decoder.output.bias[0] = -large
    grey = images[:, 0, 0, 0] / 255
    found = free_running(made, images, MeanImage.of(images), NOISE, CPU, seed=0)
    assert found is not None and found.gain == 0
    assert measure(made, images, NOISE, CPU, seed=0).mse == pytest.approx((grey**2).mean() / SIDE, rel=1e-3)
    assert found.mse == pytest.approx((grey**2).mean(), rel=1e-3)
    assert found.mse > found.mean_image_mse


def test_of_many_images_a_sample_is_measured_and_of_another_decoder_nothing() -> None:
    images = flat(3 * MOST_IMAGES - 5)
    mean = MeanImage.of(images)
    whole, sample = (free_running(model(), x, mean, NOISE, CPU, seed=0) for x in (images, images[::3]))
    assert whole == sample and whole != free_running(model(), images[:60], mean, NOISE, CPU, seed=0)
    assert free_running(model("conv"), images, mean, NOISE, CPU, seed=0) is None
    training = model().train()
    free_running(training, images[:4], mean, NOISE, CPU, seed=0)
    assert training.training


def test_a_training_is_judged_by_it() -> None:
    p = params({"model.architecture": "autoregressive", "train.epochs": 2})
    spectrum = linear_theory.spectrum_for(p, VALID)
    evidence = restarts.evidence_of(p, run(p), Fitted(StandardNormal(3), STANDARD, {}), spectrum, VALID, VALID, CPU)
    assert evidence.free_running is not None and evidence.free_running.mse > 0
