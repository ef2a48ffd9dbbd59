"""N(0, I), the prior of the ELBO unless another is trained."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

STANDARD = "N(0, I)"  # its name


class Prior(Protocol):
    """A density p(z) that can be evaluated and drawn from, on the CPU."""

    def log_prob(self, z: Tensor) -> Tensor:
        """ln p(z): (..., Z) → (...), in nats, float64."""

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, Z), float32."""


@dataclass(frozen=True)
class StandardNormal:
    latents: int

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (math.log(2 * math.pi) + z.double().cpu().square()).sum(-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.latents, generator=generator)
