"""What reconstructions keep: detail by its size, the features of a frozen network, and the class.

All of the mean of p(x|z = μ), drawn from z alone, beside the test images themselves.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae.compute.devices import Compute
from vae.config.text import two_digits
from vae.evaluation.probe import Probe
from vae.evaluation.yardstick import Metrics, Reading
from vae.inference.generate import decoded
from vae.inference.grids import as_bytes
from vae.metrics.measurement import batch_size
from vae.models.saved import Saved
from vae.samples.features import COMPONENTS

BANDS = 4  # in an octave
KEPT = 0.5  # of the power of a scale: less is lost

READ = {"pixels": f"{COMPONENTS} principal components of the pixels", "frozen": "frozen features of EfficientNet-Lite0"}

Extract = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


@dataclass(frozen=True)
class Spectrum:
    """Power of images and of errors by width, in bands of a quarter of an octave: band b is of widths to 2^((b + 1)/4).

    The width of a wave is half its period: that of a bright or a dark stripe, or of a spot. Power is the square of the
    two-dimensional cosine transform (DCT-II), without the mean. Unlike Fourier's it takes no image's opposite edges for
    neighbours, which would count as detail (Denis 2002).

    Attributes:
        image, error: (4K,), squared pixels, summed over images, pixels and channels. side: the longer one, in pixels.
    """

    image: NDArray[np.float64]
    error: NDArray[np.float64]
    side: int

    @classmethod
    def of(cls, images: NDArray[np.floating], copies: NDArray[np.floating]) -> "Spectrum":
        """images, copies: (N, H, W, C), pixels in [0, 1]."""
        return cls(_power(images), _power(images - copies), max(images.shape[1:3]))

    def __add__(self, other: "Spectrum") -> "Spectrum":
        return Spectrum(self.image + other.image, self.error + other.error, self.side)

    @property
    def kept(self) -> NDArray[np.float64]:
        """1 − error/image of each octave: 1 is exact, 0 as good as leaving it out, below 0 worse; NaN without power.

        (K,): of widths to 2 pixels, of 2 to 4, ….
        """
        return _share(*(power.reshape(-1, BANDS).sum(1) for power in (self.image, self.error)))

    @property
    def finest(self) -> float:
        """The width in pixels down to which at least half of the power is kept, between bands by their logarithm.

        1 where all bands keep it, `side` where none does; NaN where no image has any detail or a number is missing.
        A Gaussian blur of standard deviation σ keeps half of the power at a width of 2.0 σ.
        """
        known = np.flatnonzero(_has_power(self.image))
        kept = _share(self.image, self.error)[known]
        if len(known) == 0 or not np.isfinite(kept).all():
            return math.nan
        lost = np.flatnonzero(kept < KEPT)
        if len(lost) == 0:
            return 1.0
        widest = lost[-1]
        if widest == len(known) - 1:
            return float(self.side)
        share = (KEPT - kept[widest]) / (kept[widest + 1] - kept[widest])
        band = known[widest] + share * (known[widest + 1] - known[widest])
        return float(min(2 ** ((band + 0.5) / BANDS), self.side))


@dataclass(frozen=True)
class Distance:
    """Mean cosine distance of the frozen features of an image and of another one; None without such a pair.

    decoded: its reconstruction. same_class: another image of its class. random: another image.
    """

    decoded: float
    same_class: float | None
    random: float | None


@dataclass(frozen=True)
class Decoded:
    """How well a classifier that was fitted to training images names the class of test images and of their copies."""

    originals: Reading
    copies: Reading

    @property
    def share(self) -> float | None:
        """The copies' accuracy by that of the originals."""
        originals = self.originals.accuracy.value
        return self.copies.accuracy.value / originals if originals > 0 else None


@dataclass(frozen=True)
class Detail:
    """What is kept.

    Attributes:
        spectrum: of all channels. colour: of each channel's difference from the pixel's mean; None of grey images.
        decoded: by the kind of features that the classifier reads, pixels or frozen.
    """

    spectrum: Spectrum
    colour: Spectrum | None
    distance: Distance | None
    decoded: Mapping[str, Decoded]

    def metrics(self) -> Metrics:
        """`detail_width`, `detail_kept_1px` (widths to 2 pixels), `detail_kept_2px` (2 to 4), …; and the rest."""
        found: Metrics = {}
        for name, spectrum in (("detail", self.spectrum), ("detail_colour", self.colour)):
            if spectrum is not None:
                found[f"{name}_width"] = spectrum.finest
                found |= {f"{name}_kept_{2**octave}px": float(kept) for octave, kept in enumerate(spectrum.kept)}
        if self.distance:
            found["feature_distance"] = self.distance.decoded
            found["feature_distance_same_class"] = self.distance.same_class
            found["feature_distance_random"] = self.distance.random
        for kind, one in self.decoded.items():
            found |= {f"decoded_probe_{kind}": one.copies.accuracy.value, f"decoded_share_{kind}": one.share}
        return found

    def findings(self) -> Iterator[str]:
        """What reconstructions lose, in sentences: the class, by the frozen features where there are any; detail."""
        for kind in ("frozen", "pixels"):
            if one := self.decoded.get(kind):
                gap = one.originals.above(one.copies)
                if gap.low > 0:
                    yield (
                        f"A classifier of the originals, by {READ[kind]}, is right for "
                        f"{one.copies.accuracy.value:.0%} of the reconstructions, "
                        f"{one.originals.accuracy.value:.0%} of the originals."
                    )
                break
        widths = [spectrum.finest if spectrum else 1.0 for spectrum in (self.spectrum, self.colour)]
        lost = [
            f"{what} finer than {two_digits(width)} pixels"
            for what, width in zip(("detail", "differences of colour"), widths, strict=True)
            if width > 1
        ]
        if lost:
            yield f"Reconstructions keep less than half of the power of {' and of '.join(lost)}."


def detail(
    saved: Saved,
    images: NDArray[np.uint8],
    labels: NDArray[np.object_],
    mu: NDArray[np.float32],
    probes: Mapping[str, Probe | None],
    extract: Mapping[str, Extract],
    compute: Compute,
) -> Detail | None:
    """Decodes every image once, in batches. None where μ is not finite.

    images: uint8 (N, H, W, C). labels: (N,). mu: (N, Z), their posterior means. extract: from images to features, by
    kind. probes: linear classifiers of these features, fitted to training images; None without classes.
    """
    if not np.isfinite(mu).all():
        return None
    spectra: list[tuple[Spectrum, Spectrum]] = []
    parts: dict[str, list[NDArray[np.floating]]] = {kind: [] for kind in extract}
    size = batch_size(*images.shape[1:3])
    for start in range(0, len(images), size):
        originals = np.asarray(images[start : start + size])
        z = torch.from_numpy(mu[start : start + size])
        copies, pixels = decoded(saved.model, saved.likelihood, z, compute), originals.astype(np.float32) / 255
        spectra.append((Spectrum.of(pixels, copies), Spectrum.of(_colour(pixels), _colour(copies))))
        for kind, of in extract.items():
            parts[kind].append(of(as_bytes(copies)))
    spectrum, colour = (functools.reduce(Spectrum.__add__, found) for found in zip(*spectra, strict=True))
    pairs = {kind: (of(images), np.concatenate(parts[kind])) for kind, of in extract.items()}
    read = {kind: _decoded(probe, *pairs[kind], labels) for kind, probe in probes.items() if probe}
    return Detail(
        spectrum,
        colour if images.shape[3] > 1 else None,
        distance(*pairs["frozen"], labels) if "frozen" in pairs else None,
        {kind: one for kind, one in read.items() if one is not None},
    )


def distance(originals: NDArray[np.floating], copies: NDArray[np.floating], labels: NDArray[np.object_]) -> Distance:
    """originals, copies: (N, F), features of images and of their reconstructions. labels: (N,)."""
    a, b = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (originals, copies))
    order = np.random.default_rng(0).permutation(len(a))

    def between(pairs: list[NDArray[np.int64]]) -> float | None:
        """Of each image and the next one in a group, around."""
        groups = [group for group in pairs if len(group) > 1]
        found = [1 - (a[group] * a[np.roll(group, 1)]).sum(1) for group in groups]
        return float(np.concatenate(found).mean()) if found else None

    names = sorted({str(label) for label in labels if label is not None})
    classes = [order[[labels[i] is not None and str(labels[i]) == name for i in order]] for name in names]
    return Distance(float((1 - (a * b).sum(1)).mean()), between(classes), between([order]))


def bands(height: int, width: int) -> NDArray[np.int64]:
    """The band of each coefficient of a cosine transform, (H, W); −1 for the mean.

    Coefficient (j, k) has a frequency of √((j/2H)² + (k/2W)²) cycles per pixel, and half a period of width. Widths
    below 1 pixel, of waves along the diagonal, are of the first band.
    """
    frequency = np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width)[None] / (2 * width))
    frequency[0, 0] = 1  # any but 0
    found = np.maximum(np.ceil(BANDS * np.log2(0.5 / frequency) - 1e-9) - 1, 0)  # 1e-9: 2ᵏ is of the band that it ends
    found[0, 0] = -1
    return found.astype(np.int64)


def _power(pictures: NDArray[np.floating]) -> NDArray[np.float64]:
    from scipy.fft import dctn

    transformed = dctn(pictures.astype(np.float64), axes=(1, 2), norm="ortho")
    power, band = np.square(transformed).sum((0, 3)), bands(*pictures.shape[1:3])
    return np.array([power[band == k].sum() for k in range(-(-(band.max() + 1) // BANDS) * BANDS)])


def _share(image: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(_has_power(image), 1 - error / image, np.nan)


def _has_power(image: NDArray[np.float64]) -> NDArray[np.bool_]:
    return image > 1e-12 * image.sum()  # below, it is rounding


def _colour(pictures: NDArray[np.floating]) -> NDArray[np.floating]:
    return pictures - pictures.mean(3, keepdims=True, dtype=np.float64)  # in float32 grey ones would have colours


def _decoded(
    probe: Probe, originals: NDArray[np.floating], copies: NDArray[np.floating], labels: NDArray[np.object_]
) -> Decoded | None:
    """None without an image of a class that the probe knows, or with features that are not finite."""
    classes = set(probe.classifier.classes_)
    known = np.array([label in classes for label in labels], dtype=bool)
    of_originals, of_copies = probe.guess(originals), probe.guess(copies)
    if not known.any() or of_originals is None or of_copies is None:
        return None
    right = [(guess[known] == labels[known].astype(str)).astype(np.float64) for guess in (of_originals, of_copies)]
    # The classifier stays as it is, so the intervals are over test images alone.
    return Decoded(*(Reading(found, np.empty(0)) for found in right))
