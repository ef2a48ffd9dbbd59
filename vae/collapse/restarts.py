"""`train.on_collapse: remedy`: restarts an unhealthy training with the remedy of its diagnosis.

Everything follows from the parameters, so the same parameters lead to the same attempts and the same bits.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae.collapse.diagnosis import judge
from vae.collapse.evidence import Evidence, Verdict
from vae.collapse.expectations import expectations
from vae.collapse.rate_distortion import Curve
from vae.compute.batches import for_measuring
from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, changed
from vae.metrics import measurement
from vae.metrics.free_running import free_running
from vae.metrics.mean_image import MeanImage
from vae.priors import fitting
from vae.priors.fitting import Fitted
from vae.samples.evidence import sample_evidence
from vae.training.loop import Trained

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Attempt:
    """A training and its verdict.

    Attributes:
        changes: of the user's parameters, by name, with their values; none in the first attempt.
        parameters: with these changes.
        prior: fitted to its latents.
    """

    changes: dict[str, Any]
    parameters: ResolvedParameters
    trained: Trained
    prior: Fitted
    evidence: Evidence
    verdict: Verdict


def attempts(
    p: ResolvedParameters,
    curve: Curve,
    train_images: np.ndarray,
    valid_images: np.ndarray,
    compute: Compute,
    train: Callable[[ResolvedParameters, int, str], Trained],
) -> list[Attempt]:
    """Trains until a model is healthy, no remedy is left, or `train.remedy_attempts` restarts are used up.

    Args:
        curve: of the training images, for the predictions under changed parameters.
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
        prior = fitted_prior(now, trained, train_images, compute)
        evidence = evidence_of(now, trained, prior, curve, train_images, valid_images, compute)
        verdict = judge(now, evidence)
        tried.append(Attempt(dict(changes), now, trained, prior, evidence, verdict))
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


def fitted_prior(p: ResolvedParameters, trained: Trained, train_images: np.ndarray, compute: Compute) -> Fitted:
    """The prior that a model is saved with: fitted, where one can be (`Model.fits_a_prior`)."""
    model = trained.model
    if not p.model.fits_a_prior:
        return Fitted(model.own_prior(), model.prior_name, {})
    learned = None if model.prior is None else (model.prior_name, model.own_prior())
    return fitting.fit(*measurement.encode(model, for_measuring(train_images, p), compute), p.seed, learned)


def evidence_of(
    p: ResolvedParameters,
    trained: Trained,
    prior: Fitted,
    curve: Curve,
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
        predicted=expectations(p, p.kl.max_weight, curve),
        train={
            "images": trained.train.images,
            "elbo": trained.train.elbo,
            "mse_sampled": trained.train.mse_sampled,
            "mean_image_elbo": mean_image.elbo(measured, trained.likelihood),
        },
        kept_epoch=trained.kept_epoch,
        samples=sample_evidence(
            trained.model, trained.likelihood, prior.prior, measured, valid_images, compute, p.seed
        ),
        prior=prior.name,
        free_running=free_running(trained.model, valid_images, mean_image, trained.likelihood, compute, p.seed),
        own_prior=trained.model.prior_name,
    )


def calibrated_elbo(attempt: Attempt) -> float:
    """The ELBO at the σ of the validation split's own error."""
    pixels = math.prod(attempt.parameters.data.image_shape)
    return attempt.evidence.valid.elbo_at_own_sigma(attempt.trained.likelihood, pixels)
