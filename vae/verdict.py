"""Is this VAE healthy? The first rule that holds names the verdict; each brings its numbers and a remedy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vae.annealing import first_final_epoch
from vae.diagnostics import Measurement
from vae.history import ALARM_STEPS, Row, at_final_weight, steps_at_final_weight
from vae.objective import COLLAPSED_BELOW_NATS, Objective, effective_beta
from vae.parameters import Parameters

# Starting points, from runs on digits, MNIST and leaf photos; docs/verdicts.md gives the reasons.
NO_BETTER_THAN_MEAN = 0.95  # of the mean image's error
PARTLY_COLLAPSED_SHARE = 0.4  # of the predicted KL
PARTLY_COLLAPSED_EPOCHS = 5  # past the ramp, before a low KL counts
FLAT_SHARE = 0.02  # of the whole fall of the training loss, over the last epochs
PRIOR_GAP_SHARE = 0.4  # of the rate
SMALLEST_BETA = 0.05
OVERFITTED_SHARE = 0.25  # of what was learnt
RUNAWAY_NATS = 1e5


@dataclass(frozen=True)
class Verdict:
    """A name, one sentence, the numbers that led to it, and parameters to change with their values."""

    verdict: str
    summary: str
    reasons: list[str]
    recommendations: list[str]


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on.

    Attributes:
        valid: the kept model on the whole validation split.
        mean_image_mse: of the validation split.
        history: a row an epoch.
        predicted: `reports/preflight.json`.
        train: the training split as the kept model sees it: elbo, mean_image_elbo, ….
        kept_epoch: 0 where no epoch was finite.
    """

    valid: Measurement
    mean_image_mse: float
    history: list[Row]
    predicted: Mapping[str, Any]
    train: Mapping[str, float]
    kept_epoch: int


def judge(p: Parameters, e: Evidence) -> Verdict:
    """The verdict on a trained model."""
    for rule in (_diverged, _collapsed, _not_learning, _partly_collapsed, _under_regularised, _overfitted):
        verdict = rule(p, e)
        if verdict is not None:
            return verdict
    valid = e.valid
    return Verdict(
        "healthy",
        f"The model is healthy: its latents carry {valid.rate:.1f} nats per image in "
        f"{valid.informative_units(p.monitor.informative_unit_nats)} informative units.",
        [
            f"KL {valid.rate:.3g} nats (linear theory expected {_expected(e):.3g})",
            f"mean squared error {valid.mse_sampled:.3g} against {e.mean_image_mse:.3g} of the mean image",
        ],
        [],
    )


def _diverged(p: Parameters, e: Evidence) -> Verdict | None:
    slower = p.train.learning_rate / 10
    remedy = [f"set train.learning_rate to {slower:.1g}"]
    if (p.train.gradient_clip or math.inf) > 1:
        remedy.append("set train.gradient_clip to 1.0")
    elif p.train.precision != "fp32":
        remedy.append("set train.precision to fp32")
    for row in e.history:
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        if broken:
            reason = f"{', '.join(broken)} not finite in epoch {row['epoch']:.0f}"
            return Verdict("diverged", f"Training diverged in epoch {row['epoch']:.0f}.", [reason], remedy)
    kl = e.history[-1]["valid/kl"] if e.history else e.valid.rate
    if kl > RUNAWAY_NATS:
        reason = f"KL of {kl:.3g} nats in the last epoch; more than {RUNAWAY_NATS:.0e} is a runaway encoder"
        return Verdict("diverged", "Training diverged: the KL grows without bound.", [reason], remedy)
    return None


def _collapsed(p: Parameters, e: Evidence) -> Verdict | None:
    active = e.valid.active_units(p.monitor.active_unit_threshold)
    if active > 0 and e.valid.rate >= COLLAPSED_BELOW_NATS:
        return None
    summary = "The posterior collapsed: the latents carry nothing."
    reasons = [
        f"KL of {e.valid.rate:.4g} nats per image over all {p.model.latent_dim} latents, {active} active units"
    ]
    recommendations = []
    collapse_weight = e.predicted["collapse_kl_weight"]
    if p.kl.control == "schedule" and p.kl.weight >= collapse_weight:
        reasons.append(
            f"kl.max_weight = {p.kl.weight:g} is not below {collapse_weight:.3g}, "
            "from where on linear theory expects less than 1 nat of these images"
        )
        recommendations.append(_lower_weight(e))
    elif (steps := steps_at_final_weight(e.history, p)) < ALARM_STEPS:
        reasons.append(
            f"only {steps:.0f} steps were trained at the final KL weight, too few to tell a collapse from a slow start"
        )
        epochs = math.ceil(
            first_final_epoch(p.kl, p.train.epochs) + len(e.history) * 3 * ALARM_STEPS / e.history[-1]["step"]
        )
        recommendations.append(f"set train.epochs to {max(epochs, 2 * p.train.epochs)}")
    else:
        reasons.append(
            f"linear theory expected {_expected(e):.3g} nats at this weight, "
            "so the optimisation is at fault rather than the weight"
        )
        recommendations.append(f"set train.learning_rate to {p.train.learning_rate / 4:.1g}")
        recommendations += _longer_ramp(p)
        if not p.model.batch_norm:
            recommendations.append("set model.batch_norm to true")
    return Verdict("collapsed", summary, reasons, recommendations)


def _not_learning(p: Parameters, e: Evidence) -> Verdict | None:
    if e.valid.mse_sampled < NO_BETTER_THAN_MEAN * e.mean_image_mse:
        return None
    return Verdict(
        "not_learning",
        "The model does no better than the mean image.",
        [
            f"mean squared error {e.valid.mse_sampled:.4g}, the mean image's is {e.mean_image_mse:.4g}; "
            f"less than {NO_BETTER_THAN_MEAN:g} of that is learning"
        ],
        [
            f"set train.epochs to {4 * p.train.epochs}",
            f"set train.learning_rate to {p.train.learning_rate / 4:.1g}",
        ],
    )


def _partly_collapsed(p: Parameters, e: Evidence) -> Verdict | None:
    expected = _expected(e)
    if not math.isfinite(expected):
        return None  # without a KL term there is nothing to fall short of
    past_ramp = e.kept_epoch - first_final_epoch(p.kl, p.train.epochs)
    if e.valid.rate >= PARTLY_COLLAPSED_SHARE * expected or past_ramp < PARTLY_COLLAPSED_EPOCHS:
        return None
    if not _settled(p, e):
        return None
    return Verdict(
        "partly_collapsed",
        "Part of the latents collapsed: the KL is far below what these images allow.",
        [
            f"KL of {e.valid.rate:.3g} nats, under {PARTLY_COLLAPSED_SHARE:g} × the {expected:.3g} that "
            f"linear theory expects, {past_ramp:.0f} epochs past the ramp and with a flat training loss"
        ],
        [
            *_longer_ramp(p),
            f"set kl.free_bits to {max(2 * p.kl.free_bits, 0.1):g}",
            f"set train.learning_rate to {p.train.learning_rate / 2:.1g}",
        ],
    )


def _under_regularised(p: Parameters, e: Evidence) -> Verdict | None:
    beta = effective_beta(Objective.of(p), e.valid.mse_sampled)
    gap = e.valid.prior_gap / e.valid.rate
    if gap <= PRIOR_GAP_SHARE and beta >= SMALLEST_BETA:
        return None
    reasons = []
    if gap > PRIOR_GAP_SHARE:
        reasons.append(
            f"the aggregate posterior is {e.valid.prior_gap:.3g} nats from the prior, "
            f"{gap:.2f} of the rate (more than {PRIOR_GAP_SHARE:g})"
        )
    if beta < SMALLEST_BETA:
        reasons.append(f"effective beta of {beta:.3g}, below {SMALLEST_BETA:g}")
    if beta >= SMALLEST_BETA and not _settled(p, e):
        # The aggregate posterior of a young model is far from the prior, and comes nearer.
        reasons.append("the training loss was still falling")
        summary = "Training ended before the latents had settled: samples from the prior will be poor."
        return Verdict("under_regularised", summary, reasons, [f"set train.epochs to {4 * p.train.epochs}"])
    summary = "The KL term has too little weight: samples from the prior will be noise."
    return Verdict("under_regularised", summary, reasons, [_higher_weight(p, e)])


def _overfitted(p: Parameters, e: Evidence) -> Verdict | None:
    gap = e.train["elbo"] - e.valid.elbo
    learnt = e.train["elbo"] - e.train["mean_image_elbo"]
    if learnt <= 0 or gap <= OVERFITTED_SHARE * learnt:
        return None
    remedy = []
    narrower = [max(width // 2, min(width, 4)) for width in p.model.widths]
    if narrower != p.model.widths:
        remedy.append(f"set model.widths to {narrower}")
    patience = max(p.train.epochs // 10, 3)
    if (p.train.patience or math.inf) > patience:
        remedy.append(f"set train.patience to {patience}")
    remedy.append("add images" + (" or set data.augment to flip" if p.data.augment == "none" else ""))
    return Verdict(
        "overfitted",
        "The model knows its training images far better than others.",
        [
            f"ELBO of {e.train['elbo']:.4g} nats in training, {e.valid.elbo:.4g} in validation: the difference "
            f"is {gap / learnt:.2f} of what was learnt over the mean image (more than {OVERFITTED_SHARE:g})"
        ],
        remedy,
    )


def _lower_weight(e: Evidence) -> str:
    calibrated, collapse = e.predicted["calibrated_kl_weight"], e.predicted["collapse_kl_weight"]
    if calibrated < collapse:
        return f"set kl.max_weight to {calibrated:.2g}, where the loss is the ELBO of the best sigma"
    if collapse > 0:
        return f"set kl.max_weight to {collapse / 4:.2g}, a quarter of where linear theory expects collapse"
    return "give other images in data.path: these are all the same"


def _higher_weight(p: Parameters, e: Evidence) -> str:
    calibrated = float(f"{e.predicted['calibrated_kl_weight']:.2g}")
    if calibrated > p.kl.weight:
        return f"set kl.max_weight to {calibrated:g}, where the loss is the ELBO of the best sigma"
    return f"set kl.max_weight to {2 * p.kl.weight:.2g}"


def _longer_ramp(p: Parameters) -> list[str]:
    """Twice the ramp, of a schedule that has one, in a training that is twice as long at least."""
    ramp = max(2 * p.kl.annealing_epochs, 5)
    steps = [f"set kl.annealing_epochs to {ramp:g}"]
    if p.kl.schedule in ("constant", "cyclical"):
        steps.insert(0, "set kl.schedule to linear")
    if p.train.epochs < 2 * ramp:
        steps.append(f"set train.epochs to {math.ceil(2 * ramp)}")
    return steps


def _expected(e: Evidence) -> float:
    """The KL that linear theory expects: infinite where the KL term has no weight."""
    expected = e.predicted["predicted_kl"]
    return math.inf if expected is None else expected


def _settled(p: Parameters, e: Evidence) -> bool:
    """Whether the training loss is flat, at the final KL weight."""
    final = [row["train/loss"] for row in e.history if at_final_weight(row, p)]
    return _flat(final, [row["train/loss"] for row in e.history])


def _flat(final: list[float], losses: list[float], epochs: int = PARTLY_COLLAPSED_EPOCHS) -> bool:
    """Whether the last epochs, all at the final weight, fell by little of what the training fell in all."""
    if len(final) < 2 * epochs:
        return False
    recent = sum(final[-2 * epochs : -epochs]) / epochs - sum(final[-epochs:]) / epochs
    whole = max(losses) - min(losses)
    return recent <= FLAT_SHARE * whole
