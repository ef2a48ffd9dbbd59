"""The ramp of the KL weight, as a share of its final value, over progress in epochs (a step is a fraction of one)."""

import math

from vae.config.resolved import ResolvedKL
from vae.config.sections import KL

STEEPNESS = 12.0  # of the sigmoid's logistic curve, which the ramp shows from −6 to 6


def ramp(kl: ResolvedKL, epoch: float, epochs: int) -> float:
    """The share of the final weight, 0 to 1, after `epoch` epochs of training.

    Args:
        epoch: progress, 0 at the first step, growing by 1/steps_per_epoch at each.
        epochs: of the training.

    Schedules, with t the share of the ramp that has passed:
        constant: 1 from the first step.
        linear: t (Bowman 2016, who also has the sigmoid).
        cosine: (1 − cos πt)/2.
        sigmoid: a logistic curve in t, from 0 to 1 exactly.
        cyclical: `cycles` equal cycles, each a ramp of `cycle_shape` over `ratio` of it, then the top (Fu 2019,
            equation 6). Its ramp is set by cycles and ratio; annealing_epochs is not used.
    """
    if kl.schedule == "cyclical":
        cycle = epochs / kl.cycles
        length, progress = kl.ratio * cycle, epoch % cycle if epoch < epochs else cycle
    else:
        length, progress = kl.annealing_epochs, epoch
    t = 1.0 if kl.schedule == "constant" or progress >= length else progress / length
    match _shape(kl):
        case "cosine":
            return (1 - math.cos(math.pi * t)) / 2
        case "sigmoid":
            return (_logistic(t) - _logistic(0)) / (_logistic(1) - _logistic(0))
    return t


def first_final_epoch(kl: ResolvedKL, epochs: int) -> float:
    """Progress, in epochs, after which the weight stays at its final value; may exceed the training.

    0 where a controller sets the weight: it has no ramp.
    """
    if kl.schedule == "constant" or kl.control in ("pi", "geco"):
        return 0.0
    if kl.schedule == "cyclical":
        return epochs / kl.cycles * (kl.cycles - 1 + kl.ratio)
    return kl.annealing_epochs


def ramp_time(kl: KL, share: float) -> float | None:
    """The inverse of a ramp: the t, 0 to 1, at which this share is reached; None where it never is."""
    if share > 1:
        return None
    if kl.schedule == "constant" or share <= 0:
        return 0.0
    match _shape(kl):
        case "cosine":
            return math.acos(1 - 2 * share) / math.pi
        case "sigmoid":
            low, high = _logistic(0.0), _logistic(1.0)
            y = low + share * (high - low)
            return min(max(0.5 + math.log(y / (1 - y)) / STEEPNESS, 0.0), 1.0)
    return share


def time_above(kl: KL, share: float) -> float:
    """How much of each cycle of a cyclical schedule is spent at this share of the final weight or above.

    1 − ratio·t, with t the time at which its ramp reaches the share (Fu 2019, equation 6, solved for it).
    """
    t = ramp_time(kl, share)
    return 0.0 if t is None else 1 - kl.ratio * t


def _shape(kl: KL) -> str:
    return kl.cycle_shape if kl.schedule == "cyclical" else kl.schedule


def _logistic(t: float) -> float:
    return 1 / (1 + math.exp(-STEEPNESS * (t - 0.5)))
