"""The rate's part of the loss: weighted by β, or steered to a target.

The schedule (`vae.schedules.kl`) gives β. Each control has a state of two numbers that changes with every step; it
stays on the device, so that no step waits for it, and is part of the checkpoint.
"""

import math

import torch
from torch import Tensor

from vae.config.resolved import ResolvedKL

# Share of the past in GECO's moving average of the constraint (Rezende & Viola 2018, algorithm 1). Their 0.99 looks
# back over 100 steps, and λ swings about its value for thousands; with 0.9 small runs settle too.
AVERAGED = 0.9
GECO_RATE = 0.02  # growth of ln λ per step, for a constraint that misses by its own size
LEAST_WEIGHT = 1e-4  # of a PI controller, whose logarithm needs one, where `kl.min_weight` is 0
GECO_RANGE = 20.0  # of |ln λ|, so that a constraint that cannot be met ends in a number


class KLControl:
    """Computes the loss of a step, and holds the state of the control.

    Controls (`KL.control`):
        schedule: D + β·R (Higgins 2017).
        capacity: D + γ·|R − C|, γ the `kl.max_weight`, C rising to `kl.capacity` as β does to 1 (Burgess 2018, eq. 8).
        pi: D + β·R, with β from a controller of its logarithm (after Shao 2020).
        geco: R + λ·(squared error − N·κ²), κ the `kl.reconstruction_target` (Rezende & Viola 2018, eq. 3). A learned
            σ, which is not in it, is fitted beside it (`vae.losses.elbo.sigma_fit`).

    Attributes:
        state: (2,) float64, changed in place; pi: (I, β), I in units of ln β; geco: (moving average of the constraint,
            ln λ).
    """

    def __init__(self, kl: ResolvedKL, pixels: int, device: torch.device) -> None:
        self.kl, self.pixels = kl, pixels
        self.state = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, rate: Tensor, mse: Tensor) -> None:
        """Updates the state with a step's rate (nats per image) and error (per pixel), without gradients."""
        match self.kl.control:
            case "pi":
                self.state.copy_(_proportional_integral(self.kl, self.state, rate.detach().double()))
            case "geco":
                self.state.copy_(_constraint(self.kl, self.state, mse.detach().double()))

    def loss(self, distortion: Tensor, rate: Tensor, mse: Tensor, beta: float) -> Tensor:
        """In nats per image.

        Args:
            rate: as the loss sees it, free bits taken off.
            beta: of the schedule, which ends at 1 where there is another control.
        """
        match self.kl.control:
            case "capacity":
                assert self.kl.capacity is not None
                return distortion + self.kl.max_weight * (rate - self.kl.capacity * beta).abs()
            case "pi":
                return distortion + self.state[1].float() * rate
            case "geco":
                assert self.kl.reconstruction_target is not None
                missed = mse - self.kl.reconstruction_target**2
                return rate + self.state[1].exp().float() * self.pixels * missed
        return distortion + beta * rate

    def effective_weight(self, scheduled: float, sigma: float | tuple[float, ...] | None) -> float:
        """The KL weight equivalent to a step's loss, for the history. GECO: 1/(2σ²λ), with the likelihood's σ."""
        match self.kl.control:
            case "capacity":
                return self.kl.max_weight
            case "pi":
                return float(self.state[1])
            case "geco":
                assert isinstance(sigma, float), "GECO has one sigma"
                return 1 / (2 * sigma**2 * float(self.state[1].exp()))
        return scheduled


def _proportional_integral(kl: ResolvedKL, state: Tensor, rate: Tensor) -> Tensor:
    """A PI controller of the weight (Shao 2020, equations 9 to 11), of its logarithm and with a relative error:

        e = (R − target)/target, within ±1;  I ← I + K_i·e;  ln β = I + K_p·e

    Shao's gains are weight per nat, tuned for one target and 10⁵ steps or more. A unit of ln β costs each active
    latent half a nat whatever β is (`vae.collapse.linear_theory`), so these gains have no unit and suit any target.
    Anti-windup: I itself is kept where β is within its bounds, so that β leaves a bound as soon as the error turns.
    """
    assert kl.target_kl is not None
    error = (rate / kl.target_kl - 1).clamp(-1, 1)
    proportional = kl.proportional_gain * error
    low, high = math.log(kl.min_weight or LEAST_WEIGHT * min(kl.max_weight, 1.0)), math.log(kl.max_weight)
    integral = torch.clamp(state[0] + kl.integral_gain * error, low - proportional, high - proportional)
    return torch.stack([integral, (integral + proportional).exp()])


def _constraint(kl: ResolvedKL, state: Tensor, mse: Tensor) -> Tensor:
    """The moving average of (MSE − κ²)/κ², and ln λ, which grows while the reconstruction misses its target."""
    assert kl.reconstruction_target is not None
    missed = mse / kl.reconstruction_target**2 - 1
    average = torch.where(state[0] == 0, missed, AVERAGED * state[0] + (1 - AVERAGED) * missed)
    step = GECO_RATE * average.clamp(-1, 1)
    return torch.stack([average, (state[1] + step).clamp(-GECO_RANGE, GECO_RANGE)])
