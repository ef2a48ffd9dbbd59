"""How well a set of generated images stands for the real ones: five measures in a space of features.

Compare several generated sets (reconstructions, samples of each prior) with one set of test images, and training
images with the same test images: that is the floor, what images of the right distribution reach at these sizes.
Reconstructions of the test images themselves lie nearer to them than the floor: reconstruct another split.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae.samples.bootstrap import Estimate, estimate
from vae.samples.frechet import frechet
from vae.samples.manifolds import COVERAGE_NEIGHBOURS, Points, Radii, overlap

IMAGES, PIXELS = 5_000, 5_000 * 128 * 128  # time is quadratic in the images' number, and their pixels are in memory
MEASURES = ("precision", "recall", "density", "coverage", "frechet")


def most_images(height: int, width: int) -> int:
    """How many images of this size are compared at most."""
    return min(IMAGES, PIXELS // (height * width))


@dataclass(frozen=True)
class SampleQuality:
    """Each with its 95% interval.

    precision: share of generated images that lie among the real ones (Kynkäänniemi 2019): fidelity.
    recall: share of real images that lie among the generated ones: diversity.
    density: precision that counts how many real images are near (Naeem 2020); an outlier among the real images
        hardly changes it. About 1 for images of the same distribution, more for those near the modes.
    coverage: share of real images with a generated one nearby (Naeem 2020): diversity, robust to outliers among the
        generated images.
    frechet: squared distance between the fitted Gaussians, in squared units of the features (Heusel 2017).
    real, generated: how many images were compared.

    The intervals tell how far the value varies with the points over which it is averaged: other generated images for
    precision and density, other real ones for recall and coverage, both for frechet. For the first four, the radii
    and the other set are held; over fresh draws of both sets, the standard deviation is 1.0 to 1.6 times as large (of
    normal points in 10 and 30 dimensions). That of frechet is up to twice too wide where the sets are alike. No
    interval covers the bias of small sets, which the floor shares.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    frechet: Estimate
    real: int
    generated: int


@dataclass(frozen=True)
class RealImages:
    """The features of the real images, and their neighbours' distances, computed once for all that is compared."""

    features: Points
    radii: Radii
    seed: int

    @classmethod
    def of(cls, features: NDArray[np.floating], seed: int) -> "RealImages | None":
        """None for fewer than 6 images.

        features: (N, F), finite; of more than 5,000 images a seeded sample is taken.
        """
        chosen = _at_most(features, IMAGES, seed)
        return cls(chosen, Radii.of(chosen), seed) if len(chosen) > COVERAGE_NEIGHBOURS else None

    def compare(self, features: NDArray[np.floating]) -> SampleQuality | None:
        """None for fewer than 6 images, or features that are not finite.

        features: (M, F) of the generated images; of more than there are real images, a seeded sample of as many is
        taken, because all five depend on the number and the floor has to be measured with the same one. With fewer,
        recall and coverage are lower than their floor for that reason alone: generate at least as many.
        """
        generated = _at_most(features, len(self.features), self.seed)
        if len(generated) <= COVERAGE_NEIGHBOURS or not np.isfinite(generated).all():
            return None
        near = overlap(self.features, self.radii, generated)
        shares = {name: getattr(near, name) for name in MEASURES if name != "frechet"}
        distance, of_real, of_generated = frechet(self.features, generated)
        return SampleQuality(
            **{name: estimate(float(points.mean()), points, seed=self.seed) for name, points in shares.items()},
            frechet=_at_least_0(estimate(distance, of_real, of_generated, seed=self.seed)),
            real=len(self.features),
            generated=len(generated),
        )


def as_metrics(prefix: str, quality: SampleQuality | None) -> dict[str, float | None]:
    """`prefix_precision`, `prefix_precision_low`, `prefix_precision_high`, and so on: all None without a quality."""
    metrics: dict[str, float | None] = {}
    for name in MEASURES:
        found = getattr(quality, name) if quality else None
        metrics |= {f"{prefix}_{name}{end}": number for end, number in ends(found).items()}
    return metrics


def ends(found: Estimate | None) -> dict[str, float | None]:
    """The value under "", and the interval's ends under "_low" and "_high"."""
    low, high, value = (found.low, found.high, found.value) if found else (None, None, None)
    return {"": value, "_low": low, "_high": high}


def _at_most(features: NDArray[np.floating], most: int, seed: int) -> Points:
    if len(features) > most:
        features = features[np.sort(np.random.default_rng(seed).choice(len(features), most, replace=False))]
    return np.asarray(features, dtype=np.float64)


def _at_least_0(found: Estimate) -> Estimate:
    return Estimate(found.value, max(found.low, 0.0), found.high)
