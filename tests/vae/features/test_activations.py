"""The activations of a frozen network: computed once for remembered images, and bit for bit the same."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from vae.config.constants import EFFICIENTNET
from vae.features import activations
from vae.features.activations import BATCH, FrozenFeatures, frozen_features, pooled
from vae.features.network import is_installed, load
from vae.samples.features import network_features

CPU = torch.device("cpu")


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_remembered_images_are_not_computed_again_and_others_in_whole_batches() -> None:
    asked: list[int] = []

    def means(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return images.mean((1, 2)).astype(np.float32)

    network, known, other = FrozenFeatures(means), pictures(BATCH + 10, 0), pictures(5, 1)
    first = network.remember(known)
    assert asked == [BATCH, 10]
    assert np.array_equal(network.of(known[::-1]), first[::-1]) and asked == [BATCH, 10]
    mixed = np.concatenate([known[:3], other])
    assert np.array_equal(network.of(mixed), means(mixed)) and asked == [BATCH, 10, 8, 8]
    network.of(other)
    assert asked[-1] == 5, "not remembered"


def test_without_the_extra_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "is_installed", lambda: False)
    assert frozen_features(CPU) is None


@pytest.mark.skipif(not is_installed(), reason="needs the extra `features`")
def test_components_of_remembered_activations_are_those_without_them() -> None:
    network, train = frozen_features(CPU), pictures(30, 0)
    assert network is not None
    network.remember(train)
    fresh = frozen_features(CPU)
    assert fresh is not None
    plain, known = network_features(train, 0, fresh), network_features(train, 0, network)
    assert np.array_equal(plain.axes, known.axes)
    assert np.array_equal(plain.of(train), known.of(train))


@pytest.mark.skipif(not is_installed(), reason="needs the extra `features`")
def test_the_network_reads_grey_as_three_equal_channels() -> None:
    grey, network = pictures(6, 0), load(EFFICIENTNET, CPU)
    found = pooled(network, grey, CPU)
    assert found.shape == (6, 1280) and found.dtype == np.float32
    assert found == pytest.approx(pooled(network, np.repeat(grey, 3, axis=3), CPU), abs=1e-4)
    assert not any(module.training for module in network.network.modules())


@pytest.mark.skipif(not is_installed(), reason="needs the extra `features`")
def test_the_network_recognises_a_photo() -> None:
    """Of a Chinese palace: so weights, scaling of pixels and padding are what it was trained with."""
    monastery, palace = 663, 698  # of ImageNet's classes
    photo, network = load_sample_image("china.jpg")[None, :, 100:527], load(EFFICIENTNET, CPU)
    with torch.no_grad():
        scores = network.network._fc(torch.from_numpy(pooled(network, photo, CPU)))
    assert {monastery, palace} < set(scores[0].argsort(descending=True)[:5].tolist())
