"""Would this model replace the champion? `promote.mode: dry_run` says so and changes nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Champion:
    """The model that bears the alias `champion`: its version, test ELBO (nats per image), and data."""

    version: str
    test_elbo: float | None
    data_sha256: str | None


def decide(verdict: str, test_elbo: float | None, data_sha256: str | None, champion: Champion | None) -> str:
    """One sentence: `would be promoted: …` or `would not be promoted: …`."""
    if verdict != "healthy":
        return f"would not be promoted: its verdict is {verdict}"
    if champion is None:
        return "would be promoted: it is healthy and there is no champion yet"
    if champion.test_elbo is None or test_elbo is None or champion.data_sha256 != data_sha256:
        return f"would not be promoted: champion version {champion.version} was tested on other data"
    difference = test_elbo - champion.test_elbo
    comparison = (
        f"test ELBO {test_elbo:.4g} against {champion.test_elbo:.4g} of champion version {champion.version}"
    )
    return f"would {'' if difference > 0 else 'not '}be promoted: {comparison}"
