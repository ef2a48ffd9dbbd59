"""The KL weight as a function of progress, in epochs (a step is a fraction of one)."""

import math

from vae.config.parameters import KL

STEEPNESS = 12.0  # of the sigmoid's logistic curve, which the ramp shows from −6 to 6


def kl_weight(kl: KL, epoch: float, epochs: int) -> float:
    """The weight of the KL term after `epoch` epochs of training.

    Args:
        kl: schedule, max_weight, annealing_epochs; for `cyclical` cycles and ratio.
        epoch: progress, 0 at the first step, growing by 1/steps_per_epoch at each.
        epochs: how many the training has.

    Schedules, with t the share of the ramp that has passed:
        constant: max_weight from the first step.
        linear: t (Bowman 2016, who also has the sigmoid).
        cosine: (1 − cos πt)/2.
        sigmoid: a logistic curve in t, from 0 to 1 exactly.
        cyclical: `cycles` equal cycles, each a ramp of `cycle_shape` over `ratio` of it, then the top (Fu 2019,
            equation 6). Its ramp is set by cycles and ratio; annealing_epochs is not used.
    """
    if kl.schedule == "cyclical":
        cycle = epochs / kl.cycles
        ramp, progress = kl.ratio * cycle, epoch % cycle if epoch < epochs else cycle
    else:
        ramp, progress = kl.annealing_epochs, epoch
    t = 1.0 if kl.schedule == "constant" or progress >= ramp else progress / ramp
    shape = kl.cycle_shape if kl.schedule == "cyclical" else kl.schedule
    return kl.weight * _SHAPES.get(shape, _linear)(t)


def first_final_epoch(kl: KL, epochs: int) -> float:
    """Progress, in epochs, from which on the weight stays at its maximum; may lie beyond the training.

    0 where a controller sets the weight: it has no ramp.
    """
    if kl.schedule == "constant" or kl.control in ("pi", "geco"):
        return 0.0
    if kl.schedule == "cyclical":
        return epochs / kl.cycles * (kl.cycles - 1 + kl.ratio)
    return kl.annealing_epochs


def ramp_share(kl: KL, weight: float) -> float | None:
    """The share of a ramp, 0 to 1, after which the KL weight is at least `weight`; None where it never is."""
    if weight > kl.weight:
        return None
    if kl.schedule == "constant" or weight <= 0:
        return 0.0
    u = weight / kl.weight
    match kl.cycle_shape if kl.schedule == "cyclical" else kl.schedule:
        case "cosine":
            return math.acos(1 - 2 * u) / math.pi
        case "sigmoid":
            low, high = _logistic(0.0), _logistic(1.0)
            y = low + u * (high - low)
            return min(max(0.5 + math.log(y / (1 - y)) / STEEPNESS, 0.0), 1.0)
    return u


def share_above(kl: KL, weight: float) -> float:
    """The share of each cycle of a cyclical schedule that is spent at weights of `weight` and more.

    1 − ratio·t, with t the share of its ramp at which the weight is reached (Fu 2019, equation 6, solved for it).
    """
    t = ramp_share(kl, weight)
    return 0.0 if t is None else 1 - kl.ratio * t


def _linear(t: float) -> float:
    return t


def _cosine(t: float) -> float:
    return (1 - math.cos(math.pi * t)) / 2


def _sigmoid(t: float) -> float:
    return (_logistic(t) - _logistic(0)) / (_logistic(1) - _logistic(0))


def _logistic(t: float) -> float:
    return 1 / (1 + math.exp(-STEEPNESS * (t - 0.5)))


_SHAPES = {"cosine": _cosine, "sigmoid": _sigmoid}
