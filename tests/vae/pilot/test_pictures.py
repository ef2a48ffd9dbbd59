"""The pilot's sheet: which points of the curve it shows, and what is in its rows."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.parameters import parse
from helpers.trainings import CPU, TINY, TRAIN, VALID
from PIL import Image

from vae.collapse.linear_theory import Spectrum, spectrum_for
from vae.collapse.pilot_curve import PilotCurve
from vae.compute.random import generator
from vae.config.parameters import Parameters
from vae.inference import grids
from vae.pilot import pictures, training
from vae.pilot.training import Pilot


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(training, "STEPS", 6)
    return


def learnt(p: Parameters) -> Pilot:
    found = training.learn(p, spectrum_for(p, TRAIN), TRAIN, CPU)
    assert found is not None
    return found


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_points_halve_the_rate_again_and_again_down_to_one_nat() -> None:
    s = np.geomspace(0.01, 1.0, 9)
    rates = np.linspace(16, 0, 9)[:, None]
    curve = PilotCurve(Spectrum(np.array([1.0]), 2.0, 16, 100), s, rates, np.linspace(0.1, 2, 9))
    shown = pictures.thresholds(curve)
    np.testing.assert_allclose([curve.rates(t).sum() for t in shown], [16, 8, 4, 2, 1], rtol=1e-6)
    assert shown[0] == pytest.approx(0.01)
    dead = PilotCurve(Spectrum(np.array([0.011]), 2.0, 16, 100), s, rates / 100, curve.measured_error)
    np.testing.assert_allclose(pictures.thresholds(dead)[[0, -1]], [0.01, 1.0])


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_sheet_has_the_originals_and_a_row_for_each_point_and_repeats_to_the_bit(likelihood: str) -> None:
    p = parse({**TINY, "objective.likelihood": likelihood})
    pilot = learnt(p)
    found = pictures.draw(p, pilot, VALID)
    assert len(found.thresholds) == pictures.ROWS and np.all(np.diff(found.thresholds) >= 0)
    rows = np.split(opened(found.png), pictures.ROWS + 1)
    chosen = VALID[np.linspace(0, len(VALID) - 1, pictures.IMAGES).astype(int)]
    white = np.full((1 + pictures.SAMPLES, *chosen.shape[1:]), 255, np.uint8)
    np.testing.assert_array_equal(rows[0], pictures.sheet([np.concatenate([chosen, white])]))
    with torch.no_grad():
        x = torch.from_numpy(chosen).permute(0, 3, 1, 2) / 255
        output = pilot.network(x, torch.zeros(len(x), 3), torch.full((len(x),), -1.0))[0]
    lowest = pictures.decoded(p, pilot, chosen, pilot.curve.thresholds[:1])[0]
    mean = output.sigmoid() if likelihood == "bernoulli" else output
    np.testing.assert_allclose(lowest, grids.as_bytes(mean.permute(0, 2, 3, 1).numpy()), atol=1)
    again = pictures.draw(p, learnt(p), VALID)
    assert again.png == found.png and again.recall == found.recall and again.frechet == found.frechet
    assert len(found.recall) == len(found.frechet) == pictures.ROWS
    assert all(share is not None and 0 <= share <= 1 for share in found.recall)


def test_samples_have_standardised_latents_and_the_same_noise_at_each_threshold() -> None:
    p = parse(TINY)
    pilot = learnt(p)
    vae = pilot.network.vae
    with torch.no_grad():
        vae.posterior.weight.zero_()
        vae.posterior.bias.copy_(torch.tensor([5.0, 5.0, 5.0, 2.0, 2.0, 2.0]))  # q(z|x) = N(5, e²) for all images
        for modulation in pilot.network.modulations:
            modulation.weight.zero_()
            modulation.bias.zero_()
    low, high = (float(s) for s in pilot.curve.thresholds[[0, -1]])
    drawn = pictures.samples(p, pilot, VALID, low, 7)
    np.testing.assert_array_equal(drawn, pictures.samples(p, pilot, VALID, high, 7))
    with torch.no_grad():
        noise = torch.randn(7, 3, generator=generator(p.seed, "pilot samples", 0, torch.device("cpu")))
        mean = vae.decode(5 + np.e * noise).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(drawn, grids.as_bytes(mean), atol=1)


def test_samples_that_are_the_images_themselves_are_the_best() -> None:
    p = parse(TINY)
    noise = np.random.default_rng(0).integers(0, 256, VALID.shape, np.uint8)
    mean = np.repeat(VALID.mean(0, keepdims=True).astype(np.uint8), len(VALID), axis=0)
    (same, noisy, collapsed), (near, far, flat) = pictures.quality(p, learnt(p), VALID, [VALID, noise, mean])
    assert same == 1.0 and noisy is not None and noisy < 0.9 and collapsed is not None and collapsed < 0.1
    assert near == pytest.approx(0, abs=1e-6) and far is not None and flat is not None and min(far, flat) > 0.1
    assert pictures.quality(p, learnt(p), VALID[:5], [VALID]) == ([None], [None])


def test_an_autoregressive_pilot_generates_and_does_not_copy() -> None:
    p = parse({**TINY, "model.architecture": "autoregressive"})
    pilot = learnt(p)
    images = VALID[:2]
    drawn = pictures.decoded(p, pilot, images, pilot.curve.thresholds[:1])[0]
    vae = pilot.network.vae
    with torch.no_grad():
        mu = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)[0]
        generated = grids.as_bytes(vae.decode(mu).permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(drawn, generated, atol=1)
    sheet = pictures.draw(p, pilot, VALID)
    assert len(sheet.thresholds) == pictures.ROWS and len(opened(sheet.png)) % (pictures.ROWS + 1) == 0
    assert sheet.recall == sheet.frechet == [None] * pictures.ROWS


@pytest.mark.parametrize("why", ["no pilot", "too large to generate"])
def test_without_pictures_there_are_the_originals(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = parse({**TINY, "model.architecture": "conv" if why == "no pilot" else "autoregressive"})
    monkeypatch.setattr(pictures, "MOST_PIXELS", 63)
    found = pictures.draw(p, None if why == "no pilot" else learnt(p), VALID[:3])
    assert len(found.thresholds) == 0 and found.recall == found.frechet == []
    np.testing.assert_array_equal(opened(found.png), pictures.sheet([VALID[:3]]))


def test_a_tile_of_a_large_photo_is_small() -> None:
    photos = np.full((2, 256, 128, 3), 7, np.uint8)
    sheet = pictures.sheet([photos, photos])
    factor = grids.PIXELS // (2 * 33)
    assert sheet.shape == (2 * 65 * factor, 2 * 33 * factor, 3)
    assert sheet[0, 0].tolist() == [7, 7, 7] and sheet[-1, -1].tolist() == [255, 255, 255]
