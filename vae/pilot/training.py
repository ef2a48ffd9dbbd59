"""The pilot: one short training that learns the rate–distortion curve of all KL weights at once.

    loss = w(s) · (D₁/s + R),  D₁ = ½ |x − x̂|² or the cross-entropy, s = β·σ² (σ = 1 of a Bernoulli likelihood)

Each image of a batch has a threshold s of its own, which modulates the network (`vae.pilot.network`). The weights
w(s) make what there is to gain comparable for all s, by linear theory.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.collapse.linear_theory import Spectrum
from vae.collapse.pilot_curve import PilotCurve
from vae.collapse.rate_distortion import Curve, optimal_variance
from vae.compute import devices
from vae.compute.batches import gather, in_order, resident
from vae.compute.devices import Compute
from vae.compute.random import generator
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.parameters import Parameters
from vae.config.resolved import LEARNING_RATE, ResolvedTrain
from vae.losses.elbo import kl_per_latent
from vae.metrics.measurement import batch_size as batch_size_of
from vae.metrics.moments import pixel_moments
from vae.models.flops import training_flops
from vae.models.likelihood import bernoulli_log_prob, squared_error
from vae.models.vae import to_device
from vae.pilot.network import PilotNetwork, averaged, can_average, narrow
from vae.schedules.learning_rate import learning_rate
from vae.training import checkpoint
from vae.training.optimiser import Optimiser
from vae.training.step import draw

STEPS = 500
BATCHES = 2  # of the training in one of the pilot, whose images share it between all thresholds
FEWEST_IMAGES, MOST_IMAGES = 64, 256  # images in a batch
TRAIN = ResolvedTrain(epochs=1, learning_rate=2 * LEARNING_RATE["muon"])  # one cycle; noisy steps do it no harm
MODULATION_RATE = 2e-2
RISE = 0.25  # of the steps, over which the highest threshold rises: latents that are worth little come after the others
EQUALISED = 0.9  # of the differences in ln gain between thresholds

LOW, HIGH, LOW_BERNOULLI = 1 / 3, 1.3, 0.03  # of linear theory's σ² at β = 1; of its largest eigenvalue; β itself
POINTS = 33  # thresholds at which the curve is measured
MEASURED = 512  # training images
MOST_RATES = 1024  # that a curve keeps of each threshold

CHECKPOINT_STEPS = 50
MOST_SHARE, SMALL_FLOPS = 0.1, 1e12  # of the training's operations; and what takes some ten seconds on a core
SLOWNESS = 3  # of an operation in narrow layers, which wait for memory: 21 against 64 GFLOP/s of photos of 64×64 pixels


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pilot:
    """A trained pilot and its curve."""

    network: PilotNetwork
    curve: PilotCurve


def is_asked(p: Parameters, images: int) -> bool:
    """As `preflight.pilot` says; `auto`: where it costs under a tenth of the training, or next to nothing.

    Never of two levels of latents: linear theory predicts the best rates of a vector of as many.
    Operations are counted, not seconds, so that every machine decides alike. images: of the training split.
    """
    if p.model.lower_latents is not None:
        return False
    if p.preflight.pilot != "auto":
        return p.preflight.pilot
    return _cost(p, averaging(p, images)) <= _affordable(p, images)


def averaging(p: Parameters, images: int) -> int:
    """k, a power of two: the side of the squares of pixels whose average the pilot sees, so that it is cheap."""
    k, affordable = 1, _affordable(p, images)
    while _cost(p, k) > affordable and can_average(p, 2 * k):
        k *= 2
    return k


def _cost(p: Parameters, k: int) -> float:
    return SLOWNESS * training_flops(narrow(p, k)) * STEPS * batch_size(p)


def _affordable(p: Parameters, images: int) -> float:
    training = training_flops(p) * p.train.epochs * p.train.steps_per_epoch(images) * p.train.batch_size
    return max(MOST_SHARE * training, SMALL_FLOPS)


def compute_of(p: Parameters, images: int) -> Compute:
    """In fp32: the network is too small for more to pay off."""
    flops_per_image = SLOWNESS * training_flops(narrow(p, averaging(p, images))) * batch_size(p) / p.train.batch_size
    return replace(devices.choose(p.train, flops_per_image), precision="fp32", compiled=False)


def curve_of(p: Parameters, spectrum: Spectrum, train_images: np.ndarray) -> Curve:
    """The pilot's, where one is asked for, else that of linear theory."""
    images = len(train_images)
    learnt = learn(p, spectrum, train_images, compute_of(p, images)) if is_asked(p, images) else None
    return spectrum if learnt is None or has_died(p, learnt.curve) else learnt.curve


def has_died(p: Parameters, curve: PilotCurve) -> bool:
    """Whether the pilot carries next to nothing where linear theory carries something: then it is no prediction.

    An autoregressive decoder may need no latents.
    """
    linear = curve.spectrum.rates(curve.thresholds[0]).sum()
    learnt = curve.each * curve.measured_rates[0].sum()
    return bool(
        p.model.architecture != "autoregressive"
        and not learnt >= COLLAPSED_BELOW_NATS
        and linear > COLLAPSED_BELOW_NATS
    )


def batch_size(p: Parameters) -> int:
    return min(max(BATCHES * p.train.batch_size, FEWEST_IMAGES), MOST_IMAGES)


def thresholds(spectrum: Spectrum, bernoulli: bool) -> NDArray[np.float64] | None:
    """(POINTS,), ascending; None of images that hold next to nothing to encode."""
    low = LOW_BERNOULLI if bernoulli else LOW * optimal_variance(spectrum, 1.0)
    high = HIGH * spectrum.critical
    return np.geomspace(low, high, POINTS) if 2 * low < high else None


def learn(
    p: Parameters,
    spectrum: Spectrum,
    train_images: np.ndarray,
    compute: Compute,
    checkpoint_path: Path | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Pilot | None:
    """Trains a pilot on uint8 images (N, H, W, C); None where there is nothing to learn.

    The same parameters and images give the same bits, interrupted or not.

    checkpoint_path: resumed from if it exists.
    """
    points = thresholds(spectrum, p.objective.likelihood == "bernoulli")
    if points is None:
        return None
    devices.set_up(compute, p.train.deterministic)
    network = PilotNetwork(p, averaging(p, len(train_images)))
    train(p, network, spectrum, points, train_images, compute, checkpoint_path, on_step)
    return Pilot(network, measured(p, network, spectrum, points, train_images, compute))


def train(
    p: Parameters,
    network: PilotNetwork,
    spectrum: Spectrum,
    points: NDArray[np.float64],
    train_images: np.ndarray,
    compute: Compute,
    checkpoint_path: Path | None,
    on_step: Callable[[int], None],
) -> None:
    to_device(network.vae, compute.device)
    network.to(compute.device)
    stored = resident(train_images, compute.device)
    optimisers = (
        Optimiser(network.vae, TRAIN),
        torch.optim.AdamW([*network.embed.parameters(), *network.modulations.parameters()], weight_decay=0.0),
    )
    log_weights = torch.tensor(-EQUALISED * np.log1p(gain(spectrum, points)), dtype=torch.float32)
    done = _resumed(network, optimisers, checkpoint_path, compute)
    network.train()
    for step in range(done, STEPS):
        rate = learning_rate(TRAIN, (step + 0.5) / STEPS)
        optimisers[0].set_learning_rate(rate)
        optimisers[1].param_groups[0]["lr"] = rate * MODULATION_RATE / TRAIN.learning_rate
        loss = _loss(p, network, points, log_weights, stored, step, compute)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 100.0)
        for optimiser in optimisers:
            optimiser.step()
        if checkpoint_path is not None and (step + 1) % CHECKPOINT_STEPS == 0:
            _save(network, optimisers, checkpoint_path, step + 1)
        on_step(step + 1)


def gain(spectrum: Spectrum, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """What linear theory says there is to gain over the mean image at each threshold: (K,) in nats."""
    rate = np.array([spectrum.rates(s).sum() for s in points])
    return np.maximum((spectrum.total - spectrum.error(points)) / (2 * points) - rate, 0.0)


def _loss(
    p: Parameters,
    network: PilotNetwork,
    points: NDArray[np.float64],
    log_weights: Tensor,
    stored: np.ndarray | Tensor,
    step: int,
    compute: Compute,
) -> Tensor:
    device, count = compute.device, batch_size(p)
    random = generator(p.seed, "pilot", step)
    chosen = torch.randint(len(stored), (count,), generator=random)
    x, noise = draw(p, gather(stored, chosen, device), step, device, "pilot ")
    x = averaged(x, network.k)
    # One threshold in each of as many equal parts of the range.
    part = torch.randperm(count, generator=random) + torch.rand(count, generator=random)
    share = part / count * min(1.0, 0.1 + 0.9 * step / (RISE * STEPS))
    low, high = math.log(points[0]), math.log(points[-1])
    s = torch.exp(low + share * (high - low)).to(device)
    place = share * (POINTS - 1)
    below = place.floor().clamp(max=POINTS - 2).long()
    weight = torch.lerp(log_weights[below], log_weights[below + 1], place - below).exp().to(device)
    output, mu, logvar = network(x, noise[0], (2 * share - 1).to(device))
    return (weight * (distortion(p, x, output, network.k) / s + kl_per_latent(mu, logvar).sum(1))).mean()


def distortion(p: Parameters, x: Tensor, output: Tensor, k: int = 1) -> Tensor:
    """−ln p(x|z) at σ = 1, without its constants, of averages of k×k pixels: (B, C, H, W) → (B,)."""
    if p.objective.likelihood == "bernoulli":
        return -bernoulli_log_prob(x, output)
    return 0.5 * k**2 * squared_error(x, output)


@torch.no_grad()
def measured(
    p: Parameters,
    network: PilotNetwork,
    spectrum: Spectrum,
    points: NDArray[np.float64],
    images: np.ndarray,
    compute: Compute,
) -> PilotCurve:
    """The curve on some of the training images.

    The rates are those of standardised latents, ½ (ln s_j² − E ln σ_j²), as a trained model is saved.
    """
    network.eval()
    sample, device, k = images[:: math.ceil(len(images) / MEASURED)], compute.device, network.k
    seen = torch.cat([averaged(x, k) for x in in_order(sample, 64, device)])
    # What is finer than the averages nobody decodes: an error that is always there.
    finer = float(pixel_moments(sample)[1].sum() - k**2 * seen.double().var(0, correction=0).sum()) if k > 1 else 0.0
    rates, errors = [], []
    for index, u in enumerate(np.linspace(-1, 1, POINTS)):
        random = generator(p.seed, "pilot measure", index, device)
        mus, logvars, error = [], [], finer
        for x in seen.split(batch_size_of(*seen.shape[2:])):
            if p.data.binarise == "dynamic":
                x = torch.bernoulli(x, generator=random)
            noise = torch.randn(len(x), network.vae.latent_dim, generator=random, device=device)
            output, mu, logvar = network(x, noise, torch.full((len(x),), float(u), device=device))
            scale = 1.0 if p.objective.likelihood == "bernoulli" else 2.0
            error += scale * float(distortion(p, x, output, k).double().sum()) / len(sample)
            mus.append(mu.double())
            logvars.append(logvar.double())
        mu, logvar = torch.cat(mus), torch.cat(logvars)
        aggregate = mu.var(0, correction=0) + logvar.exp().mean(0)
        rates.append(np.sort((0.5 * (aggregate.log() - logvar.mean(0))).cpu().numpy())[::-1])
        errors.append(error)
    model: dict[str, Any] = p.model.model_dump(include={"architecture", "latent_dim", "widths", "batch_norm"})
    latents = network.vae.latent_dim
    each = next(n for n in range(1, latents + 1) if latents % n == 0 and latents <= n * MOST_RATES)
    if p.model.latent_shape is None:
        each = 1
    kept = np.array(rates).reshape(len(rates), -1, each).mean(2)
    return PilotCurve(spectrum, points, kept, np.array(errors), p.objective.likelihood, model, each)


def _save(network: PilotNetwork, optimisers: Any, path: Path, step: int) -> None:
    states = [optimiser.state_dict() for optimiser in optimisers]
    try:
        checkpoint.save(path, {"step": step, "network": network.state_dict(), "optimisers": states})
    except OSError as error:
        log.warning("no checkpoint of the pilot: %s; an interruption would lose it", error.strerror or error)


def _resumed(network: PilotNetwork, optimisers: Any, path: Path | None, compute: Compute) -> int:
    """How many steps are done."""
    found = checkpoint.load(path, compute.device)[0] if path is not None else None
    if found is None:
        return 0
    network.load_state_dict(found["network"])
    for optimiser, state in zip(optimisers, found["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    return int(found["step"])
