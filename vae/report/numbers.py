"""The key numbers of a model: the one list behind summaries, comparisons, model cards and closing lines."""

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyNumber:
    """A number of `reports/metrics.json`.

    Attributes:
        better: 1 where higher is better, −1 where lower is, 0 where neither.
        headline: Shown in one-line summaries.
        optional: Left out where a model has none.
    """

    key: str
    label: str
    better: int
    headline: bool = False
    optional: bool = False


KEY_NUMBERS = (
    KeyNumber("elbo", "ELBO, nats per image", 1, headline=True),
    KeyNumber("elbo_calibrated", "calibrated ELBO, nats", 1),
    KeyNumber("nll", "negative log-likelihood, nats", -1),
    KeyNumber("bits_per_dim", "bits per dimension", -1, optional=True),
    KeyNumber("kl", "KL, nats", 0, headline=True),
    KeyNumber("kl_top", "KL of the upper level of latents, nats", 0, optional=True),
    KeyNumber("kl_lower", "KL of the lower level of latents, nats", 0, optional=True),
    KeyNumber("active_units", "active units", 0, headline=True),
    KeyNumber("informative_units", "informative units", 0),
    KeyNumber("mse", "mean squared error (z = μ)", -1, headline=True),
    KeyNumber("ssim", "SSIM", 1),
    KeyNumber("prior_gap", "gap to the prior, nats", -1),
    KeyNumber("fitted_prior_coverage", "coverage of samples", 1),
    KeyNumber("fitted_prior_recall", "recall of samples", 1),
    KeyNumber("probe_accuracy", "linear probe", 1),
)


def key_numbers(metrics: Container[str]) -> list[KeyNumber]:
    """Those of a model with these metrics."""
    return [number for number in KEY_NUMBERS if not number.optional or number.key in metrics]
