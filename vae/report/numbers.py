"""The numbers that matter, once: what summaries, comparisons, cards and closing lines show of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KeyNumber:
    """A number of `reports/metrics.json`.

    Attributes:
        better: 1 where more is better, −1 where less is, 0 where neither.
        headline: among the few that stand in a line.
    """

    key: str
    label: str
    better: int
    headline: bool = False


KEY_NUMBERS = (
    KeyNumber("elbo", "ELBO, nats per image", 1, headline=True),
    KeyNumber("elbo_calibrated", "calibrated ELBO, nats", 1),
    KeyNumber("nll", "negative log-likelihood, nats", -1),
    KeyNumber("kl", "KL, nats", 0, headline=True),
    KeyNumber("active_units", "active units", 0, headline=True),
    KeyNumber("informative_units", "informative units", 0),
    KeyNumber("mse", "mean squared error (z = μ)", -1, headline=True),
    KeyNumber("ssim", "SSIM", 1),
    KeyNumber("prior_gap", "gap to the prior, nats", -1),
    KeyNumber("probe_accuracy", "linear probe", 1),
)
