"""The learning rate as a function of progress in epochs."""

import math

from vae.config.parameters import Train


def learning_rate(train: Train, progress: float) -> float:
    """From `learning_rate` at the start of the training to 0 at its end, unless the schedule is constant."""
    t = min(progress / train.epochs, 1.0)
    factor = {"constant": 1.0, "linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2}
    return train.learning_rate * factor[train.learning_rate_schedule]
