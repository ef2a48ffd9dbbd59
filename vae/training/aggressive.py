"""The aggressive encoder phase (He 2019, "Lagging inference networks and posterior collapse in VAEs", algorithm 1).

Early in training the approximate posterior lags behind the true one, and the decoder learns to ignore the latents.
While the phase is on, the encoder is therefore trained close to its optimum before each step of the decoder:

    repeat
        repeat  φ ← φ − η ∂loss/∂φ on a random batch   until the loss stops improving
        θ ← θ − η ∂loss/∂θ on the step's batch
    until the mutual information I_q(x; z) of the validation split stops climbing
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae.compute.random import generator
from vae.metrics.mutual_information import MutualInformation
from vae.models.vae import VAE

MOST_SUB_STEPS = 100  # of the encoder, for a step of the decoder
AVERAGED = 10  # sub-steps between two looks at the loss


@dataclass(frozen=True)
class Phase:
    """Whether the phase is on, and the mutual information (nats) when it was last judged; None before that."""

    on: bool
    information: float | None = None

    def after(self, found: MutualInformation) -> "Phase":
        """The phase after an epoch. A saturated estimate means that the latents carry enough: the phase ends."""
        climbs = found.value is not None and found.value > (-math.inf if self.information is None else self.information)
        return Phase(self.on and climbs, found.value)


@contextmanager
def frozen(weights: list[nn.Parameter]) -> Iterator[None]:
    """Excludes these weights from differentiation, so that a step leaves them unchanged."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def halves(model: VAE) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """φ, the parameters of q(z|x), and θ, those of p(x|z) and p(z): a learned σ, and a learned prior."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    inference = {name for name in trained if name.split(".")[0] in ("encoder", "posterior", "lower", "mean_norm")}
    phi = [weight for name, weight in trained.items() if name in inference]
    return phi, [weight for name, weight in trained.items() if name not in inference]


def converge(sub_step: Callable[[int], Tensor]) -> int:
    """Calls sub_step(0), sub_step(1), … until the average loss of ten is no lower than that of the ten before.

    sub_step: updates the encoder and returns its loss, a scalar. Returns how many were made, at most 100.
    """
    before = math.inf
    for start in range(0, MOST_SUB_STEPS, AVERAGED):
        losses = [sub_step(start + i).detach() for i in range(AVERAGED)]
        average = float(torch.stack(losses).mean())
        if not average < before:
            return start + AVERAGED
        before = average
    return MOST_SUB_STEPS


def random_batch(seed: int, step: int, sub_step: int, images: int, batch_size: int) -> Tensor:
    """Which images a sub-step sees: drawn without replacement."""
    random = generator(seed, f"aggressive{sub_step}", step)
    return torch.randperm(images, generator=random)[:batch_size]
