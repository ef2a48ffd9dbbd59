"""Pooled features of the frozen network, computed once for the images that several numbers are about."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray

from vae.compute.batches import to_pixels
from vae.config.constants import EFFICIENTNET
from vae.features.network import FrozenNetwork, is_installed, load

BATCH = 64

Activations = NDArray[np.float32]


@dataclass(frozen=True)
class FrozenFeatures:
    """compute: uint8 (B, H, W, C) → float32 (B, F). known: the features of remembered images, by a hash."""

    compute: Callable[[NDArray[np.uint8]], Activations]
    known: dict[bytes, Activations] = field(default_factory=dict)

    def of(self, images: NDArray[np.uint8]) -> Activations:
        """(N, H, W, C) → (N, F). A batch with an unknown image is computed whole: a batch of one has other bits."""
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


def frozen_features(device: torch.device) -> FrozenFeatures | None:
    """Of EfficientNet-Lite0; None where the extra `features` is not installed."""
    if not is_installed():
        return None
    network = load(EFFICIENTNET, device)
    return FrozenFeatures(lambda images: pooled(network, images, device))


@torch.no_grad()
def pooled(network: FrozenNetwork, images: NDArray[np.uint8], device: torch.device) -> Activations:
    """uint8 (B, H, W, C), one channel or three → float32 (B, F)."""
    return network.pooled(to_pixels(images, device)).cpu().numpy()


def _hash(image: NDArray[np.uint8]) -> bytes:
    return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
