"""The activations of a frozen network: computed once for remembered images, and bit for bit the same."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from vae.evaluation import frozen
from vae.evaluation.frozen import FrozenNetwork, frozen_network
from vae.samples.features import BATCH, network_features

CPU = torch.device("cpu")


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_remembered_images_are_not_computed_again_and_others_in_whole_batches() -> None:
    asked: list[int] = []

    def means(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return images.mean((1, 2)).astype(np.float32)

    network, known, other = FrozenNetwork(means), pictures(BATCH + 10, 0), pictures(5, 1)
    first = network.remember(known)
    assert asked == [BATCH, 10]
    assert np.array_equal(network.of(known[::-1]), first[::-1]) and asked == [BATCH, 10]
    mixed = np.concatenate([known[:3], other])
    assert np.array_equal(network.of(mixed), means(mixed)) and asked == [BATCH, 10, 8, 8]
    network.of(other)
    assert asked[-1] == 5, "not remembered"


def test_without_the_extra_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "find_spec", lambda name: None)
    assert frozen_network(CPU) is None


@pytest.mark.skipif(find_spec("efficientnet_lite_pytorch") is None, reason="needs the extra `features`")
def test_components_of_remembered_activations_are_those_without_them() -> None:
    network, train = frozen_network(CPU), pictures(30, 0)
    assert network is not None
    network.remember(train)
    plain, known = network_features(train, 0, CPU), network_features(train, 0, CPU, network.of)
    assert plain and known and np.array_equal(plain.axes, known.axes)
    assert np.array_equal(plain.of(train), known.of(train))
