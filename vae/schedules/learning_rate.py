"""The learning rate as a function of progress in epochs."""

import math

from vae.config.resolved import ResolvedTrain


def learning_rate(train: ResolvedTrain, progress: float) -> float:
    """Rises linearly from 0 over the warm-up, then falls to 0 at the end of the training, unless it is constant.

    With a warm-up, a rate that falls is one cycle (Smith & Topin 2018, "Super-convergence").

    progress: in epochs; a step's is that of its middle, so that none has a rate of 0.
    """
    t = min(progress / train.epochs, 1.0)
    if t < train.warmup:
        return train.learning_rate * t / train.warmup
    fallen = (t - train.warmup) / (1 - train.warmup)
    factor = {"constant": 1.0, "linear": 1 - fallen, "cosine": (1 + math.cos(math.pi * fallen)) / 2}
    return train.learning_rate * factor[train.learning_rate_schedule]
