"""The rate–distortion curve that a pilot has learnt, beside linear theory, which takes over where the pilot ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae.collapse.linear_theory import Spectrum
from vae.collapse.rate_distortion import Curve
from vae.config.parameters import Parameters

INFORMED = 0.25  # nats a latent, from which on the error follows from the rates
LEAST_ERROR = 0.4  # of the pilot's error
POINTS = 600  # of the curve between the lowest and the highest threshold
LOWEST = 1e-3  # of the pilot's lowest threshold; further down its rates rise by half a nat an e-fold all the same


@dataclass(frozen=True)
class PilotCurve:
    """A `rate_distortion.Curve` measured with a pilot (`vae.pilot`).

    Attributes:
        spectrum: of the training images.
        thresholds: (K,), ascending: s = β·σ², or β of a Bernoulli likelihood.
        measured_rates: (K, Z), of the latents at each threshold, largest first, in nats.
        measured_error: (K,), of the images, z sampled: the squared error summed over pixels of [0, 1], or the
            cross-entropy of a Bernoulli likelihood in nats.
        likelihood: `gaussian` or `bernoulli`.
        model: what the section `model` of the parameters says of its network.
    """

    spectrum: Spectrum
    thresholds: NDArray[np.float64]
    measured_rates: NDArray[np.float64]
    measured_error: NDArray[np.float64]
    likelihood: str = "gaussian"
    model: Mapping[str, Any] = field(default_factory=dict)

    source = "the pilot"

    @property
    def pixels(self) -> int:
        return self.spectrum.pixels

    @property
    def images(self) -> int:
        return self.spectrum.images

    @property
    def total(self) -> float:
        """Of an autoregressive decoder, which knows the preceding pixels, less than the images' variance."""
        return min(self.spectrum.total, float(self.measured_error[-1]))

    @property
    def is_like_a_linear_one(self) -> bool:
        """Whether a linear VAE bounds it: autoregressive decoders may do without latents, Bernoulli has other units."""
        return self.model.get("architecture") != "autoregressive" and self.likelihood == "gaussian"

    @property
    def critical(self) -> float:
        return float(self.thresholds[-1])

    @property
    def smallest_mse(self) -> float:
        return float(self.error(self._points[:1])[0]) / self.pixels

    def rates(self, s: float) -> NDArray[np.float64]:
        """The pilot's, and no fewer than half a nat more for each e-fold below the s where all latents live.

        Below that, where the rate is a matter of the images' covariance and of long training, a linear VAE may have
        more than the pilot has learnt to have: then its rates count.
        """
        if s >= self.thresholds[-1]:
            return np.zeros(self.measured_rates.shape[1])
        at = float(np.log(max(s, 1e-300)))
        pilot = self._between(at)
        if s >= self._all_alive:
            return pilot
        extended = self._alive + 0.5 * (np.log(self._all_alive) - at)
        linear = np.zeros(len(pilot))
        if self.model.get("architecture") != "autoregressive":
            linear[: len(self.spectrum.eigenvalues)] = self.spectrum.rates(s)
        return max(pilot, extended, linear, key=lambda rates: float(rates.sum()))

    @cached_property
    def _all_alive(self) -> float:
        """The smallest of Z eigenvalues, where linear theory has all latents active; not below the pilot's range."""
        return float(np.clip(self.spectrum.eigenvalues[-1], self.thresholds[0], self.thresholds[-1]))

    @cached_property
    def _alive(self) -> NDArray[np.float64]:
        """The pilot's rates there: (Z,)."""
        return self._between(float(np.log(self._all_alive)))

    def _between(self, at: float) -> NDArray[np.float64]:
        """The pilot's rates at ln s, between its thresholds: (Z,)."""
        known = np.log(self.thresholds)
        return np.array([np.interp(at, known, rates) for rates in self.measured_rates.T])

    @cached_property
    def _points(self) -> NDArray[np.float64]:
        low = min(self.thresholds[0], self._all_alive) * LOWEST
        return np.geomspace(low, self.thresholds[-1], POINTS)

    @cached_property
    def rate(self) -> NDArray[np.float64]:
        """R at `_points`, made to fall with s: (POINTS,)."""
        return np.minimum.accumulate([self.rates(s).sum() for s in self._points])

    @cached_property
    def _error(self) -> NDArray[np.float64]:
        """d at `_points`: measured where few latents live, and below that by R, since dR/dd = −1/2s at its best.

        The rate that a pilot has learnt is closer to that of a long training than the error that it still makes. Nor
        does a long training end with a larger error than a linear VAE has.
        """
        measured = np.minimum.accumulate(self.measured_error[::-1])[::-1]
        at = np.log(self._points)
        error = np.interp(at, np.log(self.thresholds), measured)
        anchor = int(np.flatnonzero(self.rate >= INFORMED * self.measured_rates.shape[1])[-1:].sum())
        fall = -np.diff(self.rate[: anchor + 1]) * 2 * np.sqrt(self._points[1 : anchor + 1] * self._points[:anchor])
        below = error[anchor] - np.cumsum(fall[::-1])[::-1]
        below = np.maximum(below, LEAST_ERROR * error[:anchor])
        if self.is_like_a_linear_one:
            below = np.minimum(below, self.spectrum.error(self._points[:anchor]))
        error[:anchor] = np.minimum(error[:anchor], below)
        return np.minimum.accumulate(error[::-1])[::-1]

    def error(self, s: NDArray[np.float64]) -> NDArray[np.float64]:
        """(K,) → (K,)."""
        return np.interp(np.log(np.maximum(s, 1e-300)), np.log(self._points), self._error)

    def of(self, p: Parameters) -> Curve:
        """Of a changed network, or of other latents, the pilot says nothing: linear theory does."""
        same = all(getattr(p.model, name) == value for name, value in self.model.items())
        return self if same else self.spectrum.of(p)

    def facts(self) -> dict[str, Any]:
        pilot = {
            "thresholds": self.thresholds.tolist(),
            "rates": self.measured_rates.tolist(),
            "error": self.measured_error.tolist(),
            "likelihood": self.likelihood,
            "model": dict(self.model),
        }
        return {**self.spectrum.facts(), "pilot": pilot}


def curve_of(report: Mapping[str, Any], pixels: int) -> Curve:
    """The curve in a `reports/preflight.json`."""
    spectrum = Spectrum(np.array(report["eigenvalues"]), report["eigenvalue_sum"], pixels, report["images"])
    pilot = report.get("pilot")
    if not pilot:
        return spectrum
    thresholds, rates, error = (np.array(pilot[name]) for name in ("thresholds", "rates", "error"))
    return PilotCurve(spectrum, thresholds, rates, error, pilot["likelihood"], pilot["model"])
