"""The training loop.

Everything random follows from (seed, epoch or step), so a run that resumes from a checkpoint ends with
the same bits as one that was never interrupted.
"""

import copy
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vae.compute.batches import (
    epoch_order,
    for_measuring,
    full_batches,
    gather,
    generator,
    resident,
    to_pixels,
)
from vae.compute.cuda_graph import Replayed, recorder
from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.config.parameters import Parameters, Train, with_ramp
from vae.losses import kl_control
from vae.losses.objective import Likelihood, Objective, kl_per_latent, optimal_sigma, squared_error
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import Measurement, encode, fitted_sigma, measure, mutual_information
from vae.models.vae import VAE, to_device
from vae.schedules.kl import kl_weight
from vae.training import aggressive, checkpoint
from vae.training.history import Row, chosen_epoch, why_stop

SIGMA_IMAGES = 2048  # of the training split, for the σ of each epoch's validation


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: the row of the history, what varies from run to run, and the weights behind it."""

    row: Row
    seconds: float
    images_per_second: float
    model: VAE
    likelihood: Likelihood
    kl_per_latent: list[float]  # of the validation split


@dataclass(frozen=True)
class Trained:
    """The kept model and how training came to its end.

    Attributes:
        kept_epoch: the epoch of the model, counted from 1; 0 where the first one diverged already.
        stopped: why training ended before its last epoch, or None.
        train: the training split, measured with the kept model and its frozen likelihood.
        kl_per_latent: of the validation split, Z numbers for each row of the history.
    """

    model: VAE
    likelihood: Likelihood
    history: list[Row]
    kept_epoch: int
    stopped: str | None
    train: Measurement
    kl_per_latent: list[list[float]]


def build(p: Parameters) -> VAE:
    """A new model, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        return VAE(
            p.data.image_shape,
            p.model.architecture,
            p.model.latent_dim,
            p.model.widths,
            p.model.batch_norm,
            p.model.mean_batch_norm,
            p.model.logvar_max,
            learned_sigma=p.objective.sigma == "learned",
            likelihood=p.objective.likelihood,
        )


def flops(p: Parameters) -> float:
    """Floating-point operations of training on one image: forward, and twice that backward."""
    per_image = 0.0

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal per_image
        positions = 1
        if isinstance(layer, nn.Conv2d):
            positions = output[0, 0].numel()
        elif isinstance(layer, nn.ConvTranspose2d):
            positions = inputs[0][0, 0].numel()
        per_image += 2 * cast(Tensor, layer.weight).numel() * positions

    model = build(p).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *p.data.image_shape), torch.zeros(1, p.model.latent_dim))
    return 3 * per_image


def train(
    p: Parameters,
    train_images: np.ndarray,
    valid_images: np.ndarray,
    compute: Compute,
    checkpoint_path: Path | None = None,
    initial_weights: Mapping[str, Tensor] | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_resume: Callable[[list[Row], list[list[float]]], None] = lambda history, kl_per_latent: None,
    on_message: Callable[[str], None] = print,
) -> Trained:
    """Trains a VAE and keeps its best epoch at the final KL weight.

    Args:
        train_images, valid_images: uint8 (N, H, W, C).
        checkpoint_path: resumed from if it exists, written after every epoch.
        on_step: called with the number of steps done. on_epoch: after each new epoch. on_resume: with the
            history and the KL per latent so far, where training goes on from a checkpoint.

    Raises:
        InputError: fewer training images than a batch, weights that do not fit, no memory on the GPU.
    """
    steps = p.train.steps_per_epoch(len(train_images))
    p = with_ramp(p, steps)
    if steps == 0 or (p.model.batch_norm and p.train.batch_size < 2):
        raise InputError(_batch_problem(p, len(train_images)))
    if len(valid_images) < 2:
        raise InputError(
            f"the validation split holds {len(valid_images)} image(s); whether a latent varies takes at least 2, "
            "and a verdict worth having 20 or more: add images or raise data.valid_fraction"
        )
    objective, device = Objective.of(p), compute.device
    measured_images = for_measuring(train_images, p)

    # Build the model, its optimiser and its moving average; the plain one is trained, `judged` is measured.
    model = to_device(build(p), device)
    if initial_weights is not None:
        load_weights(model, initial_weights, "train.initial_weights")
    if model.log_sigma is not None and initial_weights is None:
        # From the mean image's error: at σ = 1 the latents would die before σ has come down.
        model.log_sigma.data.fill_(
            math.log(optimal_sigma(MeanImage.of(measured_images).mse(measured_images)))
        )
    groups = [
        {
            "params": [w for w in model.parameters() if w is not model.log_sigma],
            "weight_decay": p.train.weight_decay,
        },
        {"params": [w for w in model.parameters() if w is model.log_sigma], "weight_decay": 0.0},
    ]
    # By a CUDA graph; that the steps before it are not captured is no reason for PyTorch's warning.
    capturable = device.type == "cuda"
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    optimiser = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=p.train.learning_rate, fused=True, capturable=capturable
    )
    average = None
    if p.train.ema is not None:
        average = AveragedModel(model, use_buffers=True)
    judged = model if average is None else cast(VAE, average.module)
    control_state = kl_control.start(p.kl, device)
    phase, (inference, generation) = aggressive.Phase(p.train.aggressive_encoder), aggressive.halves(model)
    history: list[Row] = []
    kl_per_epoch: list[list[float]] = []
    kept_epoch, kept_weights = 0, copy.deepcopy(judged.state_dict())

    # Resume from the last epoch that was completed.
    if checkpoint_path is not None:
        state, problems = checkpoint.load(checkpoint_path, device)
        for problem in problems:
            on_message(f"warning: {problem}")
        if state is not None:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            if average is not None:
                average.load_state_dict(state["average"])
            control_state.copy_(state["control"])
            phase = aggressive.Phase(**state["phase"])
            history = state["history"]
            kept_epoch, kept_weights = state["kept_epoch"], state["kept_weights"]
            kl_per_epoch = state["kl_per_latent"]
            on_resume(history, kl_per_epoch)
            on_message(f"resumed after epoch {len(history)} of {p.train.epochs}")

    stored = resident(train_images, device)
    sigma_sample = measured_images[:: math.ceil(len(train_images) / SIGMA_IMAGES)]
    samples = p.objective.importance_samples_train
    loss_of, bound_of = _loss, _importance_weighted_loss
    if compute.compiled:
        loss_of, bound_of = torch.compile(_loss), torch.compile(_importance_weighted_loss)
    stopped = why_stop(history, p)

    # What varies from step to step is in tensors, and what a step changes it changes in place: see cuda_graph.
    beta, share = torch.zeros((), device=device), torch.zeros((), device=device)
    # AdamW's kernels for a GPU read it as float32, those for a CPU as float64.
    learning_rate = torch.zeros(
        (), dtype=torch.float32 if device.type == "cuda" else torch.float64, device=device
    )
    for group in optimiser.param_groups:  # also where a checkpoint brought its own
        group |= {"lr": learning_rate, "capturable": capturable}
    sums = torch.zeros(3, dtype=torch.float64, device=device)

    def descend(loss: Tensor) -> None:
        """One step of the optimiser, of all weights that are not frozen."""
        optimiser.zero_grad(set_to_none=True)
        (objective.scale * loss).backward()
        if p.train.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), p.train.gradient_clip)
        optimiser.step()

    def training_step(x: Tensor, noise: Tensor) -> None:
        """Forward, backward, step; nothing here waits for the device."""
        with compute.autocast():
            if samples > 1:
                loss, distortion, rate = bound_of(model, objective, x, noise, beta)
            else:
                distortion, rate, penalised, mse = loss_of(model, objective, x, noise)
                control_state.copy_(kl_control.update(p.kl, control_state, rate, mse))
                loss = kl_control.loss(
                    p.kl, control_state, distortion, penalised, mse, beta, share, objective.pixels
                )
        descend(loss)
        if average is not None:
            update_average(average, model, cast(float, p.train.ema))
        sums.add_(torch.stack([loss, distortion, rate]).detach())

    def changed() -> list[Tensor]:
        """All that a step changes."""
        averaged = {} if average is None else average.module.state_dict()
        moments = [tensor for state in optimiser.state.values() for tensor in state.values()]
        return [*model.state_dict().values(), *averaged.values(), *moments, control_state, sums]

    replayed_step = Replayed(training_step, changed, device, recorder(device), on_message)

    def encoder_step(step: int, sub_step: int) -> Tensor:
        """One sub-step of the aggressive phase, on a batch of its own, with the control as it stands."""
        chosen = aggressive.random_batch(p.seed, step, sub_step, len(train_images), p.train.batch_size)
        x, noise = _batch(p, gather(stored, chosen, device), step, device, f"aggressive{sub_step}.")
        with aggressive.frozen(generation), compute.autocast():
            distortion, _, penalised, mse = loss_of(model, objective, x, noise)
            loss = kl_control.loss(
                p.kl, control_state, distortion, penalised, mse, beta, share, objective.pixels
            )
        descend(loss)
        return loss

    while stopped is None and len(history) < p.train.epochs:
        epoch = len(history)
        order = epoch_order(p.seed, epoch, len(train_images))
        sums.zero_()
        started = time.perf_counter()
        model.train()

        for batch, images in enumerate(full_batches(stored, order, p.train.batch_size, device)):
            # Where in the training are we: the KL weight and the learning rate follow.
            step = epoch * steps + batch
            progress = step / steps
            weight = kl_weight(p.kl, progress, p.train.epochs)
            learning_rate.fill_(p.train.learning_rate * learning_rate_factor(p.train, progress))
            beta.fill_(objective.beta(weight))  # there: no copy to wait for
            share.fill_(weight / p.kl.weight if p.kl.weight else 1.0)

            with _memory_errors_explained(p.train):
                x, noise = _batch(p, images, step, device)
                if phase.on:  # the encoder goes first, on other batches, and this step is the decoder's
                    aggressive.converge(functools.partial(encoder_step, step))
                    with aggressive.frozen(inference):
                        training_step(x, noise)
                else:
                    replayed_step(x, noise)
            if average is not None:
                count_average(average, model)
            on_step(step + 1)

        # Judge it on the whole validation split, at the final KL weight.
        loss, distortion, rate = (sums / steps).tolist()
        trained_seconds = time.perf_counter() - started
        with _memory_errors_explained(p.train):
            likelihood = likelihood_of(objective, judged, sigma_sample, compute, p.seed)
            valid = measure(judged, valid_images, likelihood, compute, p.seed)
        row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * steps,
            "kl_weight": kl_control.effective_weight(p.kl, control_state, weight, likelihood.sigma),
            "train/loss": loss,
            "train/reconstruction": distortion,
            "train/kl": rate,
            "valid/loss": valid.distortion + objective.beta(objective.final_weight) * valid.rate,
            "valid/reconstruction": valid.distortion,
            "valid/kl": valid.rate,
            "valid/elbo": valid.elbo,
            "valid/mse": valid.mse,
            "valid/mse_sampled": valid.mse_sampled,
            "valid/active_units": valid.active_units(),
            "valid/informative_units": valid.informative_units(),
        }
        history.append(row)
        kl_per_epoch.append(valid.kl_per_latent.tolist())

        if phase.on:
            phase = phase.after(mutual_information(*encode(model, valid_images, compute), p.seed))
            if not phase.on:
                on_message(f"the aggressive encoder phase ends with epoch {epoch + 1}")

        # Keep what is best so far, write the checkpoint, tell.
        if chosen_epoch(history, p) == epoch + 1:
            kept_epoch, kept_weights = epoch + 1, copy.deepcopy(judged.state_dict())
        if checkpoint_path is not None:
            try:
                checkpoint.save(
                    checkpoint_path,
                    {
                        "model": model.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "average": None if average is None else average.state_dict(),
                        "control": control_state,
                        "phase": dataclasses.asdict(phase),
                        "history": history,
                        "kl_per_latent": kl_per_epoch,
                        "kept_epoch": kept_epoch,
                        "kept_weights": kept_weights,
                    },
                )
            except (
                OSError
            ) as error:  # the one before still stands, and training may end well without a newer one
                on_message(
                    f"warning: no checkpoint of epoch {epoch + 1}: {error.strerror or error}; "
                    f"free some space for {checkpoint_path.parent}. The training goes on; an interruption would cost "
                    "the epochs since the last one"
                )
        seconds = time.perf_counter() - started
        speed = steps * p.train.batch_size / trained_seconds
        on_epoch(Epoch(row, seconds, speed, judged, likelihood, kl_per_epoch[-1]))
        stopped = why_stop(history, p)

    # Freeze the kept model with the likelihood that everything reported will use.
    judged.load_state_dict(kept_weights)
    likelihood = likelihood_of(objective, judged, measured_images, compute, p.seed)
    measured = measure(judged, measured_images, likelihood, compute, p.seed)
    return Trained(judged, likelihood, history, kept_epoch, stopped, measured, kl_per_epoch)


def learning_rate_factor(train: Train, progress: float) -> float:
    """What the learning rate is multiplied by after `progress` epochs: 1 at the start, 0 at the end."""
    t = min(progress / train.epochs, 1.0)
    return {"constant": 1.0, "linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2}[
        train.learning_rate_schedule
    ]


@torch.no_grad()
def update_average(average: AveragedModel, model: VAE, decay: float) -> None:
    """The exponential moving average a ← a + (1 − decay)·(w − a) of weights and buffers.

    AveragedModel's own `update_parameters` asks at every step how many there were, and waits for the GPU to hear it.
    """
    averaged = [*average.module.parameters(), *average.module.buffers()]
    current = [*model.parameters(), *model.buffers()]
    floats = [(a, w) for a, w in zip(averaged, current, strict=True) if a.is_floating_point()]
    counts = [(a, w) for a, w in zip(averaged, current, strict=True) if not a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [w for _, w in floats], 1 - decay)
    for a, w in counts:
        a.copy_(a * decay + w * (1 - decay))


@torch.no_grad()
def count_average(average: AveragedModel, model: VAE) -> None:
    """After a step. The first average is the weights themselves."""
    if average.n_averaged == 0:  # it stays on the CPU
        average.module.load_state_dict(model.state_dict())
    average.n_averaged += 1


def likelihood_of(
    objective: Objective, model: VAE, train_images: np.ndarray, compute: Compute, seed: int
) -> Likelihood:
    """p(x|z) with its σ: known from the parameters, learned, or fitted to training images."""
    log_sigma = None if model.log_sigma is None else float(model.log_sigma.detach())
    known = objective.known_likelihood(log_sigma)
    return known or Likelihood("gaussian", fitted_sigma(model, train_images, compute, seed))


def load_weights(model: VAE, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises: InputError: a tensor is missing, unknown or of another shape."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{name}: these weights are of another model: {str(error).splitlines()[-1].strip()}"
        ) from None


def _loss(
    model: VAE, objective: Objective, x: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distortion, rate, the rate as the loss sees it, and the mean squared error of a pixel."""
    output, mu, logvar = model(x, noise[0])
    kl = kl_per_latent(mu, logvar)
    mse = squared_error(x, output).mean() / objective.pixels
    return (
        objective.distortion(x, output, model.log_sigma),
        kl.sum(1).mean(),
        objective.penalised_rate(kl),
        mse,
    )


def _importance_weighted_loss(
    model: VAE, objective: Objective, x: Tensor, noise: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """−L_k (Burda 2016, equation 8) with its KL part weighted by β; distortion and rate beside it, for the history.

    noise: (k, B, Z). ln w = ln p(x|z) + β·(ln p(z) − ln q(z|x)); with z = μ + σε the bracket is
    ½ Σ (ε² + ln σ² − z²).
    """
    mu, logvar = model.encode(x)
    z = mu + torch.exp(0.5 * logvar) * noise
    repeated = x.repeat(len(noise), 1, 1, 1)
    output = model.decode(z.flatten(0, 1), repeated)
    log_likelihood = objective.log_weights(repeated, output, model.log_sigma)
    log_likelihood = log_likelihood.view(len(noise), len(x))
    log_ratio = 0.5 * (noise.square() + logvar - z.square()).sum(2)
    bound = torch.logsumexp(log_likelihood + beta * log_ratio, 0) - math.log(len(noise))
    return -bound.mean(), -log_likelihood.mean(), kl_per_latent(mu, logvar).sum(1).mean()


def _batch(
    p: Parameters, images: Tensor, step: int, device: torch.device, purpose: str = ""
) -> tuple[Tensor, Tensor]:
    """Pixels (B, C, H, W), augmented and drawn as the parameters say, and a step's noise (k, B, Z).

    images: uint8 (B, H, W, C). purpose: sets the random draws apart from those of the step itself.
    """
    x = to_pixels(images, device)
    if p.data.augment == "flip":
        coin = (
            torch.rand(len(x), generator=generator(p.seed, purpose + "flip", step, device), device=device)
            < 0.5
        )
        x = torch.where(coin[:, None, None, None], x.flip(3), x)
    if p.data.binarise == "dynamic":
        x = torch.bernoulli(x, generator=generator(p.seed, purpose + "binarise", step, device))
    shape = (p.objective.importance_samples_train, len(x), p.model.latent_dim)
    noise = torch.randn(shape, generator=generator(p.seed, purpose + "noise", step, device), device=device)
    return x, noise


def _batch_problem(p: Parameters, images: int) -> str:
    if p.model.batch_norm and min(images, p.train.batch_size) < 2:
        return (
            f"train.batch_size = {p.train.batch_size} with {images} training images: "
            "batch norm needs at least 2 images in a batch"
        )
    return (
        f"train.batch_size = {p.train.batch_size} is more than the {images} training images; "
        f"the largest batch allowed is {images}"
    )


class _memory_errors_explained:
    """Names the parameter to change where the GPU's memory does not suffice."""

    def __init__(self, train: Train) -> None:
        self.train = train

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise InputError(
                f"train.batch_size = {self.train.batch_size} needs more memory than the GPU has free; "
                f"try {max(self.train.batch_size // 2, 1)}, or smaller model.widths or data.image_size, "
                "or VAE_CUDA_GRAPHS=0 in the environment"
            ) from None
