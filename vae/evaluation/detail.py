"""What reconstructions keep: detail by its size, the features of a frozen network, and the class.

All of the mean of p(x|z = μ), drawn from z alone, beside the test images themselves.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vae.compute.devices import Compute
from vae.config.text import number
from vae.evaluation.probe import Probe
from vae.evaluation.yardstick import NAMES, Metrics, Reading
from vae.inference.generate import decoded
from vae.inference.grids import as_bytes
from vae.metrics.measurement import BATCH
from vae.models.saved import Saved

KEPT = 0.5  # of the power of a scale: less is lost

Extract = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


@dataclass(frozen=True)
class Spectrum:
    """Power of images and of errors by octaves of width: the first is of widths to 2 pixels, the next of 2 to 4, ….

    The width of a wave is half its period: that of a bright or a dark stripe, or of a spot. Power is the square of the
    two-dimensional cosine transform (DCT-II), without the mean. Unlike Fourier's it takes no image's opposite edges for
    neighbours, which would count as detail (Denis 2002).

    Attributes:
        image, error: (K,), squared pixels, summed over images, pixels and channels. side: the longer one, in pixels.
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
        """1 − error/image of each octave: 1 is exact, 0 as good as leaving it out, below 0 worse; NaN without power."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.image > 0, 1 - self.error / self.image, np.nan)

    @property
    def finest(self) -> float:
        """The width in pixels down to which at least half of the power is kept, between octaves by their logarithm.

        1 where all octaves keep it, `side` where none does; NaN where no image has any detail or a number is missing.
        """
        kept, known = self.kept, self.image > 0
        if not known.any() or not np.isfinite(kept[known]).all():
            return math.nan
        lost = np.flatnonzero(known & (kept < KEPT))
        if len(lost) == 0:
            return 1.0
        octave = lost[-1]  # the widest
        wider = np.flatnonzero(known[octave + 1 :])
        if len(wider) == 0:
            return float(self.side)
        above = octave + 1 + wider[0]
        share = (kept[above] - KEPT) / (kept[above] - kept[octave])
        return float(min(2 ** (above + 0.5 - share * (above - octave)), self.side))


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
    """decoded: by the kind of features that the classifier reads, pixels or frozen."""

    spectrum: Spectrum
    distance: Distance | None
    decoded: Mapping[str, Decoded]

    def metrics(self) -> Metrics:
        """`detail_width`, `detail_kept_1px` (widths to 2 pixels), `detail_kept_2px` (2 to 4), …; and the rest."""
        found: Metrics = {"detail_width": self.spectrum.finest}
        found |= {f"detail_kept_{2**octave}px": float(kept) for octave, kept in enumerate(self.spectrum.kept)}
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
                        f"A classifier of the originals, by {NAMES[kind]}, names "
                        f"{one.copies.accuracy.value:.0%} of the reconstructions right, "
                        f"{one.originals.accuracy.value:.0%} of the originals."
                    )
                break
        if self.spectrum.finest > 1:
            yield (
                f"Detail finer than {number(float(f'{self.spectrum.finest:.2g}'))} pixels is lost: reconstructions "
                "keep less than half of its power."
            )


def detail(
    saved: Saved,
    images: NDArray[np.uint8],
    labels: NDArray[np.object_],
    mu: NDArray[np.float32],
    probes: Mapping[str, Probe],
    extract: Mapping[str, Extract],
    compute: Compute,
) -> Detail | None:
    """Decodes every image once, in batches. None where μ is not finite.

    images: uint8 (N, H, W, C). labels: (N,). mu: (N, Z), their posterior means. extract: from images to features, by
    kind. probes: linear classifiers of these features, fitted to training images.
    """
    if not np.isfinite(mu).all():
        return None
    spectrum: Spectrum | None = None
    parts: dict[str, list[NDArray[np.floating]]] = {kind: [] for kind in extract}
    for start in range(0, len(images), BATCH):
        originals = np.asarray(images[start : start + BATCH])
        z = torch.from_numpy(mu[start : start + BATCH])
        copies = decoded(saved.model, saved.likelihood, z, compute)
        found = Spectrum.of(originals.astype(np.float32) / 255, copies)
        spectrum = found if spectrum is None else spectrum + found
        for kind, of in extract.items():
            parts[kind].append(of(as_bytes(copies)))
    assert spectrum is not None, "a split has images"
    pairs = {kind: (of(images), np.concatenate(parts[kind])) for kind, of in extract.items()}
    read = {kind: _decoded(probes[kind], *pairs[kind], labels) for kind in pairs if kind in probes}
    return Detail(
        spectrum,
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


def octaves(height: int, width: int) -> NDArray[np.int64]:
    """The octave of each coefficient of a cosine transform, (H, W); −1 for the mean.

    Coefficient (j, k) has a frequency of √((j/2H)² + (k/2W)²) cycles per pixel, and half a period of width. Widths
    below 1 pixel, of waves along the diagonal, are of the first octave.
    """
    frequency = np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width)[None] / (2 * width))
    frequency[0, 0] = 1  # any but 0
    found = np.maximum(np.ceil(np.log2(0.5 / frequency) - 1e-9) - 1, 0).astype(np.int64)  # but for rounding, 2ᵏ is 2ᵏ
    found[0, 0] = -1
    return found


def _power(pictures: NDArray[np.floating]) -> NDArray[np.float64]:
    from scipy.fft import dctn

    transformed = dctn(pictures.astype(np.float64), axes=(1, 2), norm="ortho")
    power, octave = np.square(transformed).sum((0, 3)), octaves(*pictures.shape[1:3])
    return np.array([power[octave == k].sum() for k in range(octave.max() + 1)])


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
