"""How many latents: a second pilot, of fewer and more latents than the model has (`NestedNetwork`)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vae.collapse.expectations import distortion
from vae.collapse.linear_theory import MOST_LATENTS_PER_IMAGE, spectrum_for
from vae.collapse.pilot_curve import PilotCurve
from vae.collapse.rate_distortion import Curve, error_at, predict, steered, steered_beta, with_enforced_rate
from vae.compute import devices
from vae.compute.devices import Compute
from vae.config.beta_elbo import BetaELBO
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.parameters import Parameters
from vae.config.text import three_digits
from vae.models.flops import training_flops
from vae.models.likelihood import gaussian_log_prob, optimal_sigma
from vae.pilot.network import NestedNetwork
from vae.pilot.training import averaging, has_died, measured, thresholds, train

TRIED = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4)  # of model.latent_dim
ENOUGH = 0.95  # of what the largest number gains over the mean image: a pilot knows it no better than that


@dataclass(frozen=True)
class LatentDim:
    """What is expected of a training with this number of latents, all else as it is.

    Attributes:
        rate: in nats per image.
        distortion: `vae.collapse.expectations.distortion`.
        gain: nats per image by which the objective, D + β·R, is better than that of the mean image; at least 0.
        operations: of a training step, relative to those of `model.latent_dim`.
    """

    latent_dim: int
    rate: float
    distortion: float
    gain: float
    operations: float


def tried(p: Parameters, images: int) -> list[int]:
    """Numbers of latents, ascending: as many as the images can tell apart (`MOST_LATENTS_PER_IMAGE`), and p's own."""
    now, k = p.model.latent_dim, averaging(p, images)
    pixels = math.prod(side // k for side in p.data.image_size) * p.data.channels
    most = min(pixels, int(images * MOST_LATENTS_PER_IMAGE))
    return sorted({now, *(int(share * now) for share in TRIED if 1 <= share * now <= most)})


def learn(
    p: Parameters,
    train_images: np.ndarray,
    compute: Compute,
    checkpoint_path: Path | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[int, PilotCurve]:
    """The curve of each number of latents, by a pilot as of `vae.pilot.training.learn`.

    Empty where there is nothing to learn, or nothing was learnt.
    """
    numbers = tried(p, len(train_images))
    wide = with_latents(p, max(numbers))
    spectrum = spectrum_for(wide, train_images)
    points = thresholds(spectrum, p.objective.likelihood == "bernoulli")
    if points is None or max(numbers) == 1:
        return {}
    devices.set_up(compute, p.train.deterministic)
    network = NestedNetwork(wide, averaging(p, len(train_images)))
    train(wide, network, spectrum, points, train_images, compute, checkpoint_path, on_step)
    curves: dict[int, PilotCurve] = {}
    for number in numbers:
        network.latents = number
        curve = measured(wide, network, spectrum, points, train_images, compute)
        curves[number] = replace(
            curve, spectrum=spectrum.of(with_latents(p, number)), measured_rates=curve.measured_rates[:, :number]
        )
    return {} if has_died(p, curves[p.model.latent_dim]) else curves


def with_latents(p: Parameters, number: int) -> Parameters:
    return p.model_copy(update={"model": p.model.model_copy(update={"latent_dim": number})})


def compared(p: Parameters, weight: float, curves: Mapping[int, Curve]) -> list[LatentDim]:
    """The numbers of latents at this KL weight, or with the control, in ascending order.

    None does worse than a smaller one: latents of no use would die.
    """
    is_steered = p.kl.control != "schedule"
    elbo = BetaELBO.of(p, 1.0 if is_steered else weight)
    found = {n: steered(curve, p, weight) if is_steered else predict(curve, elbo) for n, curve in curves.items()}
    if is_steered:
        elbo = replace(elbo, sigma="optimal", beta=steered_beta(found[p.model.latent_dim], elbo))
    rows: list[LatentDim] = []
    for n, curve in curves.items():
        changed = with_latents(p, n)
        s, rate = found[n].threshold, with_enforced_rate(found[n], curve, changed).kl
        gain = objective(elbo, curve.total, 0.0) - objective(elbo, error_at(curve, s), rate)
        operations = training_flops(changed) / training_flops(p)
        row = LatentDim(n, rate, distortion(p, curve, s), max(gain, 0.0), operations)
        if rows and gain < rows[-1].gain:
            row = replace(rows[-1], latent_dim=n, operations=operations)
        rows.append(row)
    return rows


def recommended(rows: Sequence[LatentDim]) -> LatentDim:
    """The fewest latents with `ENOUGH` of the highest gain. rows: `compared`."""
    return next(row for row in rows if row.gain >= ENOUGH * rows[-1].gain)


def objective(elbo: BetaELBO, error: float, rate: float) -> float:
    """D + β·R in nats per image. error: of an image, summed over pixels of [0, 1]; of Bernoulli pixels, −ln p(x|z)."""
    if elbo.likelihood == "bernoulli":
        return error + elbo.beta * rate
    sigma = elbo.fixed_sigma or optimal_sigma(error / elbo.pixels)
    log_prob = gaussian_log_prob(torch.tensor(error, dtype=torch.float64), elbo.pixels, sigma**2)
    return elbo.beta * rate - float(log_prob)


def advice(p: Parameters, weight: float, rows: Sequence[LatentDim]) -> str:
    """What to make of them, in a sentence, at this KL weight."""
    present = p.model.latent_dim
    best, now = recommended(rows), next(row for row in rows if row.latent_dim == present)
    if rows[-1].gain < COLLAPSED_BELOW_NATS:
        return f"model.latent_dim = {present}: by the latents' pilot no number of them gains a nat at this KL weight"
    if best is now:
        return f"model.latent_dim = {present} is recommended by the latents' pilot: more gain next to nothing"
    end = " or more" if best is rows[-1] else ""
    asked = f"model.latent_dim = {best.latent_dim}{end}"
    if p.objective.reduction == "mean" and p.kl.control == "schedule":  # the weight is per latent
        asked += f" (and kl.max_weight = {weight * best.latent_dim / present:.3g})"
    if best.latent_dim < present:
        return (
            f"{asked} would do in place of {present}: "
            f"by the latents' pilot it costs {three_digits(now.gain - best.gain)} nats of {three_digits(now.gain)}"
        )
    return (
        f"{asked} in place of {present} would gain {three_digits(best.gain - now.gain)} nats of the objective by the "
        f"latents' pilot, for {best.operations:.3g} times the operations"
    )
