"""Stage `preflight`: predict KL, active units and collapse from the training images by linear theory.

Numbers that the parameters leave to it are found here: a calibrated KL weight, and the epochs that fit into a budget.
"""

import logging
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tasks import workspace
from tasks.processes import contention, entry
from vae.collapse import linear_theory
from vae.collapse.linear_theory import Spectrum
from vae.collapse.warnings import schedule_above, warnings
from vae.compute import devices
from vae.compute.batches import open_images
from vae.config import loading
from vae.config.beta_elbo import BetaELBO
from vae.config.files import written_aside
from vae.config.parameters import Parameters
from vae.config.resolved import resolve
from vae.config.text import rounded
from vae.models.flops import training_flops
from vae.training.budget import epochs_within
from vae.training.loop import check_images

log = logging.getLogger(__name__)


def main() -> None:
    p = loading.load(workspace.PARAMS)
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    check_images(p, len(train_images), len(valid_images))
    spectrum = linear_theory.spectrum_for(p, train_images)
    weight = linear_theory.resolved_weight(p, spectrum)
    epochs = (
        p.train.epochs if p.train.budget is None else affordable(p, weight, train_images, valid_images, p.train.budget)
    )
    p = p.model_copy(update={"train": p.train.model_copy(update={"epochs": epochs})})
    result = {**predicted(p, weight, spectrum), "epochs": epochs, "budget": p.train.budget}
    workspace.write_json(workspace.PREFLIGHT, rounded(result))
    with written_aside(workspace.PREFLIGHT_PLOT) as aside:
        plot(p, weight, spectrum).savefig(aside, format="png", dpi=110, metadata={"Software": None})

    kl = "an unbounded KL" if result["predicted_kl"] is None else f"a KL of {result['predicted_kl']:.3g} nats"
    asked = weight if p.kl.control == "schedule" else getattr(p.kl, p.kl.control_name)
    log.info(
        f"preflight: linear theory predicts {kl} in "
        f"{result['predicted_active_units']} of {p.model.latent_dim} latents at kl.{p.kl.control_name} = {asked:g} "
        f"(collapse from {result['collapse_kl_weight']:.3g}, calibrated {result['calibrated_kl_weight']:.3g})"
    )
    for warning in result["warnings"]:
        log.warning(warning)


def affordable(p: Parameters, weight: float, train_images: np.ndarray, valid_images: np.ndarray, seconds: float) -> int:
    """The epochs that fit into `train.budget`."""
    resolved = resolve(p, p.train.steps_per_epoch(len(train_images)), weight, p.train.epochs)
    compute = devices.choose(resolved.train, training_flops(p), len(train_images))
    with contention.coped_with(compute):
        epochs = epochs_within(seconds, resolved, train_images, valid_images, compute)
    if epochs == 0:
        log.warning(f"preflight: not even one epoch fits into train.budget = {seconds:g} seconds here; one is trained")
        return 1
    log.info(f"preflight: {epochs} epochs, in place of train.epochs, fit into train.budget = {seconds:g} seconds here")
    return epochs


def predicted(p: Parameters, weight: float, spectrum: Spectrum) -> dict[str, Any]:
    """The content of `reports/preflight.json`."""
    expected = linear_theory.expectations(p, weight, spectrum)
    return {
        **expected,
        **schedule_above(p, weight, expected["collapse_kl_weight"]),
        "warnings": warnings(p, expected, spectrum),
    }


def plot(p: Parameters, weight: float, spectrum: Spectrum) -> Figure:
    """Left: the eigenvalues and the threshold. Right: the predicted KL over KL weights."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = spectrum.eigenvalues
    threshold = linear_theory.threshold(spectrum, BetaELBO.of(p, weight))
    left.semilogy(np.arange(1, len(values) + 1), np.maximum(values, 1e-12), marker=".", color="#2f6db3")
    left.axhline(threshold, color="#c0392b", ls="--", label="threshold at this weight")
    left.set(xlabel="latent", ylabel="eigenvalue of the images' covariance", title="Spectrum of the images")
    left.legend()

    weights = linear_theory.weights_of_interest(linear_theory.critical_weight(p, spectrum), weight)
    kl = [linear_theory.predict(spectrum, BetaELBO.of(p, w)).kl for w in weights]
    right.semilogx(weights, kl, color="#2f6db3")
    right.axhline(1, color="#888888", lw=0.8)
    collapse = linear_theory.collapse_weight(p, spectrum)
    if collapse > 0 and math.isfinite(collapse):
        start = min(collapse, weights[-1])
        right.axvspan(start, weights[-1], color="#c0392b", alpha=0.12, label="collapse predicted")
    if weight > 0:
        right.axvline(weight, color="#c0392b", ls="--", label=f"kl.max_weight = {weight:g}")
    right.set(
        xlabel="KL weight", ylabel="predicted KL (nats per image)", title="Predicted KL", xlim=(weights[0], weights[-1])
    )
    right.legend()
    return figure


if __name__ == "__main__":
    entry.run(main)
