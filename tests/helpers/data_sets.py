"""Pictures that look like photos, and the manifest of a sound data set."""

from collections.abc import Mapping
from hashlib import sha256

import numpy as np
import pandas as pd


def pictures(n: int, seed: int = 0, height: int = 24, width: int = 24, channels: int = 1) -> np.ndarray:
    """Smooth and random: uint8 (n, height, width, channels)."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).standard_normal((n, height, width, channels))
    smooth = gaussian_filter(noise, (0, height / 12, width / 12, 0))
    return np.clip(127 + 60 * smooth / smooth.std(axis=(1, 2, 3), keepdims=True), 0, 255).astype(np.uint8)


def manifest_of(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Two classes, a file for each image: split/class/number.png."""
    parts = []
    for split, images in arrays.items():
        labels = ["ab"[i % 2] for i in range(len(images))]
        paths = [f"{split}/{label}/{i:02}.png" for i, label in enumerate(labels)]
        known = {
            "path": paths, "split": split, "label": labels, "index": range(len(images)),
            "mean": images.mean(axis=(1, 2, 3)) / 255, "std": images.std(axis=(1, 2, 3)) / 255,
            "sha256": [sha256(path.encode()).hexdigest() for path in paths],
        }  # fmt: skip
        parts.append(pd.DataFrame(known))
    manifest = pd.concat(parts, ignore_index=True)
    manifest = manifest.assign(width=9, height=9, mode="L", bytes=5, status="ok", reason=None, note=None)
    whole = dict.fromkeys(("index", "width", "height", "bytes"), "Int64")
    return manifest.astype(whole | {"reason": "str", "note": "str"})
