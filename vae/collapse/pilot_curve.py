"""The rate–distortion curve that a pilot has learnt, beside linear theory, which takes over where the pilot ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae.collapse.linear_theory import Spectrum
from vae.collapse.rate_distortion import ACTIVE_NATS, Curve
from vae.config.parameters import Parameters

FOLLOWS = 0.25  # nats a latent, from which on the error follows from the rates
INFORMED = 0.6  # nats a latent, from which on the rates rise with −ln s
SLOPE = 0.55  # nats of a latent for an e-fold: ½ of a linear VAE, and what deep ones learnt in the docs' six sweeps
DEAD = 0.05  # nats of a latent there, which does not
LEAST_ERROR = 0.4  # of the pilot's error
POINTS = 600  # of the curve between the lowest and the highest threshold
LOWEST = 1e-3  # of the pilot's lowest threshold; further down its rates rise all the same


@dataclass(frozen=True)
class PilotCurve:
    """A `rate_distortion.Curve` measured with a pilot (`vae.pilot`).

    Attributes:
        spectrum: of the training images.
        thresholds: (K,), ascending: s = β·σ², or β of a Bernoulli likelihood.
        measured_rates: (K, Z), of the latents at each threshold, largest first, in nats; of very many the means of
            `each` neighbours, (K, Z/each).
        measured_error: (K,), of the images, z sampled: the squared error summed over pixels of [0, 1], or the
            cross-entropy of a Bernoulli likelihood in nats.
        likelihood: all but `bernoulli` are taken for a Gaussian.
        model: what the section `model` of the parameters says of its network.
    """

    spectrum: Spectrum
    thresholds: NDArray[np.float64]
    measured_rates: NDArray[np.float64]
    measured_error: NDArray[np.float64]
    likelihood: str = "gaussian"
    model: Mapping[str, Any] = field(default_factory=dict)
    each: int = 1

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
        highest = float(self.measured_error[-1])
        return highest if self.likelihood == "bernoulli" else min(self.spectrum.total, highest)

    @property
    def critical(self) -> float:
        """The lowest from which on all latents together carry less than one that is active."""
        active = np.flatnonzero(self.each * self.measured_rates.sum(1) > ACTIVE_NATS)
        return float(self.thresholds[min(active[-1] + 1, len(self.thresholds) - 1) if len(active) else 0])

    @property
    def smallest_mse(self) -> float:
        return float(self.error(self._points[:1])[0]) / self.pixels

    @property
    def latents(self) -> int:
        """Z."""
        return self.each * self.measured_rates.shape[1]

    def rates(self, s: float) -> NDArray[np.float64]:
        """(Z,): the pilot's; below the s where the latents carry `INFORMED` at least `SLOPE` more for each e-fold.

        There a latent of a linear VAE gains ½, and a pilot, which is short, learns less than a whole training does.
        """
        lowest, highest = self.thresholds[[0, -1]]
        if s >= highest:
            return np.zeros(self.latents)
        if s < lowest:
            return _grown(self.rates(lowest), float(np.log(lowest / max(s, 1e-300))))
        rates = self._learnt(float(np.log(s)))
        start, there = self._informed
        if np.log(s) < start:
            rates = np.maximum(rates, _grown(there, start - float(np.log(s))))
        return np.repeat(rates, self.each)

    @cached_property
    def _informed(self) -> tuple[float, NDArray[np.float64]]:
        """The highest ln s at which the latents carry `INFORMED` on average, or the lowest; their rates there."""
        mean = np.maximum.accumulate(self.measured_rates.mean(1)[::-1])
        start = float(np.interp(INFORMED, mean, np.log(self.thresholds)[::-1]))
        return start, self._learnt(start)

    def _learnt(self, at: float) -> NDArray[np.float64]:
        """The pilot's rates at ln s: (Z/each,)."""
        return np.array([np.interp(at, np.log(self.thresholds), rates) for rates in self.measured_rates.T])

    @cached_property
    def _points(self) -> NDArray[np.float64]:
        return np.geomspace(self.thresholds[0] * LOWEST, self.thresholds[-1], POINTS)

    @cached_property
    def rate(self) -> NDArray[np.float64]:
        """R at `_points`, made to fall with s: (POINTS,)."""
        return np.minimum.accumulate([self.rates(s).sum() for s in self._points])

    @cached_property
    def _error(self) -> NDArray[np.float64]:
        """d at `_points`: measured where few latents live, and below that by R, since dR/dd = −1/2s at its best.

        The rate that a pilot has learnt is closer to that of a long training than the error that it still makes. Such
        a training ends about half-way, in ln d, to the error of a linear VAE where that is smaller (the docs' sweeps).
        """
        measured = np.minimum.accumulate(self.measured_error[::-1])[::-1]
        at = np.log(self._points)
        error = np.interp(at, np.log(self.thresholds), measured)
        anchor = int(np.flatnonzero(self.rate >= FOLLOWS * self.latents)[-1:].sum())
        fall = -np.diff(self.rate[: anchor + 1]) * 2 * np.sqrt(self._points[1 : anchor + 1] * self._points[:anchor])
        below = error[anchor] - np.cumsum(fall[::-1])[::-1]
        error[:anchor] = np.minimum(error[:anchor], np.maximum(below, LEAST_ERROR * error[:anchor]))
        if self.likelihood != "bernoulli" and self.model.get("architecture") != "autoregressive":
            linear = self.spectrum.error(self._points[:anchor])
            error[:anchor] = np.minimum(error[:anchor], np.sqrt(linear * error[:anchor]))
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
            **({"each": self.each} if self.each > 1 else {}),
        }
        return {**self.spectrum.facts(), "pilot": pilot}


def _grown(rates: NDArray[np.float64], e_folds: float) -> NDArray[np.float64]:
    """The rates of living latents so many e-folds below: (Z,) → (Z,)."""
    return np.where(rates > DEAD, rates + SLOPE * e_folds, rates)


def curve_of(report: Mapping[str, Any], pixels: int) -> Curve:
    """The curve in a `reports/preflight.json`."""
    spectrum = Spectrum(np.array(report["eigenvalues"]), report["eigenvalue_sum"], pixels, report["images"])
    pilot = report.get("pilot")
    if not pilot:
        return spectrum
    thresholds, rates, error = (np.array(pilot[name]) for name in ("thresholds", "rates", "error"))
    return PilotCurve(spectrum, thresholds, rates, error, pilot["likelihood"], pilot["model"], pilot.get("each", 1))
