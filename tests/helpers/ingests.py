"""Folders of photos to ingest, and what comes of them."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from helpers.project import PROJECT
from PIL import Image

from tasks import workspace
from vae.config.constants import SPLITS

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}
OUTPUTS = [*(workspace.images(split) for split in SPLITS), workspace.MANIFEST]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(seed: int, size: tuple[int, int] = (20, 24), kind: str = "PNG") -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)), kind)


def photos(root: Path, count: int = 40) -> Path:
    """Two classes of good photos, of assorted sizes and formats."""
    for i in range(count):
        file = root / f"{'ab'[i % 2]}/{i:03}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photo(i, (20 + i % 7, 24 + i % 5), ("PNG", "JPEG", "BMP")[i % 3]))
    return root


def outputs() -> list[bytes]:
    return [path.read_bytes() for path in OUTPUTS]
