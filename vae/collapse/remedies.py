"""Remedies: changes of parameters, by name with their values. `vae.collapse.diagnosis` chooses among them."""

import math
from collections.abc import Mapping
from typing import Any

from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.resolved import ResolvedParameters, changed, usual_learning_rate
from vae.config.sections import KL
from vae.config.text import written
from vae.schedules.kl import first_final_epoch

SMALL_LEARNING_RATE = 0.05  # of the usual; below it a training that has learnt nothing is merely slow

# Values at which trainings of many kinds were healthy.
LEAST_NORMALISED = 8  # images in a batch; over fewer, batch norm is too noisy
USUAL_CLIP = 100.0  # of the norm of the gradient, in nats
USUAL_BATCH = 32
USUAL_WIDTH = 256
HEAVY_PERCEPTUAL = 2  # nats for each of an image's values; 0.5 and 0.8 were well balanced (docs/features.md)
WIDEST, HIGHEST_WEIGHT = 8192, 1e6  # as parameters allow
LOGVAR_CEILING = 2.0  # for a posterior that ran away
MANY_LATENTS = 32
IMAGES_PER_LATENT = 2  # of the training split; with fewer, most latents encode nothing that generalises


def elbo(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """The ELBO with the best σ.

    A weight that is calibrated before training is close to it; a σ that follows the training reaches it.
    """
    weight, collapse = predicted["calibrated_kl_weight"], predicted["collapse_kl_weight"]
    if 0 < collapse <= weight:  # even the ELBO carries less than 1 nat of such images
        return {"kl.max_weight": short(collapse / 4)}
    if p.objective.likelihood == "bernoulli":
        return {"kl.max_weight": short(weight)} if short(weight) != p.kl.max_weight else {}
    changes: dict[str, Any] = {}
    if p.objective.reduction == "mean":
        changes["objective.reduction"] = "sum"
    if not isinstance(p.objective.sigma, str):
        # A bound of several samples has no error of a batch for its σ; of 8-bit levels that is not the best σ.
        learned = p.objective.importance_samples_train > 1 or p.objective.is_discretised
        changes["objective.sigma"] = "learned" if learned else "optimal"
    if p.kl.max_weight != 1:
        changes["kl.max_weight"] = 1.0
    return changes


def higher_weight(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """The ELBO if the weight is below its, else twice the weight; nothing if a control sets the weight."""
    if p.kl.control != "schedule":
        return {}
    changes = elbo(p, predicted)
    rises = changes.get("kl.max_weight", -math.inf) > p.kl.max_weight
    if rises or _another_objective(changes):
        return changes
    return {"kl.max_weight": min(short(2 * p.kl.max_weight) or 1.0, HIGHEST_WEIGHT)}


def simpler_latents(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """Half the latents, whose density is easier to fit; a higher weight where there are few already."""
    if p.model.latent_dim < MANY_LATENTS or not p.model.is_one_vector:
        return higher_weight(p, predicted)
    fewer = p.model.latent_dim // 2
    if p.objective.reduction == "mean":  # the weight is per latent: keep the total
        return {"model.latent_dim": fewer, "kl.max_weight": short(p.kl.max_weight / 2)}
    return {"model.latent_dim": fewer}


def _another_objective(changes: Mapping[str, Any]) -> bool:
    """Whether the weights before and after belong to different losses and cannot be compared."""
    return any(name.startswith("objective.") for name in changes)


def without_target(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """Switches off a control whose target is next to nothing."""
    return {f"kl.{p.kl.control_name}": None, **elbo(p, predicted)}


def relaxed(p: ResolvedParameters) -> str:
    """As advice: what a control was asked for is its owner's to change."""
    return f"relax the target of the control (kl.{p.kl.control_name})"


def of_autoregressive(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """Makes latents pay off for a decoder that can ignore them: a lower weight, then free bits."""
    if p.kl.control != "schedule":
        return without_target(p, predicted)
    changes = elbo(p, predicted)
    lowers = changes.get("kl.max_weight", math.inf) < p.kl.max_weight
    if lowers or _another_objective(changes):
        return changes
    return free_bits(p) or ({"kl.max_weight": short(p.kl.max_weight / 2)} if p.kl.max_weight else changes)


def gentler_clip(p: ResolvedParameters) -> dict[str, Any]:
    """The default clipping if there is none or less, else a tenth of the present norm."""
    if p.train.gradient_clip is None or p.train.gradient_clip > USUAL_CLIP:
        return {"train.gradient_clip": USUAL_CLIP}
    return {"train.gradient_clip": short(p.train.gradient_clip / 10)}


def lighter_perceptual(p: ResolvedParameters) -> dict[str, Any]:
    """One nat for each of an image's values, in place of a weight that drowns their likelihood."""
    values = math.prod(p.data.image_shape)
    return {"objective.perceptual": short(values)} if p.objective.perceptual > HEAVY_PERCEPTUAL * values else {}


def normalised(p: ResolvedParameters) -> dict[str, Any]:
    """Batch norm for a convolutional network without it, which keeps latents from dying in the first steps."""
    lacks = p.model.architecture == "conv" and not p.model.batch_norm and not p.train.initial_weights
    return {"model.batch_norm": True} if lacks and p.train.batch_size >= LEAST_NORMALISED else {}


def gentler(p: ResolvedParameters, images: int) -> dict[str, Any]:
    """Removes what keeps the latents from carrying what the images hold, the likeliest cause first."""
    latents = p.model.latent_dim
    if p.model.batch_norm and p.train.batch_size < LEAST_NORMALISED <= images:
        return {"train.batch_size": min(USUAL_BATCH, images)}
    if latents * IMAGES_PER_LATENT > images and p.model.is_one_vector:
        fewer = max(images // IMAGES_PER_LATENT, 1)
        if p.objective.reduction == "mean":  # the weight is per latent: keep the total
            return {"model.latent_dim": fewer, "kl.max_weight": short(p.kl.max_weight * fewer / latents)}
        return {"model.latent_dim": fewer}
    if p.model.architecture in ("mlp", "gated_mlp") and min(p.model.widths) < latents:
        widths = [max(width, min(4 * latents, WIDEST), USUAL_WIDTH) for width in p.model.widths]
        return {"model.widths": widths if len(widths) > 1 else [*widths, widths[0] // 2]}
    if above_usual(p):
        return {"train.learning_rate": usual_learning_rate(p.train)}
    changes: dict[str, Any] = {"train.learning_rate": short(p.train.learning_rate / 4)}
    if p.kl.control in ("schedule", "capacity"):
        changes |= longer_ramp(p)
    has_group_norm_only = p.model.architecture == "autoencoder_kl" or p.train.gradient_checkpointing
    can_have_batch_norm = not has_group_norm_only and not p.model.batch_norm
    if can_have_batch_norm and p.train.batch_size >= LEAST_NORMALISED:
        changes["model.batch_norm"] = True
    else:
        changes |= free_bits(p)
    return changes


def free_bits(p: ResolvedParameters) -> dict[str, Any]:
    """Doubles the free bits, per latent, or in total or of each level; nothing where other parameters exclude them.

    Nor of a map of latents, which need not carry the same everywhere.
    """
    if p.model.latent_shape is not None or p.kl.control != "schedule" or p.objective.importance_samples_train > 1:
        return {}
    if p.kl.free_bits_total:
        return {"kl.free_bits_total": short(2 * p.kl.free_bits_total)}
    if p.model.lower_latents is not None and not p.kl.free_bits:  # of each level
        return {"kl.free_bits_total": short(max(0.1 * p.model.latent_dim, 2 * COLLAPSED_BELOW_NATS))}
    if p.model.prior != "standard":  # its rate is not a sum over latents
        return {"kl.free_bits_total": short(0.1 * p.model.latent_dim)}
    return {"kl.free_bits": short(max(2 * p.kl.free_bits, 0.1))}


def ramp_within(p: ResolvedParameters) -> dict[str, Any]:
    """A ramp over the first sixth of the training, in place of one that outlasts it."""
    return {"kl.annealing_epochs": short(max(p.train.epochs / 6, 0.5))}


def longer_training(p: ResolvedParameters, epochs: int, had: int) -> dict[str, Any]:
    """At most four times as long, and without the patience that ended the training."""
    changes: dict[str, Any] = {"train.epochs": min(epochs, 4 * p.train.epochs)}
    return changes | ({"train.patience": None} if p.train.patience and had < p.train.epochs else {})


def less_fitted(p: ResolvedParameters) -> dict[str, Any]:
    """The best epoch in place of the last, where that one was kept; else half the widths and less training."""
    if p.train.select == "last":
        return {"train.select": "best"}
    narrower = [max(width // 2, min(width, 4)) for width in p.model.widths]
    return ({"model.widths": narrower} if narrower != p.model.widths else {}) | less_training(p)


def less_training(p: ResolvedParameters) -> dict[str, Any]:
    """Half the epochs; at a constant learning rate, which any epoch can end, the patience to stop in time."""
    if p.train.learning_rate_schedule != "constant":
        half = changed(p, {"train.epochs": max(p.train.epochs // 2, 1)})
        within = ramp_within(half) if first_final_epoch(half.kl, half.train.epochs) >= half.train.epochs else {}
        return {"train.epochs": half.train.epochs} | within if half != p else {}
    patience = max(p.train.epochs // 10, 3)
    return {"train.patience": patience} if (p.train.patience or math.inf) > patience else {}


def longer_ramp(p: ResolvedParameters) -> dict[str, Any]:
    """Doubles the ramp, in a schedule that has one, and makes the training at least twice as long as it."""
    ramp = short(max(2 * p.kl.annealing_epochs, 5))
    changes: dict[str, Any] = {"kl.annealing_epochs": ramp}
    if p.kl.schedule in ("constant", "cyclical"):
        changes["kl.schedule"] = "linear"
    if p.train.epochs < 2 * ramp:
        changes["train.epochs"] = math.ceil(2 * ramp)
    return changes


def in_words(changes: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {written(value)}" for name, value in changes.items()]


def above_usual(p: ResolvedParameters) -> bool:
    """Whether the learning rate is above the usual one; a copy of that with fewer digits is not."""
    return p.train.learning_rate > 1.01 * usual_learning_rate(p.train)


def higher_bound(p: ResolvedParameters, needed: float) -> dict[str, Any]:
    """A highest weight of a control at which its rate is in reach; needed: as predicted."""
    weight = min(max(with_room(needed), short(2 * p.kl.max_weight) or 1.0), HIGHEST_WEIGHT)
    return {"kl.max_weight": weight} if weight > p.kl.max_weight else {}


def usual_gains(p: ResolvedParameters) -> dict[str, Any]:
    """The default gains of a PI controller that is slower, as gains of other units are."""
    usual = {name: KL.model_fields[name].default for name in ("proportional_gain", "integral_gain")}
    if p.kl.control != "pi" or p.kl.integral_gain >= usual["integral_gain"]:
        return {}
    return {f"kl.{name}": gain for name, gain in usual.items() if getattr(p.kl, name) != gain}


def with_room(needed: float) -> float:
    """A highest weight of a control that suffices where preflight says `needed`: deep decoders took up to 3 ×."""
    return min(short(4 * needed), HIGHEST_WEIGHT)


def short(value: float) -> float:
    """Two significant digits, as a person would write it."""
    return float(f"{value:.2g}")
