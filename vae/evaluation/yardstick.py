"""What the latents are worth as features: how well classifiers read the class from them and from two yardsticks.

The yardsticks are as many principal components of the pixels as there are latents, and a frozen network's features.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae.evaluation.neighbours import Neighbours
from vae.evaluation.probe import Probe
from vae.samples.bootstrap import LEVEL, Estimate
from vae.samples.features import shrunk_pixels
from vae.samples.quality import ends

RESAMPLES = 10  # halves of the training images
FEW, DRAWS = 5, 10  # labelled images of each class, and how often they are drawn

METHODS = ("probe", "knn", "few_label")
NAMES = {
    "latents": "the latents",
    "pixels": "principal components of the pixels",
    "frozen": "frozen features of EfficientNet-Lite0",
}

Features = NDArray[np.floating]
Classes = NDArray[np.object_]
Indices = NDArray[np.int64]
Metrics = dict[str, int | float | None]


@dataclass(frozen=True)
class Reading:
    """How well a classifier names the classes of the test images.

    Attributes:
        right: (N,), whether each image is named right; over several draws of the training images, how often.
        refits: (R,), the accuracy after each of R trainings on other draws of the training images.
        averaged: of how many such draws `right` is the mean.
    """

    right: NDArray[np.float64]
    refits: NDArray[np.float64]
    averaged: int = 1

    @property
    def accuracy(self) -> Estimate:
        found = _interval(self.right, np.array([0.0, 0.0, 1.0, 1.0]), self.refits, self.averaged)
        return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0))

    def above(self, other: "Reading") -> Estimate:
        """The difference of both accuracies, paired: of the same test images, after the same draws."""
        added = np.array([-1.0, 0.0, 0.0, 1.0])
        found = _interval(self.right - other.right, added, self.refits - other.refits, self.averaged)
        return Estimate(found.value, max(found.low, -1.0), min(found.high, 1.0))


@dataclass(frozen=True)
class Yardstick:
    """Each classifier's reading of each kind of features, by (method, kind)."""

    readings: Mapping[tuple[str, str], Reading]
    images: int  # test images, of classes that were trained on

    @classmethod
    def of(
        cls,
        train: Mapping[str, Features],
        labels: Classes,
        test: Mapping[str, Features],
        test_labels: Classes,
        seed: int,
    ) -> "Yardstick | None":
        """Of a linear probe, 5 nearest neighbours, and few labels: linear probes of 5 images of each class, the mean of
        10 draws of them.

        None without two classes, or a test image of one; kinds of features that are not finite are left out.

        Each has a 95% interval: Student's t with the variance over test images plus that over 10 random halves of the
        training images of each class (delete-half jackknife, Shao & Wu 1989), or over the draws of the few. It covers
        the choice of test images and of labelled training images, not the training of the VAE: another seed of it may
        fall outside.

        train, test: the features by kind, (T, F) and (N, F). labels, test_labels: (T,), (N,); None: no class.
        """
        has_class = np.array([label is not None for label in labels], dtype=bool)
        labels = labels[has_class].astype(str).astype(object)
        names = set(labels)
        asked = np.array([label is not None and str(label) in names for label in test_labels], dtype=bool)
        if len(names) < 2 or not asked.any():
            return None
        truth, random = test_labels[asked].astype(str), np.random.default_rng(seed)
        halves = [of_each_class(labels, lambda n: -(-n // 2), random) for _ in range(RESAMPLES)]
        few = [of_each_class(labels, lambda n: min(n, FEW), random) for _ in range(DRAWS)]
        readings = {}
        for kind, features in train.items():
            known, found = features[has_class], test[kind][asked]
            if np.isfinite(known).all() and np.isfinite(found).all():
                read = _Reader(known, labels, found, truth, seed)
                readings["probe", kind] = read.by_probe(halves)
                readings["knn", kind] = read.by_neighbours(halves)
                readings["few_label", kind] = read.by_few(few)
        return cls(readings, int(asked.sum()))

    def metrics(self) -> Metrics:
        """`probe_latents`, `knn_pixels`, `few_label_frozen` and so on, with `_low` and `_high`."""
        found: Metrics = {}
        for (method, kind), reading in self.readings.items():
            found |= {f"{method}_{kind}{end}": value for end, value in ends(reading.accuracy).items()}
        return found

    def findings(self) -> Iterator[str]:
        """What the yardsticks say about the latents by the linear probe, in sentences; the most useful one first."""
        latents = self.readings.get(("probe", "latents"))
        if latents is None:
            return
        for kind in ("frozen", "pixels"):
            if other := self.readings.get(("probe", kind)):
                yield from _compared(kind, latents, other)


def of_each_class(labels: Classes, count: Callable[[int], int], random: np.random.Generator) -> Indices:
    """A random choice of `count(n)` of the n images of each class, in order."""
    order = random.permutation(len(labels))
    members = (order[labels[order] == name] for name in sorted(set(labels)))
    return np.sort(np.concatenate([found[: count(len(found))] for found in members]))


@dataclass(frozen=True)
class PixelComponents:
    """The leading principal components of the pixels of images, shrunk to at most 64 pixels a side."""

    pca: Any

    @classmethod
    def fit(cls, train: NDArray[np.uint8], count: int, seed: int) -> "PixelComponents":
        """train: (N, H, W, C). count: of components; fewer where N or the pixels are fewer."""
        from sklearn.decomposition import PCA

        pixels = shrunk_pixels(train)
        with np.errstate(invalid="ignore", divide="ignore"):  # images that are all alike, or one
            return cls(PCA(min(count, *pixels.shape), random_state=seed).fit(pixels))

    def of(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, C) → (N, F)."""
        return np.asarray(self.pca.transform(shrunk_pixels(images)))


@dataclass(frozen=True)
class _Reader:
    """known: (T, F), finite, with labels (T,). found: (N, F), finite. truth: (N,), the classes of the latter."""

    known: Features
    labels: Classes
    found: Features
    truth: Classes
    seed: int

    def by_probe(self, halves: Sequence[Indices]) -> Reading:
        refits = [self._right(half).mean() for half in halves]
        return Reading(self._right(np.arange(len(self.known))), np.array(refits))

    def by_neighbours(self, halves: Sequence[Indices]) -> Reading:
        neighbours = Neighbours.of(self.known, self.labels, self.found)
        refits = [(neighbours.guess(half) == self.truth).mean() for half in halves]
        return Reading((neighbours.guess() == self.truth).astype(np.float64), np.array(refits))

    def by_few(self, draws: Sequence[Indices]) -> Reading:
        right = np.array([self._right(few) for few in draws])
        return Reading(right.mean(0), right.mean(1), len(draws))

    def _right(self, chosen: Indices) -> NDArray[np.float64]:
        """Whether a linear probe fitted to the chosen training images is right, (N,)."""
        probe = Probe.fit(self.known[chosen], self.labels[chosen], self.seed)
        guesses = probe.guess(self.found) if probe else None
        assert guesses is not None, "two classes and finite features"
        return np.equal(guesses, self.truth).astype(np.float64)


def _interval(values: NDArray[np.float64], added: NDArray[np.float64], refits: NDArray[np.float64], n: int) -> Estimate:
    """The mean of the values, and Student's t interval from the variance over images and that over refits.

    added: one value for each possible outcome joins the images, so that none has no variance (Agresti & Coull 1998).
    refits: (R,). n: of how many refits the values are the mean. Degrees of freedom: Welch & Satterthwaite.
    """
    from scipy.stats import t

    value, padded = float(values.mean()), np.concatenate([values, added])
    parts = [(float(padded.var()) / len(padded), len(padded) - 1)]
    if len(refits) > 1:
        parts.append((float(refits.var(ddof=1)) / n, len(refits) - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    margin = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Estimate(value, value - margin, value + margin)


def _compared(kind: str, latents: Reading, other: Reading) -> Iterator[str]:
    ahead = other.above(latents)
    gap = ahead if ahead.low > 0 else latents.above(other)
    ours, theirs = (f"{reading.accuracy.value:.1%}" for reading in (latents, other))
    of = f"95% interval of the difference {100 * gap.low:.1f} to {100 * gap.high:.1f} points".replace("-", "−")
    name = NAMES[kind] if kind == "frozen" else f"as many {NAMES[kind]}"
    if ahead.low > 0:
        use = "them" if kind == "frozen" else "those"
        align = "; a higher objective.align brings latents closer to them" if kind == "frozen" else ""
        start = name[0].upper() + name[1:]
        yield (
            f"{start} classify better than the latents: {theirs} against {ours} ({of}). "
            f"If classification is the goal, use {use}{align}."
        )
    elif gap.low > 0:
        yield f"The latents classify better than {name}: {ours} against {theirs} ({of})."
    elif kind == "pixels":
        yield (
            f"The latents and {name} classify alike, as far as {len(latents.right)} test images can tell: "
            f"{ours} against {theirs} ({of})."
        )
