"""What the loss adds to the distortion: a weighted rate, or a rate that is steered to a target.

The schedule of `vae.schedules.kl` gives β and says how far the ramp is. The others have a state of two numbers that
changes with every step; it stays on the device, so that no step waits for it, and goes into the checkpoint.
"""

import torch
from torch import Tensor

from vae.config.parameters import KL

# Share of the past in GECO's moving average of the constraint (Rezende & Viola 2018, algorithm 1). Their 0.99 looks
# back over 100 steps, and λ swings about its value for thousands; with 0.9 small runs settle too.
AVERAGED = 0.9
GECO_RATE = 0.02  # growth of ln λ per step, for a constraint that misses by its own size
GECO_RANGE = 20.0  # of |ln λ|, so that a constraint that can not be met ends in a number


def start(kl: KL, device: torch.device) -> Tensor:
    """The state before the first step: (2,) float64."""
    return torch.zeros(2, dtype=torch.float64, device=device)


def update(kl: KL, state: Tensor, rate: Tensor, mse: Tensor) -> Tensor:
    """The state that a step's rate (nats per image) and error (per pixel) lead to; never differentiated."""
    rate, mse = rate.detach().double(), mse.detach().double()
    match kl.control:
        case "pi":
            return _proportional_integral(kl, state, rate)
        case "geco":
            return _constraint(kl, state, mse)
    return state


def loss(
    kl: KL,
    state: Tensor,
    distortion: Tensor,
    rate: Tensor,
    mse: Tensor,
    beta: Tensor,
    share: Tensor | float,
    pixels: int,
) -> Tensor:
    """The loss of a step, in nats per image.

    Args:
        state: after this step's `update`.
        rate: as the loss sees it, free bits taken off.
        beta: of the schedule. share: of the ramp that has passed, 0 to 1.

    Controls:
        schedule: D + β·R (Higgins 2017).
        capacity: D + γ·|R − C|, with C rising to `kl.capacity` along the ramp, γ the full weight (Burgess 2018, eq. 8).
        pi: D + β·R, with β from a controller (Shao 2020).
        geco: R + λ·(squared error − N·κ²), κ the `kl.reconstruction_target` (Rezende & Viola 2018, eq. 3).
    """
    match kl.control:
        case "capacity":
            assert kl.capacity is not None
            return distortion + kl.weight * (rate - kl.capacity * share).abs()
        case "pi":
            return distortion + state[1].float() * rate
        case "geco":
            assert kl.reconstruction_target is not None
            return rate + state[1].exp().float() * pixels * (mse - kl.reconstruction_target**2)
    return distortion + beta * rate


def effective_weight(kl: KL, state: Tensor, beta: float, sigma: float | None) -> float:
    """The β that a step's loss amounts to, for the history. GECO: 1/(2σ²λ), with the likelihood's σ."""
    match kl.control:
        case "capacity":
            return kl.weight
        case "pi":
            return float(state[1])
        case "geco":
            assert sigma is not None
            return 1 / (2 * sigma**2 * float(state[1].exp()))
    return beta


def _proportional_integral(kl: KL, state: Tensor, rate: Tensor) -> Tensor:
    """State: (I, β). Shao 2020, equations 9 to 11, with e = target − R:

        P = K_p / (1 + exp(e)),  I ← I − K_i·e,  β = P + I + β_min, kept within [β_min, β_max]

    Anti-windup: I itself is kept where β is within its bounds, so that β leaves a bound as soon as the error turns.
    """
    assert kl.target_kl is not None
    error = kl.target_kl - rate
    proportional = kl.proportional_gain * torch.sigmoid(-error)
    room = kl.weight - kl.min_weight
    integral = torch.clamp(state[0] - kl.integral_gain * error, -proportional, room - proportional)
    return torch.stack([integral, proportional + integral + kl.min_weight])


def _constraint(kl: KL, state: Tensor, mse: Tensor) -> Tensor:
    """State: (moving average of (MSE − κ²)/κ², ln λ). λ grows while the reconstruction misses its target."""
    assert kl.reconstruction_target is not None
    missed = mse / kl.reconstruction_target**2 - 1
    average = torch.where(state[0] == 0, missed, AVERAGED * state[0] + (1 - AVERAGED) * missed)
    step = GECO_RATE * average.clamp(-1, 1)
    return torch.stack([average, (state[1] + step).clamp(-GECO_RANGE, GECO_RANGE)])
