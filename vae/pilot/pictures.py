"""What a pilot decodes along its curve, on one sheet for people."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vae.collapse.pilot_curve import PilotCurve
from vae.collapse.rate_distortion import first
from vae.compute.batches import to_pixels
from vae.compute.random import generator
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.parameters import Parameters
from vae.inference import grids
from vae.pilot.network import averaged
from vae.pilot.training import Pilot
from vae.samples.features import pixel_features
from vae.samples.frechet import frechet
from vae.samples.manifolds import COVERAGE_NEIGHBOURS, Radii, overlap

ROWS = 5
IMAGES, SAMPLES = 6, 6
FEW = 4  # IMAGES of an autoregressive decoder, which draws pixel by pixel, and no samples
MOST_PIXELS = 64 * 64  # of such a picture; larger ones would take minutes
COMPARED = 500  # images of the validation split, and as many samples
TILE = 64  # pixels of the longer side, at most


@dataclass(frozen=True)
class Sheet:
    """Pictures at R thresholds.

    Attributes:
        png: a row of originals, then one for each threshold: the same images decoded and, to the right, samples.
        thresholds: (R,); empty without a pilot, or where an autoregressive one would take minutes.
        recall, frechet: of samples, compared with validation images (`SampleQuality`); R numbers, None of too few
            images, or of an autoregressive decoder.
    """

    png: bytes
    thresholds: NDArray[np.float64]
    recall: list[float | None]
    frechet: list[float | None]


def draw(p: Parameters, pilot: Pilot | None, images: NDArray[np.uint8]) -> Sheet:
    """images: of the validation split, (N, H, W, C)."""
    is_autoregressive = p.model.architecture == "autoregressive"
    count = min(FEW if is_autoregressive else IMAGES, len(images))
    originals = np.array(images[np.linspace(0, len(images) - 1, count).astype(int)])
    if pilot is None or (is_autoregressive and math.prod(p.data.image_size) > MOST_PIXELS):
        return Sheet(grids.png(sheet([originals])), np.empty(0), [], [])
    at = thresholds(pilot.curve)
    rows = decoded(p, pilot, originals, at)
    if is_autoregressive:
        return Sheet(grids.png(sheet([originals, *rows])), at, [None] * len(at), [None] * len(at))
    compared = images[:: math.ceil(len(images) / COMPARED)]
    drawn = [samples(p, pilot, compared, float(s), max(len(compared), SAMPLES)) for s in at]
    recalls, distances = quality(p, pilot, compared, drawn)
    white = np.full_like(originals[:1], 255).repeat(SAMPLES, 0)
    rows = [originals, *rows]
    for index, beside in enumerate([white, *drawn]):
        rows[index] = np.concatenate([rows[index], white[:1], beside[:SAMPLES]])
    return Sheet(grids.png(sheet(rows)), at, recalls, distances)


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
    network, device = pilot.network.eval(), next(pilot.network.parameters()).device
    x = averaged(to_pixels(images, device), network.k)
    u = _places(pilot, at).to(device)
    output = network.reconstruct(x.repeat(len(at), 1, 1, 1), u.repeat_interleave(len(x)))
    return np.split(_pictures(p, output), len(at))


@torch.no_grad()
def samples(p: Parameters, pilot: Pilot, images: NDArray[np.uint8], s: float, count: int) -> NDArray[np.uint8]:
    """The mean of p(x|z) of so many z ~ N(0, I), the same for all s: uint8 (count, H, W, C).

    images: whose posteriors give the latents the mean and variance that a trained model's are standardised by.
    """
    network, device = pilot.network.eval(), next(pilot.network.parameters()).device
    place = _places(pilot, np.array([s])).to(device)
    mu, logvar = network.encode(averaged(to_pixels(images, device), network.k), place.expand(len(images)))
    deviation = (mu.var(0, correction=0) + logvar.exp().mean(0)).sqrt()
    noise = torch.randn(
        count, p.model.latent_dim, generator=generator(p.seed, "pilot samples", 0, device), device=device
    )
    return _pictures(p, network.decode(mu.mean(0) + deviation * noise, place.expand(count)))


def quality(
    p: Parameters, pilot: Pilot, images: NDArray[np.uint8], drawn: list[NDArray[np.uint8]]
) -> tuple[list[float | None], list[float | None]]:
    """Recall and Fréchet distance of each set of samples to the images, as smooth as the pilot sees them.

    Not precision, density or coverage, which blurred samples close to the mean image have more of than real ones.
    """
    smooth = as_smooth(p, pilot, images)
    if len(smooth) <= COVERAGE_NEIGHBOURS:
        return [None] * len(drawn), [None] * len(drawn)
    features = pixel_features(smooth, p.seed)
    real = features.of(smooth)
    radii, generated = Radii.of(real), [features.of(pictures) for pictures in drawn]
    recalls: list[float | None] = [float(overlap(real, radii, points).recall.mean()) for points in generated]
    return recalls, [frechet(real, points)[0] for points in generated]


def as_smooth(p: Parameters, pilot: Pilot, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images after averaging: uint8 (N, H, W, C) → the same shape."""
    x = averaged(to_pixels(images, torch.device("cpu")), pilot.network.k)
    return grids.as_bytes(_enlarged(p, x).permute(0, 2, 3, 1).numpy())


def _places(pilot: Pilot, at: NDArray[np.float64]) -> Tensor:
    """Thresholds → u of `PilotNetwork`, (R,)."""
    low, high = np.log(pilot.curve.thresholds[[0, -1]])
    return torch.tensor(2 * (np.log(at) - low) / (high - low) - 1, dtype=torch.float32)


def _pictures(p: Parameters, output: Tensor) -> NDArray[np.uint8]:
    mean = output.sigmoid() if p.objective.likelihood == "bernoulli" else output
    return grids.as_bytes(_enlarged(p, mean).permute(0, 2, 3, 1).cpu().numpy())


def _enlarged(p: Parameters, x: Tensor) -> Tensor:
    return functional.interpolate(x, size=tuple(p.data.image_size), mode="bilinear")


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
