"""Warnings before training, from the predicted curve: collapse ahead, targets out of reach, unreliable predictions."""

import math
from typing import Any

from vae.collapse import remedies
from vae.collapse.linear_theory import MOST_LATENTS_PER_IMAGE
from vae.collapse.rate_distortion import Curve, enforced_rate, is_error_reachable
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.parameters import Parameters
from vae.config.resolved import ramp_epochs
from vae.config.sections import KL
from vae.schedules.kl import ramp_time, time_above

MOST_ABOVE = 0.5  # of a cycle, at weights where collapse is expected
MOST_ABOVE_LINEAR = 1.5  # times linear theory's collapse weight; up to there the pilot has been right
SMALLEST_BETA = 0.05  # below it the KL term hardly counts


def warnings(p: Parameters, expected: dict[str, Any], curve: Curve) -> list[str]:
    """expected: `vae.collapse.expectations`."""
    calibrated, beta = expected["calibrated_kl_weight"], expected["effective_beta"]
    found = _collapse_ahead(p, expected, curve) + _out_of_reach(p, expected, curve)
    if p.kl.control == "schedule" and beta < SMALLEST_BETA:
        found.append(
            f"the KL term hardly counts: effective beta {beta:.2g}; samples from N(0, I) will be noise "
            f"(kl.max_weight = {calibrated:.2g} is calibrated)"
        )
    if p.model.latent_dim > curve.images * MOST_LATENTS_PER_IMAGE:
        found.append(
            f"{p.model.latents_as_set} for {curve.images} training images: "
            "with nearly as many latents as images, the prediction is too high"
        )
    if p.model.architecture == "autoregressive":
        found.append(
            "model.architecture = autoregressive: the decoder predicts pixels from those before them, so the latents "
            f"may die at a far lower kl.max_weight than {curve.source} says"
        )
    if p.model.prior != "standard":
        found.append(
            f"model.prior = {p.model.prior}: the predicted KL is that against N(0, I); against a prior that is learned "
            "the same latents cost less"
        )
    if p.objective.sigma in ("channel", "pixel") or p.objective.likelihood == "logistic_mixture":
        what = f"sigma = {p.objective.sigma}" if p.objective.has_sigma else f"likelihood = {p.objective.likelihood}"
        found.append(f"objective.{what}: the prediction is that of one sigma for all pixels")
    if p.objective.uses_features:
        found.append(
            "objective.align and objective.perceptual are not in the prediction: expect a lower rate and a larger error"
        )
    if p.objective.likelihood == "bernoulli" and p.data.binarise == "none":
        found.append(
            "a Bernoulli likelihood on grey pixels is not normalised: its ELBO is a cross-entropy bound, "
            "its nll is omitted (data.binarise makes it a likelihood)"
        )
    return found


def schedule_above(p: Parameters, weight: float, collapse: float) -> dict[str, float | None]:
    """How much of a cycle lies at or above the collapse weight, and where a ramp to `weight` crosses it.

    None where it does not apply or never happens.
    """
    kl = p.kl
    above: dict[str, float | None] = dict.fromkeys(
        ("share_above_collapse", "epoch_of_collapse_weight", "step_of_collapse_weight")
    )
    share = collapse / weight if weight > 0 else math.inf
    t = ramp_time(kl, share)
    if kl.control != "schedule":
        return above
    if kl.schedule == "cyclical":
        return {**above, "share_above_collapse": time_above(kl, share)}
    if t is None or kl.schedule == "constant":
        return above
    if kl.annealing_steps is not None:
        return {**above, "step_of_collapse_weight": t * kl.annealing_steps}
    return {**above, "epoch_of_collapse_weight": t * ramp_epochs(p)}


def _collapse_ahead(p: Parameters, expected: dict[str, Any], curve: Curve) -> list[str]:
    kl = math.inf if expected["predicted_kl"] is None else expected["predicted_kl"]
    weight, collapse, by = expected["kl_weight"], expected["collapse_kl_weight"], expected["predicted_by"]
    if curve.total <= 0:
        return ["all training images are the same: a latent has nothing to encode"]
    if p.kl.control != "schedule":
        if kl >= COLLAPSED_BELOW_NATS:
            return []
        return [
            f"POSTERIOR COLLAPSE AHEAD: the target of the control (kl.{p.kl.control_name}) leaves a KL of only "
            f"{kl:.2g} nats; ask for more than {COLLAPSED_BELOW_NATS:g}"
        ]
    if weight < collapse:
        return _collapse_in_doubt(weight, collapse, expected["linear_theory"]["collapse_kl_weight"])
    if kl >= COLLAPSED_BELOW_NATS:
        return [
            f"at kl.max_weight = {weight:g} {by} expects no more than the {kl:.2g} nats that "
            f"{_enforcing(p)} keeps, which need not describe the images; stay below {collapse:.3g}, for example at "
            f"{expected['calibrated_kl_weight']:.2g}"
        ]
    if collapse == 0:
        return [f"POSTERIOR COLLAPSE AHEAD: {by} expects a KL of less than 1 nat at any KL weight"]
    found = [
        f"POSTERIOR COLLAPSE AHEAD: at kl.max_weight = {weight:g} {by} expects a KL of only "
        f"{kl:.2g} nats; stay below {collapse:.3g}, for example at {expected['calibrated_kl_weight']:.2g}"
        f"{_when(p, weight, collapse)}"
    ]
    if p.kl.schedule == "cyclical" and time_above(p.kl, collapse / weight) > MOST_ABOVE:
        found.append(_too_long_above(p.kl, weight, collapse, by))
    return found


def _collapse_in_doubt(weight: float, collapse: float, linear: float) -> list[str]:
    """Of images that form clusters a pilot may carry on where a training of one KL weight does not get started."""
    if weight <= MOST_ABOVE_LINEAR * linear:
        return []
    return [
        f"kl.max_weight = {weight:g} lies between the collapse weights of linear theory, {linear:.3g}, and of the "
        f"pilot, {collapse:.3g}: where images form clusters, a training may collapse all the same"
    ]


def _when(p: Parameters, weight: float, collapse: float) -> str:
    """When a ramp crosses the collapse weight, as the end of a sentence."""
    above = schedule_above(p, weight, collapse)
    if above["step_of_collapse_weight"] is not None:
        return f"; the ramp crosses it at step {above['step_of_collapse_weight']:.0f} of {p.kl.annealing_steps}"
    if above["epoch_of_collapse_weight"] is not None:
        return f"; the ramp crosses it after {above['epoch_of_collapse_weight']:.2g} of {ramp_epochs(p):g} epochs"
    return ""


def _too_long_above(kl: KL, weight: float, collapse: float, by: str) -> str:
    t = ramp_time(kl, collapse / weight)
    assert t is not None
    ratio = math.ceil(100 * MOST_ABOVE / t) / 100 if t > 0 else math.inf
    longer = f" (kl.ratio = {ratio:g} would make it half)" if ratio <= 1 else ""
    return (
        f"kl.schedule = cyclical spends {time_above(kl, collapse / weight):.0%} of each cycle at weights from "
        f"{collapse:.3g} on, where {by} expects collapse; lower kl.max_weight = {weight:g}{longer}"
    )


def _enforcing(p: Parameters) -> str:
    """The parameters that keep a rate whatever the weight."""
    values = {
        "kl.free_bits": p.kl.free_bits,
        "kl.free_bits_total": p.kl.free_bits_total,
        "model.mean_batch_norm": p.model.mean_batch_norm,
        "model.logvar_max": min(p.model.logvar_max, 0),
    }
    return " and ".join(f"{name} = {value:g}" for name, value in values.items() if value)


def _out_of_reach(p: Parameters, expected: dict[str, Any], curve: Curve) -> list[str]:
    """For a control: whether these latents can reach its error, and these weights its rate."""
    kl, weight, needed = p.kl, expected["kl_weight"], expected["target_kl_weight"]
    if curve.total <= 0 or kl.control == "schedule":
        return []
    if not is_error_reachable(curve, kl):
        return [
            f"kl.reconstruction_target = {kl.reconstruction_target:g} is out of reach of {p.model.latent_dim} latents "
            f"by {curve.source}, whose root mean squared error ends at {math.sqrt(curve.smallest_mse):.3g}: the KL "
            f"may grow without bound; raise the target or {p.model.latents_set_by}"
        ]
    if kl.target_rate is None:
        return []
    target, enforced = f"kl.{kl.control_name} = {kl.target_rate:g} nats", p.model.latent_dim * enforced_rate(p)
    takes = f"{target} needs a weight of about {needed:.2g} by {curve.source}"
    if kl.target_rate < enforced:
        return [f"{target} is below the {enforced:.2g} nats that {_enforcing(p)} keeps: the KL will stay higher"]
    if kl.control == "pi" and needed < kl.min_weight:
        return [f"{takes}, below kl.min_weight = {kl.min_weight:g}: the KL will stay lower; lower kl.min_weight"]
    if needed > weight:
        return [
            f"{takes}, above kl.max_weight = {weight:g}: the KL will stay higher; "
            f"raise kl.max_weight, for example to {remedies.with_room(needed):g}"
        ]
    return []
