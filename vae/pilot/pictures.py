"""What a pilot decodes along its curve, on one sheet for people."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from vae.collapse.pilot_curve import PilotCurve
from vae.collapse.rate_distortion import first
from vae.compute.batches import to_pixels
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.parameters import Parameters
from vae.inference import grids
from vae.models.likelihood import Likelihood
from vae.pilot.network import averaged
from vae.pilot.training import Pilot

ROWS = 5
IMAGES, FEW = 8, 4  # FEW of an autoregressive decoder, which draws pixel by pixel
MOST_PIXELS = 64 * 64  # of such a picture; larger ones would take minutes
TILE = 64  # pixels of the longer side, at most


def draw(p: Parameters, pilot: Pilot | None, images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], bytes]:
    """The thresholds that are shown, (R,), and the sheet as a PNG: originals, then one row for each threshold.

    Some of the images (N, H, W, C) are shown. No thresholds, and a sheet of originals, without a pilot or where an
    autoregressive one would take minutes.
    """
    is_autoregressive = p.model.architecture == "autoregressive"
    count = min(FEW if is_autoregressive else IMAGES, len(images))
    originals = np.array(images[np.linspace(0, len(images) - 1, count).astype(int)])
    rows, shown = [originals], np.empty(0)
    if pilot is not None and not (is_autoregressive and math.prod(p.data.image_size) > MOST_PIXELS):
        shown = thresholds(pilot.curve)
        rows += decoded(p, pilot, originals, shown)
    return shown, grids.png(sheet(rows))


def thresholds(curve: PilotCurve) -> NDArray[np.float64]:
    """Evenly in ln R, from the rate of the lowest to 1 nat, which shows what there is just before collapse."""
    low, high = curve.thresholds[0], curve.thresholds[-1]
    most = float(curve.rates(low).sum())
    if most <= COLLAPSED_BELOW_NATS:
        return np.geomspace(low, high, ROWS)
    rates = np.geomspace(most, COLLAPSED_BELOW_NATS, ROWS)
    found = [first(curve, lambda at, rate=rate: at.kl <= rate).threshold for rate in rates]  # type: ignore[misc]
    return np.clip(found, low, high)


@torch.no_grad()
def decoded(p: Parameters, pilot: Pilot, images: NDArray[np.uint8], at: NDArray[np.float64]) -> list[NDArray[np.uint8]]:
    """The mean of p(x|z = μ) at each threshold: uint8 (N, H, W, C) → R of the same shape, from averages smooth ones."""
    network = pilot.network.eval()
    device = next(network.parameters()).device
    low, high = np.log(pilot.curve.thresholds[[0, -1]])
    u = torch.tensor(2 * (np.log(at) - low) / (high - low) - 1, dtype=torch.float32, device=device)
    x = averaged(to_pixels(images, device), network.k)
    output = network.reconstruct(x.repeat(len(at), 1, 1, 1), u.repeat_interleave(len(x)))
    mean = Likelihood(p.objective.likelihood).mean(output)
    mean = functional.interpolate(mean, size=images.shape[1:3], mode="bilinear")
    return np.split(grids.as_bytes(mean.permute(0, 2, 3, 1).cpu().numpy()), len(at))


def sheet(rows: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """R rows (N, H, W, C) → uint8 (R·h, w, 3), all of the same height, with a white gap below and beside each image."""
    tiles = np.stack([[_tile(image) for image in row] for row in rows])
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, grids.GAP), (0, grids.GAP), (0, 0)), constant_values=255)
    count, columns, height, width, channels = tiles.shape
    picture = tiles.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, channels)
    return grids.enlarged(picture)


def _tile(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB, and no larger than `TILE`."""
    height, width = image.shape[:2]
    picture = Image.fromarray(np.broadcast_to(image, (height, width, 3)))
    picture.thumbnail((TILE, TILE), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(picture)
