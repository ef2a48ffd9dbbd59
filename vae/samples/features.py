"""Spaces in which images are compared: principal components of their pixels, or of a frozen network's features."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vae.compute.batches import to_pixels
from vae.features.activations import BATCH, FrozenFeatures

COMPONENTS = 64  # at most, so that a covariance can be estimated from a few hundred images
VARIANCE = 0.95
FIT_IMAGES = 5_000
LONGEST_SIDE = 64  # of the images whose pixels are compared: larger ones are shrunk
NETWORK_FIT_IMAGES = 1_000  # 15 ms each on a core

Raw = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Features:
    """raw: uint8 (B, H, W, C) → float32 (B, D). mean: (D,). axes: (F, D), the principal components of raw features."""

    name: str
    raw: Raw
    mean: NDArray[np.float32]
    axes: NDArray[np.float32]

    def of(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, H, W, C) → (N, F), batch by batch. Distances are those of raw features, less what the components omit."""
        parts = (self.raw(images[start : start + BATCH]) for start in range(0, len(images), BATCH))
        return np.concatenate([(part - self.mean) @ self.axes.T for part in parts]).astype(np.float64)


def pixel_features(train: NDArray[np.uint8], seed: int) -> Features:
    """The first principal components of pixels in [0, 1]: 64, or fewer where fewer hold 95% of the variance.

    Fitted to the training images, at most 5,000 of them, chosen by the seed; images above 64 pixels are shrunk. The
    components are not whitened, so k nearest neighbours are nearly those among the images themselves.

    train: (N, H, W, C), at least 2 images.
    """
    return _fit("pixels", shrunk_pixels, train, FIT_IMAGES, seed)


def network_features(train: NDArray[np.uint8], seed: int, frozen: FrozenFeatures) -> Features:
    """The principal components, as of `pixel_features`, of a frozen network's features (`vae.features.network`).

    Fitted to at most 1,000 training images.
    """
    return _fit("network", frozen.of, train, NETWORK_FIT_IMAGES, seed)


def shrunk_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels in [0, 1] of images shrunk to at most 64 pixels a side: (N, H, W, C) → (N, pixels · C)."""
    shrink = LONGEST_SIDE / max(images.shape[1:3])
    if shrink >= 1:
        return to_pixels(images, torch.device("cpu")).flatten(1).numpy()
    height, width = (max(1, round(side * shrink)) for side in images.shape[1:3])
    parts = (to_pixels(images[start : start + BATCH], torch.device("cpu")) for start in range(0, len(images), BATCH))
    return torch.cat([_resized(x, (height, width)).flatten(1) for x in parts]).numpy()


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, size, mode="bilinear", antialias=True)


def _fit(name: str, raw: Raw, train: NDArray[np.uint8], most: int, seed: int) -> Features:
    from sklearn.decomposition import PCA

    chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:most])
    points = np.concatenate([raw(train[chosen[start : start + BATCH]]) for start in range(0, len(chosen), BATCH)])
    with np.errstate(invalid="ignore"):  # images that are all alike have no variance to share
        pca = PCA(min(COMPONENTS, *points.shape), random_state=seed).fit(points)
    enough = int(np.searchsorted(pca.explained_variance_ratio_.cumsum(), VARIANCE)) + 1
    return Features(name, raw, pca.mean_, pca.components_[:enough])
