"""The verdict on a VAE: the first rule that applies names it, with its numbers and a remedy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from vae.collapse import remedies
from vae.collapse.linear_theory import MOST_LATENTS_PER_IMAGE
from vae.collapse.warnings import SMALLEST_BETA
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.resolved import ResolvedParameters, usual_learning_rate
from vae.config.text import written
from vae.metrics.free_running import FreeRunning
from vae.metrics.measurement import Measurement
from vae.priors.standard import STANDARD
from vae.samples.evidence import SampleEvidence
from vae.samples.quality import SampleQuality
from vae.schedules.kl import first_final_epoch
from vae.training.history import (
    ALARM_STEPS,
    ERROR_TOLERANCE,
    RATE_TOLERANCE,
    Row,
    at_final_weight,
    ends_collapsed,
    is_finite,
    is_off_target,
    last_at_final_weight,
    steps_at_final_weight,
)  # fmt: skip

# Starting points, from runs on digits, MNIST and leaf photos; docs/verdicts.md gives the reasons.
NO_BETTER_THAN_MEAN = 0.95  # of the mean image's error
PARTLY_COLLAPSED_SHARE = 0.4  # of the predicted KL
PARTLY_COLLAPSED_EPOCHS = 5  # past the ramp, before a low KL counts
FLAT_SHARE = 0.02  # of the whole fall of the training loss, over the last epochs
KL_GROWS = 1.05  # over the last epochs
POOR_SHARE = 0.6  # of what reconstructions reach
MISMATCH_NATS = 2.0  # of KL(q(z) ‖ p), at which a seventh of p lies where images are encoded
LITTLE_GAIN_SHARE = 0.2  # of what was learnt over the mean image
SMALL_BETA = 0.5  # below it, poor samples are first of all those of too low a weight
LARGEST_BETA, LARGE_ERROR = 8.0, 0.25  # beyond both is too much weight: β, and the share of the mean image's error
NEAR_COLLAPSE = 2  # a weight that is less than this factor below the collapse weight
AT_BOUND = 0.98  # of a controller's highest weight
OVERFITTED_SHARE = 0.25  # of what was learnt
RUNAWAY_NATS = 1e5
RUNAWAY_RATIO = 10  # of the predicted KL, where the model is no better than the mean image


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


def judge(p: ResolvedParameters, e: Evidence) -> Verdict:
    """The verdict on a trained model."""
    rules = (
        _diverged, _collapsed, _over_regularised, _not_learning, _bypassed, _partly_collapsed, _target_missed,
        _under_regularised, _prior_mismatch, _overfitted,
    )  # fmt: skip
    for rule in rules:
        verdict = rule(p, e)
        if verdict is not None:
            return verdict
    valid = e.valid
    return Verdict(
        "healthy",
        f"The model is healthy: its latents carry {valid.rate:.1f} nats per image in "
        f"{valid.informative_units(p.monitor.informative_unit_nats)} informative units.{_about_samples(e)}",
        [
            f"KL {valid.rate:,.1f} nats (linear theory expected {_expected_in_words(e)})",
            f"mean squared error {valid.mse_sampled:.3g} (validation, z sampled) against {e.mean_image_mse:.3g} of the "
            "mean image",
            *_samples_in_numbers(e),
        ],
    )


def _diverged(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    row = next((row for row in e.history if not is_finite(row)), e.history[-1])
    if not is_finite(row):
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        summary = f"Training diverged in epoch {row['epoch']:.0f}."
        reason = f"{', '.join(broken)} not finite in epoch {row['epoch']:.0f}"
    elif row["valid/kl"] > RUNAWAY_NATS:
        summary = "Training diverged: the KL grows without bound."
        reason = (
            f"KL of {row['valid/kl']:.3g} nats in the last epoch; more than {RUNAWAY_NATS:.0e} is a runaway encoder"
        )
    elif _exploded(p, e):
        summary = "Training exploded: the KL is high, and the model is no better than the mean image."
        reason = (
            f"KL of {_rate_in_training(e):.4g} nats (linear theory expected {_expected(e):.3g}) with "
            f"{e.valid.active_units(p.monitor.active_unit_threshold)} active units, mean squared error "
            f"{e.valid.mse_sampled:.3g} against {e.mean_image_mse:.3g} of the mean image"
        )
    else:
        return None
    usual = usual_learning_rate(p.train)
    remedy: dict[str, Any] = {"train.learning_rate": usual}
    if not remedies.above_usual(p):
        remedy["train.learning_rate"] = remedies.short(p.train.learning_rate / 10)
        if p.model.logvar_max > remedies.LOGVAR_CEILING:
            remedy["model.logvar_max"] = remedies.LOGVAR_CEILING
        if (p.train.gradient_clip or math.inf) > 1:
            remedy |= remedies.gentler_clip(p)
    if p.kl.control == "schedule" and p.elbo.effective_beta(e.mean_image_mse) < SMALLEST_BETA:
        remedy |= remedies.elbo(p, e.predicted)  # without a KL term nothing holds the posterior back
    advice = [] if p.train.precision == "fp32" else ["set train.precision to fp32 if it diverges again"]
    return Verdict("diverged", summary, [reason], remedy, advice)


def _exploded(p: ResolvedParameters, e: Evidence) -> bool:
    """Whether too large steps destroyed the model: it spends nats, and none of them describes an image."""
    if not _no_better_than_mean(e):
        return False
    same_for_all = e.valid.active_units(p.monitor.active_unit_threshold) == 0
    much = _expected(e) if same_for_all else RUNAWAY_RATIO * _expected(e)
    return e.valid.mse_sampled > 1 or _rate_in_training(e) > max(much, RUNAWAY_RATIO * COLLAPSED_BELOW_NATS)


def _rate_in_training(e: Evidence) -> float:
    """Of the kept epoch, before its latents were standardised: this hides a scale that ran away."""
    return next((row["valid/kl"] for row in e.history if row["epoch"] == e.kept_epoch), e.valid.rate)


def _collapsed(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    active = e.valid.active_units(p.monitor.active_unit_threshold)
    if e.valid.rate < COLLAPSED_BELOW_NATS:
        summary = f"The posterior collapsed: the latents carry next to nothing ({e.valid.rate:.2g} nats per image)."
    else:
        summary = f"The posterior collapsed: it is the same for every image, {e.valid.rate:.3g} nats from the prior."
    if active == 0 or e.valid.rate < COLLAPSED_BELOW_NATS:
        reasons = [
            f"KL of {e.valid.rate:.4g} nats per image over all {p.model.latent_dim} latents, {active} active units"
        ]
    elif ends_collapsed(e.history, p):
        last = e.history[-1]
        summary = "The posterior collapsed during training; the kept epoch precedes the collapse."
        reasons = [
            f"KL of {last['valid/kl']:.4g} nats and {last['valid/active_units']:.0f} active units in the last epoch, "
            f"{e.valid.rate:.3g} nats in epoch {e.kept_epoch}, which was kept"
        ]
    else:
        return None

    collapse_weight = e.predicted["collapse_kl_weight"]
    steps = steps_at_final_weight(e.history, p)
    if collapse_weight == 0:
        reasons.append("linear theory expects less than 1 nat for these images at any KL weight")
        advice = ["use other images in data.path: these are all alike"]
        return Verdict("collapsed", summary, reasons, advice=advice)
    asked = _expected(e) if p.kl.target_rate is None else p.kl.target_rate
    if p.kl.control != "schedule" and asked < COLLAPSED_BELOW_NATS:
        reasons.append(f"the control (kl.{p.kl.control_name}) was asked for a rate of {asked:.2g} nats")
        return Verdict("collapsed", summary, reasons, remedies.without_target(p, e.predicted))
    if p.kl.control == "schedule" and p.kl.max_weight >= collapse_weight:
        reasons.append(
            f"kl.max_weight = {p.kl.max_weight:g} is at or above {collapse_weight:.3g}; "
            "there, linear theory expects less than 1 nat for these images"
        )
        return Verdict("collapsed", summary, reasons, remedies.elbo(p, e.predicted) | remedies.normalised(p))
    to_elbo = remedies.elbo(p, e.predicted)
    if p.kl.control == "schedule" and NEAR_COLLAPSE * p.kl.max_weight > collapse_weight and to_elbo:
        reasons.append(
            f"kl.max_weight = {p.kl.max_weight:g} is close to {collapse_weight:.3g}, where linear theory expects less "
            f"than 1 nat; here it expected {_expected(e):.3g}"
        )
        return Verdict("collapsed", summary, reasons, to_elbo | remedies.normalised(p))
    if p.model.architecture == "autoregressive":
        reasons.append("an autoregressive decoder can ignore the latents: it sees the preceding pixels")
        return Verdict("collapsed", summary, reasons, remedies.of_autoregressive(p, e.predicted))
    if steps < ALARM_STEPS:
        reasons.append(
            f"only {steps:.0f} steps were trained at the final KL weight, "
            "too few to distinguish a collapse from a slow start"
        )
        ramp_end = first_final_epoch(p.kl, p.train.epochs)
        if ramp_end >= p.train.epochs and p.kl.schedule != "cyclical":
            return Verdict("collapsed", summary, reasons, remedies.ramp_within(p))
        epochs = math.ceil(ramp_end + len(e.history) * 3 * ALARM_STEPS / e.history[-1]["step"])
        remedy = remedies.longer_training(p, max(epochs, 2 * p.train.epochs), len(e.history))
        return Verdict("collapsed", summary, reasons, remedy)
    reasons.append(
        f"linear theory expected {_expected_in_words(e)} at this weight, "
        "so the optimisation is at fault, not the weight"
    )
    return Verdict("collapsed", summary, reasons, remedies.gentler(p, int(e.train["images"])))


def _over_regularised(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    """Only of a weight: a control's target says itself what the rate shall be."""
    beta, share = effective_beta(p, e), e.valid.mse_sampled / e.mean_image_mse
    if p.kl.control != "schedule" or beta is None or beta <= LARGEST_BETA or share <= LARGE_ERROR:
        return None
    return Verdict(
        "over_regularised",
        f"The KL term has too much weight: reconstructions keep {share:.0%} of the mean image's error.",
        [
            f"effective beta of {beta:.3g}, above {LARGEST_BETA:g}; mean squared error {e.valid.mse_sampled:.3g}, "
            f"{share:.2g} of the mean image's (more than {LARGE_ERROR:g})"
        ],
        remedies.elbo(p, e.predicted),
        ["if this weight is on purpose, set monitor.on_unhealthy to warn"],
    )


def _not_learning(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    if not _no_better_than_mean(e):
        return None
    reason = (
        f"mean squared error {e.valid.mse_sampled:.4g} against {e.mean_image_mse:.4g} of the mean image; "
        f"a model that learns gets below {NO_BETTER_THAN_MEAN:g} of that"
    )
    rate, usual = p.train.learning_rate, usual_learning_rate(p.train)
    if remedies.above_usual(p) or rate < remedies.SMALL_LEARNING_RATE * usual:
        remedy: dict[str, Any] = {"train.learning_rate": usual}
    else:
        remedy = {"train.epochs": 4 * p.train.epochs}
        # A loss that still falls needs time, not smaller steps; so does one that falling steps have brought to rest.
        if _settled(p, e) and p.train.learning_rate_schedule == "constant":
            remedy["train.learning_rate"] = remedies.short(rate / 4)
    return Verdict("not_learning", "The model does no better than the mean image.", [reason], remedy)


def _bypassed(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    """An autoregressive decoder that learnt from the preceding pixels, and hardly from its latents.

    A poor picture alone is no proof: means that feed on means drift, however much z says.
    """
    drawn, learnt = e.free_running, e.train["elbo"] - e.train["mean_image_elbo"]
    if drawn is None or drawn.mse < NO_BETTER_THAN_MEAN * drawn.mean_image_mse:
        return None
    if drawn.gain >= LITTLE_GAIN_SHARE * learnt:
        return None
    return Verdict(
        "partly_collapsed",
        "The decoder hardly uses its latents: what it draws from them alone is no better than the mean image.",
        [
            f"mean squared error {drawn.mse:.3g} without the preceding pixels of the image, against "
            f"{drawn.mean_image_mse:.3g} of the mean image ({e.valid.mse_sampled:.3g} with them)",
            f"the latents of another image cost only {drawn.gain:.3g} of the {learnt:.4g} nats that were learnt over "
            f"the mean image (less than {LITTLE_GAIN_SHARE:g})",
        ],
        remedies.of_autoregressive(p, e.predicted),
    )


def _partly_collapsed(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    expected = _expected(e)
    if not math.isfinite(expected) or p.model.architecture == "autoregressive":
        return None  # no KL term to fall short of, or a decoder that linear theory does not cover
    past_ramp = e.kept_epoch - first_final_epoch(p.kl, p.train.epochs)
    # What linear theory predicts is the rate against a Gaussian, not against a prior that learns the rest. A control
    # sets the rate of training, of which standardised latents have lost what lay in their moments.
    rate = e.valid.gaussian_rate if p.kl.control == "schedule" else _rate_in_training(e)
    if rate >= PARTLY_COLLAPSED_SHARE * expected or past_ramp < PARTLY_COLLAPSED_EPOCHS:
        return None
    flat = "training loss" if _settled(p, e) else "KL" if _grows_no_more(p, e) else ""
    if not flat:
        return None
    reason = (
        f"KL of {rate:.3g} nats, under {PARTLY_COLLAPSED_SHARE:g} × the {expected:.3g} that "
        f"linear theory expects, {past_ramp:.0f} epochs past the ramp and with a flat {flat}"
    )
    images = int(e.train["images"])
    doubt = (
        f"{p.model.latent_dim} latents for {images} training images: with so few, the prediction is too high, "
        "and too few images may be the whole cause; keep the recommended change only if its test ELBO is better"
    )
    return Verdict(
        "partly_collapsed",
        "Some of the latents collapsed: the KL is far below what these images allow.",
        [reason, *([doubt] if p.model.latent_dim > images * MOST_LATENTS_PER_IMAGE else [])],
        remedies.gentler(p, images),
    )


def _target_missed(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    """By the last epochs: the kept model's rate may have been changed since."""
    kl, last = p.kl, last_at_final_weight(e.history, p)
    if not last or not is_off_target(last, p):
        return None
    if kl.reconstruction_target is not None:
        return _error_missed(p, e, math.sqrt(fmean(row["valid/mse_sampled"] for row in last)))
    assert kl.target_rate is not None
    rate = fmean(row["valid/kl"] for row in last)
    reasons = [
        f"KL of {rate:.3g} nats over the last {len(last)} epochs, {rate / kl.target_rate - 1:+.0%} from "
        f"kl.{kl.control_name} = {kl.target_rate:g} (more than {RATE_TOLERANCE:.0%})"
    ]
    summary, weight = "The control missed its target rate.", last[-1]["kl_weight"]
    needed = e.predicted["target_kl_weight"]
    longer = remedies.longer_training(p, 2 * p.train.epochs, len(e.history))
    if rate > kl.target_rate and (kl.control == "capacity" or weight >= AT_BOUND * kl.max_weight):
        reasons.append(f"at kl.max_weight = {kl.max_weight:g}, the next nat costs less than it saves")
        return Verdict("target_missed", summary, reasons, remedies.higher_bound(p, needed) or longer)
    if rate < kl.target_rate and kl.min_weight > 0 and weight * AT_BOUND <= kl.min_weight:
        reasons.append(f"the weight fell to kl.min_weight = {kl.min_weight:g}")
        return Verdict("target_missed", summary, reasons, {"kl.min_weight": 0.0})
    reasons.append("the weight had not settled, or the network had not learnt to use it")
    advice = [f"or set kl.{kl.control_name} to {remedies.short(rate)}, the rate that it reached"]
    return Verdict("target_missed", summary, reasons, remedies.usual_gains(p) or longer, advice)


def _error_missed(p: ResolvedParameters, e: Evidence, error: float) -> Verdict | None:
    """GECO constrains the error of training; that of validation may exceed it where the model generalises no better."""
    target, trained = p.kl.reconstruction_target, math.sqrt(e.train["mse_sampled"])
    assert target is not None
    if trained <= (1 + ERROR_TOLERANCE) * target:
        return None
    reasons = [
        f"root mean squared error of {error:.3g} in validation and {trained:.3g} in training, more than "
        f"{1 + ERROR_TOLERANCE:g} × kl.reconstruction_target = {target:g}"
    ]
    reached = remedies.short(max(error, trained))
    advice = [f"set kl.reconstruction_target to {reached}, the error that it reached, or raise model.latent_dim"]
    summary = "The control missed its target: the error stays above it."
    if e.predicted["predicted_kl"] is None:
        reasons.append(f"linear theory expects no such error of {p.model.latent_dim} latents")
        return Verdict("target_missed", summary, reasons, advice=advice)
    longer = remedies.longer_training(p, 2 * p.train.epochs, len(e.history))
    return Verdict("target_missed", summary, reasons, longer, advice)


def _under_regularised(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    reached, final_beta = _reached_share(p, e), p.elbo.effective_beta(e.valid.mse_sampled)
    known = effective_beta(p, e)
    if known is None or known >= SMALLEST_BETA:
        return None
    reasons = [f"effective beta of {known:.3g}, below {SMALLEST_BETA:g}", *_samples_in_numbers(e)]
    summary = "The KL term has too little weight: what the latents mean is left to chance."
    if p.kl.control == "schedule" and final_beta >= SMALLEST_BETA and p.kl.schedule != "cyclical":
        reasons.append(
            f"the ramp ends after epoch {first_final_epoch(p.kl, p.train.epochs):g}, the training after "
            f"{len(e.history)}: the weight reached {reached:.2g} of its final value"
        )
        return Verdict("under_regularised", summary, reasons, remedies.ramp_within(p))
    if p.kl.control != "schedule":
        advice = [f"relax the target of the control (kl.{p.kl.control_name})"]
        return Verdict("under_regularised", summary, reasons, advice=advice)
    return Verdict("under_regularised", summary, reasons, remedies.higher_weight(p, e.predicted))


def _prior_mismatch(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    """Whether no prior gives good samples, neither that of the ELBO nor any that was fitted."""
    if e.samples is None or not (_own_is_poor(e.samples) and is_poor(e.samples.fitted, e.samples)):
        return None
    own, fitted = _article(e.own_prior), _article(e.prior)
    summary = f"Samples are poor, from {own} and from {fitted} fitted to the latents alike."
    if e.prior == e.own_prior:
        summary = f"Samples from {own} are poor, and no other prior fits the latents better."
    beta, to_elbo = effective_beta(p, e), remedies.elbo(p, e.predicted)
    if p.kl.control == "schedule" and beta is not None and beta < SMALL_BETA and to_elbo:
        reasons = [f"effective beta of {beta:.2g}, below {SMALL_BETA:g}", *_samples_in_numbers(e)]
        return Verdict("prior_mismatch", summary, reasons, to_elbo)
    if not _settled(p, e):
        longer = remedies.longer_training(p, 4 * p.train.epochs, len(e.history))
        return Verdict("prior_mismatch", summary, _samples_in_numbers(e), longer)
    advice = []
    if p.kl.control != "schedule":
        advice.append(f"relax the target of the control (kl.{p.kl.control_name})")
    return Verdict("prior_mismatch", summary, _samples_in_numbers(e), remedies.simpler_latents(p, e.predicted), advice)


def is_poor(quality: SampleQuality, among: SampleEvidence) -> bool:
    """Whether too few of the samples lie among the images of the data, or too few of those among the samples.

    Precision alone is high for samples that are all alike, and recall for samples that are scattered.
    """
    return any(
        getattr(quality, measure).value < POOR_SHARE * getattr(among.reconstructions, measure).value
        for measure in ("precision", "recall", "coverage")
    )


def _own_is_poor(samples: SampleEvidence) -> bool:
    """By the pictures, or by the certificate: 2 standard errors beyond doubt."""
    certain = samples.aggregate_kl.value - 2 * samples.aggregate_kl.standard_error
    return certain > MISMATCH_NATS or is_poor(samples.standard, samples)


def _about_samples(e: Evidence) -> str:
    """A sentence on what to sample from; none where the prior of the ELBO will do."""
    if e.samples is None or not _own_is_poor(e.samples) or e.prior == e.own_prior:
        return ""
    own, nats = _article(e.own_prior), f"at least {e.samples.aggregate_kl.value:.2g} nats"
    why = f"the latents of images are {nats} from {own}"
    if is_poor(e.samples.standard, e.samples):
        why = f"samples from {own} are poor, since the latents of images are {nats} from it"
    return f" Sample from its fitted prior ({_article(e.prior)}): {why}."


def _samples_in_numbers(e: Evidence) -> list[str]:
    if e.samples is None:
        return []
    kinds = [(e.own_prior, e.samples.standard), ("reconstructions", e.samples.reconstructions)]
    if e.prior != e.own_prior:
        kinds.insert(0, ("the fitted prior", e.samples.fitted))
    measured = "; ".join(
        f"{measure} {' / '.join(f'{getattr(found, measure).value:.2f}' for _, found in kinds)}"
        for measure in ("precision", "recall", "coverage")
    )
    names = " / of ".join(name for name, _ in kinds[:-1])
    lines = [f"samples of {names} / reconstructions, beside training images: {measured}"]
    if e.prior != e.own_prior:
        p, bound = STANDARD if e.own_prior == STANDARD else "p(z)", e.samples.aggregate_kl
        lines.append(f"KL(q(z) ‖ {p}) of at least {bound.value:.3g} ± {bound.standard_error:.2g} nats")
    return lines


def _article(prior: str) -> str:
    return prior if prior == STANDARD else f"a {prior}"


def _overfitted(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    gap = e.train["elbo"] - e.valid.elbo
    learnt = e.train["elbo"] - e.train["mean_image_elbo"]
    if learnt <= 0 or gap <= OVERFITTED_SHARE * learnt:
        return None
    mirrored = "set data.augment to flip if mirrored images are as likely, or " if p.data.augment == "none" else ""
    advice = f"{mirrored}add images: a smaller network narrows the difference, but often for a lower validation ELBO"
    return Verdict(
        "overfitted",
        "The model fits its training images far better than unseen ones.",
        [
            f"ELBO of {e.train['elbo']:.4g} nats in training, {e.valid.elbo:.4g} in validation: the difference "
            f"is {gap / learnt:.3g} of what was learnt over the mean image (more than {OVERFITTED_SHARE:g})"
        ],
        remedies.less_fitted(p),
        [advice],
    )


def _no_better_than_mean(e: Evidence) -> bool:
    return e.valid.mse_sampled >= NO_BETTER_THAN_MEAN * e.mean_image_mse


def effective_beta(p: ResolvedParameters, e: Evidence) -> float | None:
    """β·σ²/MSE at the weight of the kept epoch; None where a capacity is met, which leaves the weight unknown.

    There the loss bends: the value of a nat lies anywhere between −γ and γ.
    """
    final = p.elbo.effective_beta(e.valid.mse_sampled)
    kept = next((row for row in e.history if row["epoch"] == e.kept_epoch), None)
    if p.kl.control == "schedule" or kept is None:
        return final * _reached_share(p, e)
    if p.kl.capacity is not None and kept["valid/kl"] <= (1 + RATE_TOLERANCE) * p.kl.capacity:
        return None
    return final * kept["kl_weight"]


def _reached_share(p: ResolvedParameters, e: Evidence) -> float:
    """The share of the final KL weight that the kept epoch had: 1 unless the ramp outlasted the training."""
    if p.kl.control != "schedule" or not p.kl.max_weight:
        return 1.0
    kept = next((row for row in e.history if row["epoch"] == e.kept_epoch), None)
    if kept is None or at_final_weight(kept, p):
        return 1.0
    return min(kept["kl_weight"] / p.kl.max_weight, 1.0)


def _expected(e: Evidence) -> float:
    """The KL that linear theory predicts; infinite where the KL term has no weight."""
    expected = e.predicted["predicted_kl"]
    return math.inf if expected is None else expected


def _expected_in_words(e: Evidence) -> str:
    expected = _expected(e)
    return f"{expected:,.3g} nats" if math.isfinite(expected) else "a KL without limit"


def _settled(p: ResolvedParameters, e: Evidence) -> bool:
    """Whether the training loss is flat: it fell, of late, by a small share of its whole fall."""
    before, last = _of_late(p, e, "train/loss")
    losses = [row["train/loss"] for row in e.history]
    return before - last <= FLAT_SHARE * (max(losses) - min(losses))


def _grows_no_more(p: ResolvedParameters, e: Evidence) -> bool:
    before, last = _of_late(p, e, "valid/kl")
    return last <= KL_GROWS * before


def _of_late(p: ResolvedParameters, e: Evidence, name: str) -> tuple[float, float]:
    """A column's mean over the last ten epochs at the final weight, by halves; NaN with fewer, which passes no test."""
    final = [row[name] for row in e.history if at_final_weight(row, p)][-2 * PARTLY_COLLAPSED_EPOCHS :]
    if len(final) < 2 * PARTLY_COLLAPSED_EPOCHS:
        return math.nan, math.nan
    return fmean(final[:PARTLY_COLLAPSED_EPOCHS]), fmean(final[PARTLY_COLLAPSED_EPOCHS:])
