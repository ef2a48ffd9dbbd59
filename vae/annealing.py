"""The KL weight as a function of progress, in epochs (a step is a fraction of one)."""

import math

from vae.parameters import KL


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


def _linear(t: float) -> float:
    return t


def _cosine(t: float) -> float:
    return (1 - math.cos(math.pi * t)) / 2


def _sigmoid(t: float, steepness: float = 12.0) -> float:
    def logistic(u: float) -> float:
        return 1 / (1 + math.exp(-steepness * (u - 0.5)))

    return (logistic(t) - logistic(0)) / (logistic(1) - logistic(0))


_SHAPES = {"cosine": _cosine, "sigmoid": _sigmoid}
