"""Changes of parameters that remedy a diagnosis, by name with their values; `vae.collapse.diagnosis` chooses."""

import math
from collections.abc import Mapping
from typing import Any

from vae.config.resolved import ResolvedParameters

# What a remedy falls back on: values at which trainings of many kinds were healthy.
USUAL_LEARNING_RATE = 2e-3  # with Adam
SMALL_LEARNING_RATE = 1e-4  # below it a training that has learnt nothing has hardly begun
LEAST_NORMALISED = 8  # images: batch norm over fewer says more of the batch than of the image
USUAL_CLIP = 100.0  # of the norm of the gradient, in nats
USUAL_BATCH = 32
USUAL_WIDTH = 256
WIDEST, HIGHEST_WEIGHT = 8192, 1e6  # as parameters allow
LOGVAR_CEILING = 2.0  # of a posterior that ran away
IMAGES_A_LATENT = 2  # with fewer training images than that most latents find nothing that holds for others


def elbo(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """The objective whose rate counts as much as its distortion: the ELBO, with the sigma that fits best.

    A weight that is calibrated before training comes near to it; a sigma that follows the training gets there.
    """
    weight, collapse = predicted["calibrated_kl_weight"], predicted["collapse_kl_weight"]
    if 0 < collapse <= weight:  # of such images even the ELBO keeps less than 1 nat
        return {"kl.max_weight": short(collapse / 4)}
    if p.objective.likelihood == "bernoulli":
        return {"kl.max_weight": short(weight)}
    changes: dict[str, Any] = {}
    if p.objective.reduction == "mean":
        changes["objective.reduction"] = "sum"
    if not isinstance(p.objective.sigma, str):
        # The importance-weighted bound can not take the error of a batch for its sigma.
        many = p.objective.importance_samples_train > 1
        changes["objective.sigma"] = "learned" if many else "optimal"
    if p.kl.max_weight != 1:
        changes["kl.max_weight"] = 1.0
    return changes


def higher_weight(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """The ELBO where the weight is below it, else twice the weight; nothing where a control sets it."""
    if p.kl.control != "schedule":
        return {}
    changes = elbo(p, predicted)
    rises = changes.get("kl.max_weight", -math.inf) > p.kl.max_weight
    return (
        changes
        if rises or _another_objective(changes)
        else {"kl.max_weight": min(short(2 * p.kl.max_weight) or 1.0, HIGHEST_WEIGHT)}
    )


def _another_objective(changes: Mapping[str, Any]) -> bool:
    """Whether the weight before and after are of different losses, and do not compare."""
    return any(name.startswith("objective.") for name in changes)


def without_target(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """A control that was asked for next to nothing, switched off."""
    name = {"capacity": "capacity", "pi": "target_kl", "geco": "reconstruction_target"}[p.kl.control]
    return {f"kl.{name}": None, **elbo(p, predicted)}


def of_autoregressive(p: ResolvedParameters, predicted: Mapping[str, Any]) -> dict[str, Any]:
    """What makes latents worth their cost to a decoder that can do without them: a lower weight, then free bits."""
    if p.kl.control != "schedule":
        return without_target(p, predicted)
    changes = elbo(p, predicted)
    lowers = changes.get("kl.max_weight", math.inf) < p.kl.max_weight
    if lowers or _another_objective(changes):
        return changes
    return free_bits(p) or {"kl.max_weight": short(p.kl.max_weight / 2)}


def gentler_clip(p: ResolvedParameters) -> dict[str, Any]:
    """The default's clipping where there is less, else a tenth of what there is."""
    if p.train.gradient_clip is None or p.train.gradient_clip > USUAL_CLIP:
        return {"train.gradient_clip": USUAL_CLIP}
    return {"train.gradient_clip": short(p.train.gradient_clip / 10)}


def normalised(p: ResolvedParameters) -> dict[str, Any]:
    """Batch norm in a convolutional network without: what else keeps latents from dying in the first steps."""
    lacks = p.model.architecture == "conv" and not p.model.batch_norm and not p.train.initial_weights
    return {"model.batch_norm": True} if lacks and p.train.batch_size >= LEAST_NORMALISED else {}


def gentler(p: ResolvedParameters, images: int) -> dict[str, Any]:
    """Where the images hold more than the latents carry: what keeps them from learning it, the surest cause first."""
    latents = p.model.latent_dim
    if p.model.batch_norm and p.train.batch_size < LEAST_NORMALISED <= images:
        return {"train.batch_size": min(USUAL_BATCH, images)}
    if latents * IMAGES_A_LATENT > images:
        fewer = max(images // IMAGES_A_LATENT, 1)
        if p.objective.reduction == "mean":  # its weight is a latent's: the same for all of them together
            return {"model.latent_dim": fewer, "kl.max_weight": short(p.kl.max_weight * fewer / latents)}
        return {"model.latent_dim": fewer}
    if p.model.architecture in ("mlp", "gated_mlp") and min(p.model.widths) < latents:
        return {
            "model.widths": [max(width, min(4 * latents, WIDEST), USUAL_WIDTH) for width in p.model.widths]
        }
    if p.train.learning_rate > USUAL_LEARNING_RATE:
        return {"train.learning_rate": USUAL_LEARNING_RATE}
    changes: dict[str, Any] = {"train.learning_rate": short(p.train.learning_rate / 4)}
    if p.kl.control in ("schedule", "capacity"):
        changes |= longer_ramp(p)
    if not p.model.batch_norm and p.train.batch_size >= LEAST_NORMALISED:
        changes["model.batch_norm"] = True
    else:
        changes |= free_bits(p)
    return changes


def free_bits(p: ResolvedParameters) -> dict[str, Any]:
    """Twice what is free, of each latent or of all; nothing where free bits do not go with the other parameters."""
    if p.kl.control != "schedule" or p.objective.importance_samples_train > 1:
        return {}
    if p.kl.free_bits_total:
        return {"kl.free_bits_total": short(2 * p.kl.free_bits_total)}
    return {"kl.free_bits": short(max(2 * p.kl.free_bits, 0.1))}


def ramp_within(p: ResolvedParameters) -> dict[str, Any]:
    """A ramp over the first sixth of the training, where it would have outlasted it."""
    return {"kl.annealing_epochs": short(max(p.train.epochs / 6, 0.5))}


def longer_training(p: ResolvedParameters, epochs: int, had: int) -> dict[str, Any]:
    """At most four times as long; without the patience that ended it, if it did."""
    changes: dict[str, Any] = {"train.epochs": min(epochs, 4 * p.train.epochs)}
    return changes | ({"train.patience": None} if p.train.patience and had < p.train.epochs else {})


def longer_ramp(p: ResolvedParameters) -> dict[str, Any]:
    """Twice the ramp, of a schedule that has one, in a training that is twice as long at least."""
    ramp = short(max(2 * p.kl.annealing_epochs, 5))
    changes: dict[str, Any] = {"kl.annealing_epochs": ramp}
    if p.kl.schedule in ("constant", "cyclical"):
        changes["kl.schedule"] = "linear"
    if p.train.epochs < 2 * ramp:
        changes["train.epochs"] = math.ceil(2 * ramp)
    return changes


def in_words(changes: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {written(value)}" for name, value in changes.items()]


def written(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def short(value: float) -> float:
    """Two digits: as a person would write it."""
    return float(f"{value:.2g}")
