"""Evidence for a verdict, made up."""

import dataclasses
import math
from typing import Any

import numpy as np
from helpers.parameters import parse

from vae.collapse.evidence import Evidence
from vae.config.resolved import ResolvedParameters, resolve, usual_learning_rate
from vae.metrics.measurement import Measurement
from vae.priors.aggregate import LowerBound
from vae.samples.bootstrap import Estimate
from vae.samples.evidence import SampleEvidence
from vae.samples.quality import SampleQuality
from vae.training.history import COLUMNS, Row

LATENTS = 4


def params(changes: dict[str, Any] | None = None) -> ResolvedParameters:
    """With a ramp of 5 epochs of 40, and the learning rate USUAL."""
    base = {"model.latent_dim": LATENTS, "model.widths": [16, 32], "train.epochs": 40, "kl.annealing_epochs": 5}
    return resolve(parse(base | (changes or {})), steps_per_epoch=15)


USUAL = usual_learning_rate(params().train)


def measurement(
    kl: float = 20.0, mse: float = 0.02, distortion: float = -300.0, active: int = LATENTS, variance: float = 1.0
) -> Measurement:
    """`kl` nats spread evenly; q(z_j) over the split has the given variance."""
    mean_variance = np.where(np.arange(LATENTS) < active, 0.9, 0.001)
    return Measurement(
        images=100,
        distortion=distortion,
        elbo_se=1.0,
        mse=0.9 * mse,
        mse_sampled=mse,
        rate=kl,
        kl_per_latent=np.full(LATENTS, kl / LATENTS),
        mean_variance=mean_variance,
        aggregate_mean=np.zeros(LATENTS),
        aggregate_variance=np.full(LATENTS, variance),
        aggregate_covariance=variance * np.eye(LATENTS),
    )


def history(
    epochs: int = 40, losses: list[float] | None = None, kls: list[float] | None = None, **last: float
) -> list[Row]:
    losses = losses or [-200.0 - 100 * (1 - 0.8**epoch) for epoch in range(epochs)]
    rows = [
        dict.fromkeys(COLUMNS, 1.0) | {"epoch": epoch, "step": 50 * epoch, "train/loss": loss, "valid/kl": kl}
        for epoch, (loss, kl) in enumerate(zip(losses, kls or [20.0] * len(losses), strict=True), 1)
    ]
    rows[-1].update(last)
    return rows


TRAIN = {"images": 1000, "elbo": 285.0, "mean_image_elbo": 50.0, "mse_sampled": 0.019}


def evidence(**changes: Any) -> Evidence:
    """Of a healthy model."""
    healthy = Evidence(
        valid=measurement(),
        mean_image_mse=0.08,
        history=history(),
        predicted=predicted(),
        train=TRAIN,
        kept_epoch=38,
    )
    return dataclasses.replace(healthy, **changes)


def quality(precision: float = 0.9, recall: float = 0.8, coverage: float = 0.85) -> SampleQuality:
    """Of pictures about as good as reconstructions."""
    values = {"precision": precision, "recall": recall, "density": 1.0, "coverage": coverage, "frechet": 0.5}
    return SampleQuality(**{name: Estimate(v, v, v) for name, v in values.items()}, real=200, generated=200)


POOR = quality(precision=0.3, recall=0.2)


def samples(
    fitted: SampleQuality | None = None, standard: SampleQuality | None = None, kl: float = 0.5, error: float = 0.1
) -> SampleEvidence:
    """As good as reconstructions, but for what is given; KL(q(z) ‖ N(0, I)) of at least `kl` ± `error` nats."""
    return SampleEvidence(quality(), standard or quality(), fitted or quality(), LowerBound(kl, error))


def predicted(kl: float = 22.0, collapse: float = 30.0, calibrated: float = 1.0) -> dict[str, float]:
    best = {"calibrated_kl_weight": calibrated, "calibrated_kl": 22.0, "calibrated_mse": 0.02}
    return {"predicted_kl": kl, "collapse_kl_weight": collapse, "target_kl_weight": 4.0, **best}


FALLING, GROWING = [-10.0 * epoch for epoch in range(40)], [0.125 * epoch for epoch in range(1, 41)]
WRONG: dict[str, dict[str, Any]] = {  # with the evidence, for each verdict
    "diverged": {"history": history(12, **{"valid/kl": math.nan})},
    "collapsed": {"valid": measurement(kl=0.02, active=0)},
    "not_learning": {"valid": measurement(mse=0.078)},
    "partly_collapsed": {"valid": measurement(kl=5.0)},
    "under_regularised": {"history": history(3, kl_weight=0.01), "kept_epoch": 3},  # within the ramp
    "prior_mismatch": {"samples": samples(POOR, POOR, kl=7.6, error=0.4), "prior": "mixture of 5 Gaussians"},
    "overfitted": {"train": TRAIN | {"elbo": 500.0}},  # 220 of 450
}
