"""What reconstructions keep: bands of known waves, blurs with a known transfer function, and the class."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.by_hand import SIDE
from helpers.far import Far, images
from helpers.models import config
from helpers.trainings import CPU
from scipy.ndimage import gaussian_filter1d

from vae.config.sections import Model
from vae.evaluation.detail import Decoded, Detail, Spectrum, _colour, _power, bands, detail, distance
from vae.evaluation.probe import Probe
from vae.evaluation.yardstick import Reading
from vae.metrics.measurement import encode
from vae.models.saved import Saved
from vae.priors.standard import StandardNormal


def wave(height: int, width: int, period: float, across: bool) -> np.ndarray:
    """Stripes of half a period: (1, H, W, 1)."""
    y, x = np.mgrid[:height, :width] + 0.5
    return (0.5 + 0.4 * np.cos(2 * math.pi * (x if across else y) / period))[None, :, :, None]


def noise(count: int, height: int, width: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(count, height, width, channels))


def blurred(pictures: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian, mirrored at the edges."""
    for axis in (1, 2):
        pictures = gaussian_filter1d(pictures, sigma, axis=axis, mode="reflect", truncate=8)
    return pictures


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize(("height", "width"), [(192, 192), (96, 192), (192, 96)])
@pytest.mark.parametrize(("period", "octave"), [(3, 0), (4, 0), (6, 1), (8, 1), (12, 2), (16, 2), (32, 3)])
def test_the_power_of_a_wave_is_in_the_octave_of_its_width(
    height: int, width: int, period: float, octave: int, across: bool
) -> None:
    stripes = wave(height, width, period, across)
    octaves = Spectrum.of(stripes, stripes).image.reshape(-1, 4).sum(1)
    assert octaves[octave] == pytest.approx(octaves.sum()) and octaves.sum() > 1


def test_a_wave_that_ends_within_its_period_hardly_counts_as_another() -> None:
    stripes = wave(32, 64, 12, False)
    octaves = Spectrum.of(stripes, stripes).image.reshape(-1, 4).sum(1)
    assert octaves[2] > 0.9 * octaves.sum()


def test_power_is_that_of_the_pixels_without_their_mean() -> None:
    pictures = noise(5, 12, 20, 3)
    found = Spectrum.of(pictures, pictures - 0.1)
    about_mean = pictures - pictures.mean((1, 2), keepdims=True)
    assert found.image.sum() == pytest.approx(np.square(about_mean).sum())
    assert found.error == pytest.approx(0, abs=1e-20), "a shift of the mean is no detail"


def test_bands_end_at_powers_of_two_and_cover_every_width() -> None:
    found = bands(16, 64)
    assert found[0, 0] == -1 and (found.ravel()[1:] >= 0).all()
    assert [found[0, k] for k in (63, 32, 16, 8, 1)] == [0, 3, 7, 11, 23]  # widths 64/k: 1 to 64
    assert found[1, 0] == 15 and found[15, 63] == 0
    assert len(Spectrum.of(noise(1, 8, 8), noise(1, 8, 8)).kept) == 3


def test_without_an_error_all_is_kept_and_of_the_mean_image_nothing() -> None:
    pictures = noise(3, 16, 24, 3)
    exact = Spectrum.of(pictures, pictures)
    assert exact.kept == pytest.approx(1) and exact.finest == 1
    mean = Spectrum.of(pictures, np.broadcast_to(pictures.mean((1, 2), keepdims=True), pictures.shape))
    assert mean.kept == pytest.approx(0, abs=1e-9) and mean.finest == 24
    flat = Spectrum.of(np.full((2, 8, 8, 1), 0.5), np.full((2, 8, 8, 1), 0.4))
    assert math.isnan(flat.finest) and np.isnan(flat.kept).all()
    broken = Spectrum.of(pictures, np.full(pictures.shape, np.nan))
    assert math.isnan(broken.finest)


@pytest.mark.parametrize("sigma", [1.0, 1.7, 3.0])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96)])
def test_a_gaussian_blur_keeps_what_its_transfer_function_says(sigma: float, height: int, width: int) -> None:
    """H(f) = exp(−2π²σ²f²): 1 − (1 − H)² of a wave's power is kept, which is half at a width of 1/2f = 2.005 σ."""
    pictures = noise(8, height, width)
    found = Spectrum.of(pictures, blurred(pictures, sigma))
    frequency = np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width)[None] / (2 * width))
    kept = 1 - (1 - np.exp(-2 * (math.pi * sigma * frequency) ** 2)) ** 2
    expected = [kept[bands(height, width) // 4 == octave].mean() for octave in range(len(found.kept))]
    assert found.kept == pytest.approx(expected, abs=0.05)
    assert found.kept[0] < 0.5 < found.kept[-1]
    assert found.finest == pytest.approx(2.005 * sigma, rel=0.08)


def test_what_is_worse_than_left_out_is_below_zero() -> None:
    found = Spectrum.of(wave(32, 32, 8, True), 1 - wave(32, 32, 8, True))
    assert found.kept[1] == pytest.approx(-3)


def test_features_of_copies_lie_between_those_of_the_image_and_of_others() -> None:
    labels = np.array(["a", "b"] * 20 + [None], dtype=object)
    random = np.random.default_rng(0)
    originals = np.array([[10.0, 0, 0] if label == "a" else [0, 10.0, 0] for label in labels])
    originals = originals + random.normal(size=originals.shape)
    found = distance(originals, originals + 0.1 * random.normal(size=originals.shape), labels)
    assert found.same_class is not None and found.random is not None
    assert 0 < found.decoded < 0.1 * found.same_class and found.same_class < 0.2 * found.random
    assert distance(originals, 3 * originals, labels).decoded == pytest.approx(0, abs=1e-12)
    alone = distance(originals[:1], originals[:1], labels[:1])
    assert alone.same_class is alone.random is None


def halves(pictures: np.ndarray) -> np.ndarray:
    return pictures.astype(np.float64).mean((1, 3))


def saved_far(model: Any) -> Saved:
    made = config((1, SIDE, SIDE), Model(architecture="mlp", latent_dim=2, widths=[4]))
    return Saved(model, made, StandardNormal(2), "0" * 64)


class Mirrored(Far):
    """Decodes the other of the two greys in each column."""

    def decode(self, z: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        return super().decode(z, x).flip(3)


@pytest.mark.parametrize("model", [Far(), Mirrored()])
def test_a_decoder_that_copies_keeps_the_class_and_one_that_mirrors_loses_it(model: Far) -> None:
    train, test = images(300, 0), images(200, 1)
    classes = [np.where(x[:, 0, 0, 0] > x[:, 0, 1, 0], "left", "right").astype(object) for x in (train, test)]
    probe = Probe.fit(halves(train).astype(np.float32), classes[0], 0)
    assert probe is not None
    mu, _ = encode(model, test, CPU)  # type: ignore[arg-type]  # written by hand
    found = detail(saved_far(model), test, classes[1], mu, {"pixels": probe}, {"pixels": halves}, CPU)
    assert found is not None and found.colour is None and found.distance is None
    metrics, read = found.metrics(), found.decoded["pixels"]
    assert read.originals.accuracy.value > 0.95
    if isinstance(model, Mirrored):
        assert metrics["decoded_probe_pixels"] < 0.05 and metrics["decoded_share_pixels"] < 0.05
        sentence = next(found.findings())
        assert sentence.startswith("A classifier of the originals, by 64 principal components of the pixels, is right")
    else:
        assert np.array_equal(read.copies.right, read.originals.right)
        assert metrics["decoded_share_pixels"] == 1 and metrics["detail_width"] == 1
        assert list(found.findings()) == []


def test_latents_that_are_not_finite_have_none_and_images_without_classes_no_probe() -> None:
    test = images(20, 1)
    broken = np.full((20, 2), np.nan, np.float32)
    assert detail(saved_far(Far()), test, np.full(20, None), broken, {}, {}, CPU) is None
    mu, _ = encode(Far(), test, CPU)  # type: ignore[arg-type]
    found = detail(saved_far(Far()), test, np.full(20, None), mu, {}, {"frozen": halves}, CPU)
    assert found is not None and found.decoded == {} and found.distance and found.distance.same_class is None


def test_what_is_said_of_lost_detail_and_colour() -> None:
    pictures = noise(4, 32, 32, 3)
    sharp, soft = (Spectrum.of(pictures, blurred(pictures, sigma)) for sigma in (0.01, 3.0))
    right, wrong = Reading(np.ones(100), np.empty(0)), Reading(np.arange(100) % 2.0, np.empty(0))
    said = list(Detail(soft, soft, None, {"pixels": Decoded(right, wrong)}).findings())
    assert said[0].endswith("is right for 50% of the reconstructions, 100% of the originals.")
    assert said[1].startswith("Reconstructions keep less than half of the power of detail finer than ")
    assert "and of differences of colour finer than" in said[1] and len(said) == 2
    only_colour = list(Detail(sharp, soft, None, {"pixels": Decoded(right, right)}).findings())
    assert len(only_colour) == 1 and "power of differences of colour finer" in only_colour[0]
    assert list(Detail(sharp, None, None, {}).findings()) == []
    frozen = {"pixels": Decoded(right, wrong), "frozen": Decoded(right, right)}
    assert list(Detail(sharp, None, None, frozen).findings()) == [], "the frozen features say more about the class"


def test_grey_photos_stored_in_colour_have_no_colour_to_lose() -> None:
    """Their three channels are equal, but a mean of them in float32 is not."""
    grey = noise(4, 16, 16, 1).astype(np.float32).repeat(3, 3)
    power = _power(_colour(grey))
    assert power.sum() == 0
