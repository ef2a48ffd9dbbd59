"""`train.on_collapse: remedy`: restarts an unhealthy training with the remedy of its diagnosis.

Everything follows from the parameters, so the same parameters lead to the same attempts and the same bits. Where only
the prior is at fault, nothing is trained again: a mixture is fitted to the latents and sampled from instead.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vae.collapse import linear_theory
from vae.collapse.diagnosis import Evidence, Verdict, judge
from vae.collapse.linear_theory import Spectrum
from vae.compute.batches import for_measuring
from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, changed
from vae.metrics import measurement
from vae.metrics.mean_image import MeanImage
from vae.models import mixture_prior
from vae.models.mixture_prior import Mixture
from vae.training.loop import Trained

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Attempt:
    """A training and its verdict.

    Attributes:
        changes: of the user's parameters, by name, with their values; none in the first attempt.
        parameters: with these changes.
        prior: fitted to the latents of the previous attempt, whose model this is, where only the prior was at fault.
    """

    changes: dict[str, Any]
    parameters: ResolvedParameters
    trained: Trained
    evidence: Evidence
    verdict: Verdict
    prior: Mixture | None = None


def attempts(
    p: ResolvedParameters,
    spectrum: Spectrum,
    train_images: np.ndarray,
    valid_images: np.ndarray,
    compute: Compute,
    train: Callable[[ResolvedParameters, int, str], Trained],
) -> list[Attempt]:
    """Trains until a model is healthy, no remedy is left, or `train.remedy_attempts` restarts are used up.

    Args:
        spectrum: of the training images, for the predictions under changed parameters.
        train: called with the parameters of an attempt, its number from 0, and the reason for it.
    """
    tried: list[Attempt] = []
    changes: dict[str, Any] = {}
    reason = "the parameters as they are"
    while True:
        now = changed(p, changes)
        restarts_left = p.train.remedy_attempts - len(tried)
        try:
            trained = train(now, len(tried), reason)
        except InputError as error:
            if not tried:
                raise
            log.info(f"the training with the remedy could not run: {error}")
            return tried
        evidence = evidence_of(now, trained, spectrum, train_images, valid_images, compute)
        verdict = judge(now, evidence)
        tried.append(Attempt(dict(changes), now, trained, evidence, verdict))
        if only_the_prior(now, verdict):
            log.info(f"{verdict.verdict}: {'; '.join(verdict.reasons)}; fitting a prior to the latents")
            tried.append(with_fitted_prior(tried[-1], train_images, valid_images, compute))
            return tried
        if verdict.verdict == "healthy" or not verdict.remedy or not restarts_left:
            return tried
        try:
            following = changed(p, changes | verdict.remedy)
        except InputError as error:
            log.info(f"no further remedy: {error}")
            return tried
        if any(following.model_dump() == attempt.parameters.model_dump() for attempt in tried):
            log.info("no further remedy: every remaining change has been tried")
            return tried
        changes = changes | verdict.remedy
        reason = f"{verdict.verdict}: {'; '.join(verdict.reasons)}"
        log.info(f"{reason}\nremedy {len(tried)}: {'; '.join(verdict.recommendations)}")


def best(tried: list[Attempt]) -> Attempt:
    """The healthy attempt, which is the last; else the one with the highest ELBO at the σ of its own error."""

    def rank(attempt: Attempt) -> tuple[bool, float]:
        elbo = calibrated_elbo(attempt)
        return attempt.verdict.verdict == "healthy", elbo if math.isfinite(elbo) else -math.inf

    return max(tried, key=rank)


def evidence_of(
    p: ResolvedParameters,
    trained: Trained,
    spectrum: Spectrum,
    train_images: np.ndarray,
    valid_images: np.ndarray,
    compute: Compute,
) -> Evidence:
    """The evidence for a verdict on a training; measures the whole validation split."""
    measured = for_measuring(train_images, p)
    mean_image = MeanImage.of(measured)
    return Evidence(
        valid=measurement.measure(trained.model, valid_images, trained.likelihood, compute, p.seed),
        mean_image_mse=mean_image.mse(valid_images),
        history=trained.history,
        predicted=linear_theory.expectations(p, p.kl.max_weight, spectrum),
        train={
            "images": trained.train.images,
            "elbo": trained.train.elbo,
            "mse_sampled": trained.train.mse_sampled,
            "mean_image_elbo": mean_image.elbo(measured, trained.likelihood.kind),
        },
        kept_epoch=trained.kept_epoch,
    )


def only_the_prior(p: ResolvedParameters, verdict: Verdict) -> bool:
    """Whether the only remedy is to raise a weight that is the ELBO's own already, or that a control sets."""
    if verdict.verdict != "under_regularised":
        return False
    as_the_elbo = p.objective.reduction == "sum" and isinstance(p.objective.sigma, str) and p.kl.max_weight >= 1
    return (
        not verdict.remedy if p.kl.control != "schedule" else as_the_elbo and set(verdict.remedy) == {"kl.max_weight"}
    )


def with_fitted_prior(
    attempt: Attempt, train_images: np.ndarray, valid_images: np.ndarray, compute: Compute
) -> Attempt:
    """The same model with a mixture as its prior, judged again."""
    p = attempt.parameters
    encoded = measurement.encode(attempt.trained.model, for_measuring(train_images, p), compute)
    prior = mixture_prior.fit(*encoded, p.seed)
    valid = attempt.evidence.valid
    judged = measurement.encode(attempt.trained.model, valid_images, compute)
    evidence = replace(attempt.evidence, fitted_gap=mixture_prior.gap(valid.prior_gap, *judged, prior, p.seed))
    return replace(attempt, evidence=evidence, verdict=judge(p, evidence), prior=prior)


def calibrated_elbo(attempt: Attempt) -> float:
    """The ELBO at the σ of the validation split's own error."""
    pixels = math.prod(attempt.parameters.data.image_shape)
    return attempt.evidence.valid.elbo_at_own_sigma(attempt.trained.likelihood.kind, pixels)
