"""May this model replace the champion? The rule behind `promote.mode` and `vae promote`, over plain data.

A candidate passes if it is healthy, better than the champion in the ELBO of the same test images by more than the
noise, and not worse in `GUARDS`. Without a champion, healthy is enough. docs/promotion.md explains why.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, norm

from vae.samples.quality import IMAGES as COMPARED

CONFIDENCE, RESAMPLES, SEED = 0.95, 10_000, 0
FEWEST = 30  # test images: the interval of fewer is too narrow
MANY = 50_000  # test images from which on the mean is taken as normal: the bootstrap would take minutes
DRAWN_AT_ONCE = 5_000_000  # numbers; bounds the memory of the bootstrap

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contender:
    """A registered model, as the gate sees it.

    Attributes:
        version: its number in the registry.
        verdict: of monitor.
        weights: their hash.
        data: one hash over the arrays of the three splits, so the same data are images of the same size.
        likelihood: its kind, such as `gaussian`.
        metrics: of the test split, by name.
        rolled_back: the version that it was rolled back to, where it was the champion.
    """

    version: str
    verdict: str
    weights: str | None
    data: str | None
    likelihood: str | None
    metrics: Mapping[str, float]
    rolled_back: str | None = None


@dataclass(frozen=True)
class Gain:
    """The difference of two test ELBOs, candidate minus champion, in nats per image, and its interval."""

    candidate: float
    champion: float
    difference: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{self.difference:+.4g} nats per image, {CONFIDENCE:.0%} interval {self.low:.4g} to {self.high:.4g}"


@dataclass(frozen=True)
class Check:
    """What one of `GUARDS` found."""

    name: str
    candidate: float | None
    champion: float
    limit: float
    higher_is_better: bool
    passed: bool

    def __str__(self) -> str:
        ours = "none" if self.candidate is None else f"{self.candidate:.4g}"
        bound = "at least" if self.higher_is_better else "at most"
        return f"{self.name} {ours} against {self.champion:.4g} (allowed: {bound} {self.limit:.4g})"


@dataclass(frozen=True)
class Decision:
    """Whether the candidate passes, why (to follow a colon), and the numbers behind it."""

    passes: bool
    reason: str
    champion: str | None
    gain: Gain | None = None
    checks: tuple[Check, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"bootstrap": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": SEED}}


def checks(candidate: Contender, champion: Contender, images: int) -> Iterator[Check]:
    """One for each of `GUARDS` whose metric the champion has; those of `OPTIONAL` need the candidate's too."""
    ours, theirs = _finite(candidate.metrics), _finite(champion.metrics)
    for name, higher_is_better, limit_of in GUARDS:
        if name in theirs and (name in ours or name not in OPTIONAL):
            value, limit = ours.get(name), limit_of(theirs[name], images)
            passed = value is not None and (value >= limit if higher_is_better else value <= limit)
            yield Check(name, value, theirs[name], limit, higher_is_better, passed)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _two_errors_below(found: float, images: int) -> float:
    """Minus two standard errors of the difference of two shares of images (Agresti & Coull 1998; it holds at 1 too)."""
    share = (found * images + 2) / (images + 4)
    return found - 2 * math.sqrt(2 * share * (1 - share) / (images + 4))


# The metrics that must not get worse: name, whether higher is better, limit by the champion's value and the images.
GUARDS: tuple[tuple[str, bool, Callable[[float, int], float]], ...] = (
    # Seeds alone move it by 3% (docs/leaves.md).
    ("mse_sampled", False, lambda theirs, images: 1.05 * theirs),
    ("probe_accuracy", True, _two_errors_below),
    # The class that classifiers of training images see in reconstructions.
    ("decoded_probe_pixels", True, lambda theirs, images: _two_errors_below(theirs, min(images, COMPARED))),
    ("decoded_probe_frozen", True, lambda theirs, images: _two_errors_below(theirs, min(images, COMPARED))),
    # Seeds alone move them by 1.4% and 3.4%; from 1 pixel, where all is kept, the next value is 1.09.
    ("detail_width", False, lambda theirs, images: 1.1 * theirs),
    ("detail_colour_width", False, lambda theirs, images: 1.1 * theirs),
    # The share of test images that have a sample of the prior that ships with the model in their neighbourhood.
    ("fitted_prior_coverage", True, lambda theirs, images: _two_errors_below(theirs, min(images, COMPARED))),
    # A better model may need a few latents fewer; one that loses a quarter of them has begun to collapse.
    ("active_units", True, lambda theirs, images: 0.75 * theirs),
)

# Of an extra that need not be installed where the candidate was evaluated.
OPTIONAL = {"decoded_probe_frozen"}


def barred(candidate: Contender, champion: Contender | None) -> str | None:
    """Why the two must not be compared by their numbers; None where they can be."""
    if candidate.verdict != "healthy":
        return f"its verdict is {candidate.verdict}"
    if candidate.rolled_back:
        return f"it was the champion and was rolled back to version {candidate.rolled_back}"
    if champion is None:
        return None
    name = f"champion version {champion.version}"
    if candidate.weights is not None and candidate.weights == champion.weights:
        return f"its weights are those of {name}"
    if candidate.data is None or champion.data is None:
        return f"the data that {name if candidate.data else 'it'} was tested on are unknown"
    if candidate.data != champion.data:
        return f"{name} was trained and tested on different data"
    if candidate.likelihood is None or candidate.likelihood != champion.likelihood:
        kinds = [kind or "unknown" for kind in (candidate.likelihood, champion.likelihood)]
        return f"its likelihood is {kinds[0]}, that of {name} {kinds[1]}: their ELBOs cannot be compared"
    return None


def decide(
    candidate: Contender,
    champion: Contender | None,
    ours: Floats | None = None,
    theirs: Floats | None = None,
) -> Decision:
    """The rule.

    ours, theirs: the ELBO of each test image, (N,) nats, under candidate and champion; needed only where there is a
    champion and `barred` is None.
    """
    version = champion.version if champion else None
    if reason := barred(candidate, champion):
        return Decision(False, reason, version)
    if champion is None:
        return Decision(True, "it is healthy and there is no champion yet", None)
    assert ours is not None and theirs is not None
    if reason := _unfit(ours, theirs):
        return Decision(False, reason, version)

    gain, found = compare(ours, theirs), tuple(checks(candidate, champion, len(ours)))
    failed = [str(check) for check in found if not check.passed]
    reason = f"test ELBO {gain.candidate:.4g} against {gain.champion:.4g} of champion version {version} ({gain})"
    if gain.low <= 0:
        how = "not better" if gain.high < 0 else "not better beyond the noise"
        reason = "; ".join([f"{how}: {reason}", *failed])
    elif failed:
        reason = f"{reason}, but {'; '.join(failed)}"
    return Decision(gain.low > 0 and not failed, reason, version, gain, found)


def _unfit(ours: Floats, theirs: Floats) -> str | None:
    """Why these scores prove nothing; None where they can be compared."""
    if len(ours) != len(theirs):
        return f"the two have scores for {len(ours)} and {len(theirs)} test images"
    if len(ours) < FEWEST:
        return f"{len(ours)} test images are too few; at least {FEWEST} are needed"
    if not np.isfinite([ours, theirs]).all():
        return "the ELBO of some test images is not finite"
    return None


def compare(ours: Floats, theirs: Floats) -> Gain:
    """The mean of the paired differences, with its interval by the percentile bootstrap (Efron & Tibshirani 1993).

    Paired, because some images are hard for every model, which is not noise of the difference.
    ours, theirs: (N,) nats, of the same images in the same order.
    """
    differences = ours - theirs
    if len(differences) > MANY:
        error = differences.std(ddof=1) / math.sqrt(len(differences))
        low, high = norm.interval(CONFIDENCE, differences.mean(), error)
    else:
        low, high = bootstrap(
            (differences,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            batch=max(1, DRAWN_AT_ONCE // len(differences)),
            rng=np.random.default_rng(SEED),
        ).confidence_interval
    means = float(ours.mean()), float(theirs.mean()), float(differences.mean())
    return Gain(*means, float(low), float(high), len(differences))
