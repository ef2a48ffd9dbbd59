"""Spaces of features: what they keep of the images, and that a set is read in batches."""

import numpy as np
import pytest
import torch
from helpers.trainings import blobs

from vae.features.activations import frozen_features
from vae.features.network import is_installed
from vae.samples import features
from vae.samples.features import network_features, pixel_features

CPU = torch.device("cpu")


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def distances(points: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(points[:, None] - points, axis=-1))


def test_distances_are_those_of_the_pixels() -> None:
    images = blobs(200, 0)
    found = pixel_features(images[:150], 0)
    points = found.of(images[150:])
    assert points.shape == (50, len(found.axes)) and points.dtype == np.float64
    assert len(found.axes) < 64
    pixels = distances(images[150:].reshape(50, -1) / 255)
    assert np.corrcoef(distances(points).ravel(), pixels.ravel())[0, 1] > 0.99
    assert (distances(points) <= pixels + 1e-5).all()


def test_the_axes_hold_95_percent_of_the_variance_and_no_more_than_needed() -> None:
    images = blobs(200, 0)
    found = pixel_features(images, 0)
    total = (images.reshape(200, -1) / 255).var(0).sum()
    held = found.of(images).var(0)
    assert held[:-1].sum() / total < 0.95 <= held.sum() / total


def test_64_axes_at_most_and_no_more_than_images() -> None:
    assert len(pixel_features(noise(200, 12, 12, 1), 0).axes) == 64
    assert len(pixel_features(noise(10, 12, 12, 1), 0).axes) < 10
    assert pixel_features(noise(2, 12, 12, 1), 0).of(noise(3, 12, 12, 1)).shape == (3, 1)


@pytest.mark.filterwarnings("error")
def test_black_images_give_no_warning() -> None:
    images = np.zeros((10, 12, 12, 1), np.uint8)
    assert not pixel_features(images, 0).of(images).any()


def test_batches_and_a_repetition_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(50, 9, 7, 3)
    whole = pixel_features(images, 0).of(images)
    assert np.array_equal(pixel_features(images, 0).of(images), whole)
    monkeypatch.setattr(features, "BATCH", 7)
    assert pixel_features(images, 0).of(images) == pytest.approx(whole, abs=1e-4)


def test_of_many_training_images_a_seeded_sample_is_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FIT_IMAGES", 20)
    images = noise(60, 8, 8, 1)
    means = [pixel_features(images, seed).mean for seed in (0, 0, 1)]
    assert np.array_equal(means[0], means[1]) and not np.array_equal(means[0], means[2])


def test_large_images_are_shrunk_in_proportion() -> None:
    large = np.repeat(np.repeat(noise(5, 32, 16, 3), 4, axis=1), 4, axis=2)
    assert len(pixel_features(large, 0).mean) == 64 * 32 * 3
    assert len(pixel_features(noise(5, 64, 64, 1), 0).mean) == 64 * 64
    assert len(pixel_features(noise(5, 1, 200, 1), 0).mean) == 64


@pytest.mark.skipif(not is_installed(), reason="needs the extra `features`")
def test_network_features_repeat_and_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, frozen = blobs(20, 0), frozen_features(CPU)
    assert frozen is not None
    found, again = (network_features(images, 0, frozen) for _ in range(2))
    points = found.of(images)
    assert np.array_equal(points, again.of(images))
    assert len(found.axes) < 20 and points.shape == (20, len(found.axes))
    monkeypatch.setattr(features, "BATCH", 3)
    assert found.of(images) == pytest.approx(points, abs=1e-3)
