"""Whether a control of the KL term ended at its target."""

import math
from statistics import fmean

from vae.collapse import remedies
from vae.collapse.evidence import Evidence, Verdict, source
from vae.config.resolved import ResolvedParameters
from vae.training.history import ERROR_TOLERANCE, RATE_TOLERANCE, is_off_target, last_at_final_weight

AT_BOUND = 0.98  # of a controller's highest weight


def target_missed(p: ResolvedParameters, e: Evidence) -> Verdict | None:
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
    advice = [
        f"set kl.reconstruction_target to {reached}, the error that it reached, or raise {p.model.latents_set_by}"
    ]
    summary = "The control missed its target: the error stays above it."
    if e.predicted["predicted_kl"] is None:
        reasons.append(f"{source(e)} expects no such error of {p.model.latent_dim} latents")
        return Verdict("target_missed", summary, reasons, advice=advice)
    longer = remedies.longer_training(p, 2 * p.train.epochs, len(e.history))
    return Verdict("target_missed", summary, reasons, longer, advice)
