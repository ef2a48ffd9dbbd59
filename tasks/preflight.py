"""Stage `preflight`: predict rate, error and collapse for every KL weight, by linear theory and a short pilot.

Numbers that the parameters leave to it are found here: the KL weight that meets a wish, and the epochs of a budget.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks import workspace
from tasks.processes import checkpoint_folder, contention, entry, progress
from vae.collapse import kl_weights, linear_theory
from vae.collapse.expectations import at_threshold, expectations
from vae.collapse.linear_theory import Spectrum
from vae.collapse.rate_distortion import Curve
from vae.collapse.warnings import schedule_above, warnings
from vae.compute import devices
from vae.compute.batches import open_images, to_pixels
from vae.compute.devices import Compute
from vae.config import loading
from vae.config.files import written_aside
from vae.config.parameters import Parameters
from vae.config.resolved import resolve
from vae.config.text import rounded, written
from vae.features import network
from vae.models.flops import training_flops
from vae.pilot import latents, pictures, plot
from vae.pilot import training as pilot
from vae.pilot.training import Pilot
from vae.training.budget import epochs_within
from vae.training.loop import check_images

log = logging.getLogger(__name__)


def main() -> None:
    p = loading.load(workspace.PARAMS)
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    check_images(p, len(train_images), len(valid_images))
    if p.objective.uses_features:  # theory and pilot take a minute: say at once that the network does not fit
        pixels = to_pixels(train_images[:2], torch.device("cpu"))
        network.check(p.objective.features, pixels, maps=p.objective.perceptual > 0)
    spectrum = linear_theory.spectrum_for(p, train_images)
    epochs = p.train.epochs
    if p.train.budget is not None:  # the weight makes no difference to the time
        epochs = affordable(p, train_images, valid_images, p.train.budget)
    p = p.model_copy(update={"train": p.train.model_copy(update={"epochs": epochs})})
    learnt = pilot_of(p, spectrum, train_images)
    curve = spectrum if learnt is None else learnt.curve
    weight = kl_weights.resolved(p, curve)
    result = {
        **predicted(p, weight, curve),
        "asked_kl_weight": written(p.kl.max_weight),
        "epochs": epochs,
        "budget": p.train.budget,
    }
    sheet = pictures.draw(p, learnt, valid_images)
    pictured = [at_threshold(p, curve, float(s)) for s in sheet.thresholds]
    if learnt is not None:
        result["pilot"]["pictures"] = [
            {**asdict(at), "sample_recall": recall, "sample_frechet": distance}
            for at, recall, distance in zip(pictured, sheet.recall, sheet.frechet, strict=True)
        ]
    if p.preflight.latent_dims:
        result |= numbers_of_latents(p, weight, result["predicted_kl"], train_images)
    workspace.write_json(workspace.PREFLIGHT, rounded(result))
    with written_aside(workspace.PILOT_SHEET) as aside:
        aside.write_bytes(sheet.png)
    with written_aside(workspace.PREFLIGHT_PLOT) as aside:
        plot.draw(p, weight, spectrum, curve, pictured).savefig(
            aside, format="png", dpi=110, metadata={"Software": None}
        )

    kl = "an unbounded KL" if result["predicted_kl"] is None else f"a KL of {result['predicted_kl']:.3g} nats"
    asked = weight if p.kl.control == "schedule" else getattr(p.kl, p.kl.control_name)
    if p.kl.asks_preflight:
        log.info(f"preflight: kl.max_weight = {written(p.kl.max_weight)} is a weight of {weight:g} by {curve.source}")
    log.info(
        f"preflight: {curve.source} predicts {kl} in "
        f"{result['predicted_active_units']} of {p.model.latent_dim} latents at kl.{p.kl.control_name} = {asked:g} "
        f"(collapse from {result['collapse_kl_weight']:.3g}, calibrated {result['calibrated_kl_weight']:.3g})"
    )
    if "latent_dims" in result:
        log.info(f"preflight: {result['latent_dims']['advice']}")
    for warning in result["warnings"]:
        log.warning(warning)


def pilot_of(p: Parameters, spectrum: Spectrum, train_images: np.ndarray) -> Pilot | None:
    """None where none is asked for, or it has nothing to learn, or learnt nothing. An interrupted one resumes."""
    if not pilot.is_asked(p, len(train_images)):
        if p.model.lower_latents is not None:
            log.info("preflight: no pilot, which supports one level of latents only; linear theory predicts")
        elif p.preflight.pilot == "auto":
            log.info("preflight: no pilot, which would cost too much of so short a training (preflight.pilot)")
        return None
    with _resumable(p, train_images, "pilot") as (compute, checkpoint, advance):
        learnt = pilot.learn(p, spectrum, train_images, compute, checkpoint, advance)
    if learnt is not None and pilot.has_died(p, learnt.curve):
        log.warning("preflight: the pilot learnt nothing, so linear theory predicts; another seed may do better")
        return None
    return learnt


def numbers_of_latents(p: Parameters, weight: float, kl: float | None, train_images: np.ndarray) -> dict[str, Any]:
    """`latent_dims` of `reports/preflight.json`; nothing where they cannot be compared. kl: predicted."""
    if kl is None:
        log.warning("preflight: numbers of latents are not compared, since the predicted KL has no bound")
        return {}
    with _resumable(p, train_images, "latents") as (compute, checkpoint, advance):
        curves = latents.learn(p, train_images, compute, checkpoint, advance)
    if not curves:
        log.warning("preflight: numbers of latents are not compared: their pilot learnt nothing")
        return {}
    compared = latents.compared(p, weight, curves)
    return {
        "latent_dims": {
            "recommended": latents.recommended(compared).latent_dim,
            "advice": latents.advice(p, weight, compared),
            "compared": [asdict(row) for row in compared],
        }
    }


@contextmanager
def _resumable(
    p: Parameters, train_images: np.ndarray, name: str
) -> Iterator[tuple[Compute, Path, Callable[[int], None]]]:
    """Where a pilot of this name is trained, its checkpoint, and what to call after each step."""
    compute = pilot.compute_of(p, len(train_images))
    conditions = {**compute.describe(), "averaging": str(pilot.averaging(p, len(train_images)))}
    with (
        checkpoint_folder.of_pilot(p, conditions, name) as checkpoint,
        contention.coped_with(compute),
        progress.bar(name, pilot.STEPS, unit="steps") as advance,
    ):
        yield compute, checkpoint, advance


def affordable(p: Parameters, train_images: np.ndarray, valid_images: np.ndarray, seconds: float) -> int:
    """The epochs that fit into `train.budget`."""
    resolved = resolve(p, p.train.steps_per_epoch(len(train_images)), 1.0, p.train.epochs)
    compute = devices.choose(resolved.train, training_flops(p), len(train_images))
    with contention.coped_with(compute):
        epochs = epochs_within(seconds, resolved, train_images, valid_images, compute)
    if epochs == 0:
        log.warning(f"preflight: not even one epoch fits into train.budget = {seconds:g} seconds here; one is trained")
        return 1
    log.info(f"preflight: {epochs} epochs, in place of train.epochs, fit into train.budget = {seconds:g} seconds here")
    return epochs


def predicted(p: Parameters, weight: float, curve: Curve) -> dict[str, Any]:
    """The content of `reports/preflight.json` that follows from a curve."""
    expected = expectations(p, weight, curve)
    return {
        **expected,
        **schedule_above(p, weight, expected["collapse_kl_weight"]),
        "warnings": warnings(p, expected, curve),
    }


if __name__ == "__main__":
    entry.run(main)
