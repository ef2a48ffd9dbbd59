"""The verdict on a VAE: the first rule that applies names it, with its numbers and a remedy."""

import math
from typing import Any

import numpy as np

from vae.collapse import remedies
from vae.collapse.control_rules import target_missed
from vae.collapse.evidence import (
    NO_BETTER_THAN_MEAN,
    Evidence,
    Verdict,
    effective_beta,
    expected_in_words,
    expected_rate,
    grows_no_more,
    least_collapse_weight,
    no_better_than_mean,
    rate_in_training,
    reached_share,
    settled,
    source,
    supported_rate,
)
from vae.collapse.linear_theory import MOST_LATENTS_PER_IMAGE
from vae.collapse.sample_rules import about_samples, prior_mismatch, samples_in_numbers
from vae.collapse.warnings import SMALLEST_BETA
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.resolved import ResolvedParameters, usual_learning_rate
from vae.schedules.kl import first_final_epoch
from vae.training.history import ALARM_STEPS, ends_collapsed, is_finite, steps_at_final_weight

# Starting points, from runs on digits, MNIST and leaf photos; docs/verdicts.md gives the reasons.
PARTLY_COLLAPSED_SHARE = 0.4  # of the predicted KL
PARTLY_COLLAPSED_EPOCHS = 5  # past the ramp, before a low KL counts
LITTLE_GAIN_SHARE = 0.2  # of what was learnt over the mean image
LARGEST_BETA, LARGE_ERROR = 8.0, 0.25  # beyond both is too much weight: β, and the share of the mean image's error
NEAR_COLLAPSE = 2  # a weight that is less than this factor below the collapse weight
OVERFITTED_SHARE = 0.25  # of what was learnt
RUNAWAY_NATS = 1e5
RUNAWAY_RATIO = 10  # of the predicted KL, where the model is no better than the mean image


def judge(p: ResolvedParameters, e: Evidence) -> Verdict:
    """The verdict on a trained model."""
    rules = (
        _diverged, _collapsed, _over_regularised, _not_learning, _bypassed, _level_collapsed, _partly_collapsed,
        target_missed,
        _under_regularised, prior_mismatch, _overfitted,
    )  # fmt: skip
    for rule in rules:
        verdict = rule(p, e)
        if verdict is not None:
            return verdict
    valid, units = e.valid, "units" if p.model.latent_shape is None else "channels"
    return Verdict(
        "healthy",
        f"The model is healthy: its latents carry {valid.rate:.1f} nats per image in "
        f"{valid.informative_units(p.monitor.informative_unit_nats)} informative {units}.{about_samples(e)}",
        [
            f"KL {valid.rate:,.1f} nats ({source(e)} expected {expected_in_words(e)})",
            f"mean squared error {valid.mse_sampled:.3g} (validation, z sampled) against {e.mean_image_mse:.3g} of the "
            "mean image",
            *_idle_channels(p, e),
            *samples_in_numbers(e),
        ],
    )


def _idle_channels(p: ResolvedParameters, e: Evidence) -> list[str]:
    """The channels of a map of latents that carry nothing; latents of a vector may be many, and unused."""
    idle = np.flatnonzero(~e.valid.active(p.monitor.active_unit_threshold))
    if p.model.latent_shape is None or not len(idle):
        return []
    names = ", ".join(f"z{channel}" for channel in idle)
    return [
        f"{len(idle)} of {p.model.units} channels carry nothing, as their means are the same for every image: {names}"
    ]


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
            f"KL of {rate_in_training(e):.4g} nats ({source(e)} expected {expected_rate(e):.3g}) with "
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
    if not no_better_than_mean(e):
        return False
    same_for_all = e.valid.active_units(p.monitor.active_unit_threshold) == 0
    much = expected_rate(e) if same_for_all else RUNAWAY_RATIO * expected_rate(e)
    return e.valid.mse_sampled > 1 or rate_in_training(e) > max(much, RUNAWAY_RATIO * COLLAPSED_BELOW_NATS)


def _collapsed(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    active = e.valid.active_units(p.monitor.active_unit_threshold)
    if e.valid.rate < COLLAPSED_BELOW_NATS:
        summary = (
            f"The posterior collapsed: the latents carry next to nothing ({max(e.valid.rate, 0):.2g} nats per image)."
        )
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

    collapse_weight, by = least_collapse_weight(e)
    steps = steps_at_final_weight(e.history, p)
    if collapse_weight == 0:
        reasons.append(f"{by} expects less than 1 nat for these images at any KL weight")
        advice = ["use other images in data.path: these are all alike"]
        return Verdict("collapsed", summary, reasons, advice=advice)
    asked = expected_rate(e) if p.kl.target_rate is None else p.kl.target_rate
    if p.kl.control != "schedule" and asked < COLLAPSED_BELOW_NATS:
        reasons.append(f"the control (kl.{p.kl.control_name}) was asked for a rate of {asked:.2g} nats")
        return Verdict("collapsed", summary, reasons, remedies.without_target(p, e.predicted))
    if p.kl.control == "schedule" and p.kl.max_weight >= collapse_weight:
        reasons.append(
            f"kl.max_weight = {p.kl.max_weight:g} is at or above {collapse_weight:.3g}; "
            f"there, {by} expects less than 1 nat for these images"
        )
        return Verdict("collapsed", summary, reasons, remedies.elbo(p, e.predicted) | remedies.normalised(p))
    to_elbo = remedies.elbo(p, e.predicted)
    if p.kl.control == "schedule" and NEAR_COLLAPSE * p.kl.max_weight > collapse_weight and to_elbo:
        reasons.append(
            f"kl.max_weight = {p.kl.max_weight:g} is close to {collapse_weight:.3g}, where {by} expects less "
            f"than 1 nat; here {source(e)} expected {expected_rate(e):.3g}"
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
        f"{source(e)} expected {expected_in_words(e)} at this weight, so the optimisation is at fault, not the weight"
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
    if not no_better_than_mean(e):
        return None
    reason = (
        f"mean squared error {e.valid.mse_sampled:.4g} against {e.mean_image_mse:.4g} of the mean image; "
        f"a model that learns gets below {NO_BETTER_THAN_MEAN:g} of that"
    )
    rate, usual = p.train.learning_rate, usual_learning_rate(p.train)
    remedy: dict[str, Any]
    if lighter := remedies.lighter_perceptual(p):
        remedy = lighter
    elif remedies.above_usual(p) or rate < remedies.SMALL_LEARNING_RATE * usual:
        remedy = {"train.learning_rate": usual}
    else:
        remedy = {"train.epochs": 4 * p.train.epochs}
        # A loss that still falls needs time, not smaller steps; so does one that falling steps have brought to rest.
        if settled(p, e) and p.train.learning_rate_schedule == "constant":
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


def _level_collapsed(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    """One of two levels of latents carries nothing. (Where both do, the whole posterior collapsed.)"""
    kl = e.valid.kl_of_levels
    if not kl or min(kl.values()) >= COLLAPSED_BELOW_NATS:
        return None
    top_is_dead = kl["kl_top"] < kl["kl_lower"]
    dead, alive = ("upper", "lower") if top_is_dead else ("lower", "upper")
    # Free bits reward the level that is alive too; a vector of its latents alone is the simpler model.
    advice = [] if top_is_dead else ["or set model.lower_latents to null: one level is the simpler model"]
    summary = f"The {dead} level of latents collapsed: the {alive} one carries all there is."
    reasons = [f"KL of {min(kl.values()):.3g} nats in the {dead} level, {max(kl.values()):.4g} in the {alive} one"]
    asked = p.kl.target_rate
    if asked is not None and asked < 2 * COLLAPSED_BELOW_NATS:
        reasons.append(f"the control (kl.{p.kl.control_name}) was asked for {asked:.2g} nats: under 1 for each level")
        return Verdict("partly_collapsed", summary, reasons, remedies.without_target(p, e.predicted), advice)
    if p.kl.control in ("pi", "geco"):  # neither free bits nor a ramp go with them
        return Verdict("partly_collapsed", summary, reasons, advice=[remedies.relaxed(p), *advice])
    remedy = remedies.free_bits(p) or remedies.longer_ramp(p)
    return Verdict("partly_collapsed", summary, reasons, remedy, advice)


def _partly_collapsed(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    expected, by = supported_rate(e)
    if not math.isfinite(expected) or p.model.architecture == "autoregressive":
        return None  # no KL term to fall short of, or a decoder whose curve is too uncertain
    past_ramp = e.kept_epoch - first_final_epoch(p.kl, p.train.epochs)
    # What preflight predicts is the rate against a Gaussian, not against a prior that learns the rest. A control
    # sets the rate of training, of which standardised latents have lost what lay in their moments.
    rate = e.valid.gaussian_rate if p.kl.control == "schedule" else rate_in_training(e)
    if rate >= PARTLY_COLLAPSED_SHARE * expected or past_ramp < PARTLY_COLLAPSED_EPOCHS:
        return None
    flat = "training loss" if settled(p, e) else "KL" if grows_no_more(p, e) else ""
    if not flat:
        return None
    reason = (
        f"KL of {rate:.3g} nats, under {PARTLY_COLLAPSED_SHARE:g} × the {expected:.3g} that "
        f"{by} expects, {past_ramp:.0f} epochs past the ramp and with a flat {flat}"
    )
    images = int(e.train["images"])
    doubt = (
        f"{p.model.latent_dim} latents for {images} training images: with so few, the prediction is too high, "
        "and too few images may be the whole cause; keep the recommended change only if its test ELBO is better"
    )
    return Verdict(
        "partly_collapsed",
        "Some of the latents collapsed: the KL is far below what these images allow.",
        [reason, *_idle_channels(p, e), *([doubt] if p.model.latent_dim > images * MOST_LATENTS_PER_IMAGE else [])],
        remedies.gentler(p, images),
    )


def _under_regularised(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    reached, final_beta = reached_share(p, e), p.elbo.effective_beta(e.valid.mse_sampled)
    known = effective_beta(p, e)
    if known is None or known >= SMALLEST_BETA:
        return None
    reasons = [f"effective beta of {known:.3g}, below {SMALLEST_BETA:g}", *samples_in_numbers(e)]
    summary = "The KL term has too little weight: what the latents mean is left to chance."
    if p.kl.control == "schedule" and final_beta >= SMALLEST_BETA and p.kl.schedule != "cyclical":
        reasons.append(
            f"the ramp ends after epoch {first_final_epoch(p.kl, p.train.epochs):g}, the training after "
            f"{len(e.history)}: the weight reached {reached:.2g} of its final value"
        )
        return Verdict("under_regularised", summary, reasons, remedies.ramp_within(p))
    if p.kl.control != "schedule":
        return Verdict("under_regularised", summary, reasons, advice=[remedies.relaxed(p)])
    return Verdict("under_regularised", summary, reasons, remedies.higher_weight(p, e.predicted))


def _overfitted(p: ResolvedParameters, e: Evidence) -> Verdict | None:
    gap = e.train["elbo"] - e.valid.elbo
    learnt = e.train["elbo"] - e.train["mean_image_elbo"]
    if learnt <= 0 or gap <= OVERFITTED_SHARE * learnt:
        return None
    height, width = p.data.image_size
    more = {"none": "flip or dihedral", "flip": "dihedral"} if height == width else {"none": "flip"}
    augment = more.get(p.data.augment)
    turned = f"set data.augment to {augment} if images turned so are just as plausible, or " if augment else ""
    advice = f"{turned}add images: a smaller network narrows the difference, but often for a lower validation ELBO"
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
