"""A training's history, one row per epoch: which epoch to keep and when to stop follow from it alone."""

import math
from itertools import takewhile
from statistics import fmean

from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.resolved import ResolvedParameters
from vae.schedules.kl import first_final_epoch

COLUMNS = (
    "epoch", "step", "kl_weight", "train/loss", "train/reconstruction", "train/kl", "valid/loss",
    "valid/reconstruction", "valid/kl", "valid/elbo", "valid/mse", "valid/mse_sampled", "valid/active_units",
    "valid/informative_units",
)  # fmt: skip

# A healthy run on leaf photos had a KL of 0.01 nats after its first epoch and of 97 after its second. Digits whose
# weight is just below the collapse weight fell to 0.37 nats and ended at 1.04.
ALARM_EPOCHS, ALARM_STEPS, ALARM_NATS = 2, 100, 0.1
GROWING = 1.05  # of the KL, from one epoch to the next

# How far a control may end from its target: of a rate, and of a root mean squared error, whose share costs more nats.
# Trainings of a few hundred steps end within 0.07 of the rate; from one epoch to the next it moves by up to 0.1.
RATE_TOLERANCE, ERROR_TOLERANCE = 0.2, 0.1
LAST_EPOCHS = 3  # that show where a control ended

Row = dict[str, float]


def chosen_epoch(history: list[Row], p: ResolvedParameters) -> int:
    """The epoch to keep, counted from 1: by the validation loss at the final weight, never inside the ramp.

    With `select: last`, or before any epoch that qualifies, the last finite one; 0 if there is none.
    """
    finite = [row for row in history if is_finite(row)]
    allowed = eligible(finite, p)
    if allowed and p.train.select == "best":
        return int(min(allowed, key=lambda row: row["valid/loss"])["epoch"])
    return int(finite[-1]["epoch"]) if finite else 0


def eligible(history: list[Row], p: ResolvedParameters) -> list[Row]:
    """The epochs that may be kept: at the final weight and, with a control, the last ones in a row at its target.

    A rate may pass through its target before the network has learnt anything, and the loss of an epoch whose rate is
    still above its target is lower than that of the target.
    """
    final = [row for row in history if at_final_weight(row, p)]
    return list(takewhile(lambda row: not is_off_target([row], p), reversed(final)))[::-1]


def is_off_target(rows: list[Row], p: ResolvedParameters) -> bool:
    """Whether the control missed its target over these epochs: a rate on either side, an error that stays too large."""
    kl = p.kl
    if kl.reconstruction_target is not None:
        error = math.sqrt(fmean(row["valid/mse_sampled"] for row in rows))
        return error > (1 + ERROR_TOLERANCE) * kl.reconstruction_target
    if kl.target_rate is None:
        return False
    return abs(fmean(row["valid/kl"] for row in rows) / kl.target_rate - 1) > RATE_TOLERANCE


def last_at_final_weight(history: list[Row], p: ResolvedParameters) -> list[Row]:
    """The last epochs at the final weight; none where the ramp outlasted the training."""
    return [row for row in history if at_final_weight(row, p)][-LAST_EPOCHS:]


def at_final_weight(row: Row, p: ResolvedParameters) -> bool:
    """Whether all of this epoch was trained at the final KL weight."""
    return row["epoch"] - 1 >= first_final_epoch(p.kl, p.train.epochs)


def steps_at_final_weight(history: list[Row], p: ResolvedParameters) -> float:
    return sum(row["step"] / row["epoch"] for row in history if at_final_weight(row, p))


def why_stop(history: list[Row], p: ResolvedParameters) -> str | None:
    """The reason to stop now: diverged, collapsed, or no improvement for `patience` epochs."""
    if history and not is_finite(history[-1]):
        return f"diverged: epoch {len(history)} gave a number that is not finite"
    final = [row for row in history if at_final_weight(row, p)]
    if p.train.on_collapse != "continue" and ends_collapsed(history, p, ALARM_NATS):
        kl, active = final[-1]["valid/kl"], final[-1]["valid/active_units"]
        what = "collapsed" if kl < ALARM_NATS else "the posterior is the same for every image"
        return (
            f"{what}: a KL of {kl:.4g} nats and {active:.0f} active units after {len(final)} epochs at the final weight"
        )
    allowed = eligible(history, p)
    if p.train.patience is not None and allowed:
        best = min(allowed, key=lambda row: row["valid/loss"])
        if len(history) - best["epoch"] >= p.train.patience:
            return f"no better validation loss for {p.train.patience} epochs since epoch {best['epoch']:.0f}"
    return None


def ends_collapsed(history: list[Row], p: ResolvedParameters, below: float = COLLAPSED_BELOW_NATS) -> bool:
    """Whether the last epochs at the final weight are a collapse; False while they are too few to judge."""
    final = [row for row in history if at_final_weight(row, p)][-ALARM_EPOCHS:]
    enough = len(final) == ALARM_EPOCHS and steps_at_final_weight(history, p) >= ALARM_STEPS
    return enough and is_collapse(final, below)


def is_collapse(rows: list[Row], below: float) -> bool:
    """Whether the latents carry nothing in these epochs and the KL does not grow, as it does after a slow start.

    below: nats that count as nothing.
    """
    grows = rows[-1]["valid/kl"] > GROWING * rows[0]["valid/kl"] and rows[-1]["valid/active_units"] > 0
    return all(row["valid/active_units"] == 0 or row["valid/kl"] < below for row in rows) and not grows


def is_finite(row: Row) -> bool:
    return all(math.isfinite(value) for value in row.values())
