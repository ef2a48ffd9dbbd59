"""What a verdict is based on: the measured model, its history, and what follows from both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from vae.config.resolved import ResolvedParameters
from vae.config.text import written
from vae.metrics.free_running import FreeRunning
from vae.metrics.measurement import Measurement
from vae.priors.standard import STANDARD
from vae.samples.evidence import SampleEvidence
from vae.training.history import RATE_TOLERANCE, Row, at_final_weight

NO_BETTER_THAN_MEAN = 0.95  # of the mean image's error
FLAT_SHARE = 0.02  # of the whole fall of the training loss, over the last epochs
KL_GROWS = 1.05  # over the last epochs
LATE_EPOCHS = 10  # at the final weight, by halves


@dataclass(frozen=True)
class Verdict:
    """A name, one sentence, the numbers behind it, and what to do.

    Attributes:
        remedy: parameters to change, by name, with their values; `train.on_collapse: remedy` restarts with them.
        advice: what to do besides.
    """

    verdict: str
    summary: str
    reasons: list[str]
    remedy: dict[str, Any] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)

    @property
    def recommendations(self) -> list[str]:
        """Remedy and advice as sentences."""
        return [f"set {name} to {written(value)}" for name, value in self.remedy.items()] + self.advice


@dataclass(frozen=True)
class Evidence:
    """What a verdict is based on.

    Attributes:
        valid: the kept model on the whole validation split.
        mean_image_mse: of the validation split.
        history: one row per epoch.
        predicted: `reports/preflight.json`.
        train: the training split, measured with the kept model: images, elbo, mean_image_elbo, mse_sampled.
        kept_epoch: 0 where no epoch was finite.
        samples: of the prior of the ELBO and of the prior fitted after training; None where they could not be compared.
        prior: the name of the fitted prior. own_prior: of the prior of the ELBO.
        free_running: of an autoregressive decoder; None of any other.
    """

    valid: Measurement
    mean_image_mse: float
    history: list[Row]
    predicted: Mapping[str, Any]
    train: Mapping[str, Any]
    kept_epoch: int
    samples: SampleEvidence | None = None
    prior: str = STANDARD
    own_prior: str = STANDARD
    free_running: FreeRunning | None = None


def effective_beta(p: ResolvedParameters, e: Evidence) -> float | None:
    """β·σ²/MSE at the weight of the kept epoch; None where a capacity is met, which leaves the weight unknown.

    There the loss bends: the value of a nat lies anywhere between −γ and γ.
    """
    final = p.elbo.effective_beta(e.valid.mse_sampled)
    kept = next((row for row in e.history if row["epoch"] == e.kept_epoch), None)
    if p.kl.control == "schedule" or kept is None:
        return final * reached_share(p, e)
    if p.kl.capacity is not None and kept["valid/kl"] <= (1 + RATE_TOLERANCE) * p.kl.capacity:
        return None
    return final * kept["kl_weight"]


def reached_share(p: ResolvedParameters, e: Evidence) -> float:
    """The share of the final KL weight that the kept epoch had: 1 unless the ramp outlasted the training."""
    if p.kl.control != "schedule" or not p.kl.max_weight:
        return 1.0
    kept = next((row for row in e.history if row["epoch"] == e.kept_epoch), None)
    if kept is None or at_final_weight(kept, p):
        return 1.0
    return min(kept["kl_weight"] / p.kl.max_weight, 1.0)


def expected_rate(e: Evidence) -> float:
    """The KL that preflight predicts; infinite where the KL term has no weight."""
    expected = e.predicted["predicted_kl"]
    return math.inf if expected is None else expected


def supported_rate(e: Evidence) -> tuple[float, str]:
    """The KL that these images support, and who says so: what a network is too narrow for, its pilot cannot tell."""
    expected = expected_rate(e)
    linear = e.predicted.get("linear_theory", {}).get("predicted_kl") or 0.0
    return (linear, "linear theory") if linear > expected else (expected, source(e))


def least_collapse_weight(e: Evidence) -> tuple[float, str]:
    """The lowest from which on less than 1 nat is expected, and who says so; 0 where no weight leaves more.

    A training that collapsed proves the lower one right: a pilot may have too high a one for images that form clusters,
    and that of an autoregressive decoder may need no latents at all.
    """
    own = float(e.predicted["collapse_kl_weight"])
    linear = e.predicted.get("linear_theory", {}).get("collapse_kl_weight") or 0.0
    return (linear, "linear theory") if 0 < linear < (own or math.inf) else (own, source(e))


def source(e: Evidence) -> str:
    """Who expects it: the pilot or linear theory."""
    return str(e.predicted.get("predicted_by", "linear theory"))


def expected_in_words(e: Evidence) -> str:
    expected = expected_rate(e)
    return f"{expected:,.3g} nats" if math.isfinite(expected) else "a KL without limit"


def rate_in_training(e: Evidence) -> float:
    """Of the kept epoch, before its latents were standardised: this hides a scale that ran away."""
    return next((row["valid/kl"] for row in e.history if row["epoch"] == e.kept_epoch), e.valid.rate)


def no_better_than_mean(e: Evidence) -> bool:
    return e.valid.mse_sampled >= NO_BETTER_THAN_MEAN * e.mean_image_mse


def settled(p: ResolvedParameters, e: Evidence) -> bool:
    """Whether the training loss is flat: it fell, of late, by a small share of its whole fall."""
    before, last = _of_late(p, e, "train/loss")
    losses = [row["train/loss"] for row in e.history]
    return before - last <= FLAT_SHARE * (max(losses) - min(losses))


def grows_no_more(p: ResolvedParameters, e: Evidence) -> bool:
    before, last = _of_late(p, e, "valid/kl")
    return last <= KL_GROWS * before


def _of_late(p: ResolvedParameters, e: Evidence, name: str) -> tuple[float, float]:
    """A column's mean over the last ten epochs at the final weight, by halves; NaN with fewer, which passes no test."""
    final = [row[name] for row in e.history if at_final_weight(row, p)][-LATE_EPOCHS:]
    if len(final) < LATE_EPOCHS:
        return math.nan, math.nan
    return fmean(final[: LATE_EPOCHS // 2]), fmean(final[LATE_EPOCHS // 2 :])
