"""Muon: momentum, orthogonalised (Jordan 2024, https://kellerjordan.github.io/posts/muon/).

A step moves a matrix by the orthogonal matrix nearest to its momentum, so that all directions of the linear map are
learnt at one speed, weak ones too. Scaled to the root mean square of AdamW's steps (Liu 2025, "Muon is scalable
for LLM training", section 2.2), it takes AdamW's learning rate and weight decay.

`torch.optim.Muon`, with as many iterations, computes the same in bf16, which a CPU without matrix units multiplies four
times as slowly as fp32; and it takes no convolutions.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

# Of the odd polynomial a·x + b·x³ + c·x⁵, which takes every singular value towards 1 (Jordan 2024).
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 4
RMS = 0.2  # of AdamW's steps, in learning rates


class Muon(torch.optim.Optimizer):
    """Groups have a key `maps`: how many maps of one input each weight holds, one above the other.

    Args:
        groups: of weights (out, in), or kernels (out, in, h, w), which are maps from in·h·w to out.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "maps": 1})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(state["momentum"], group["momentum"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        for part, direction in zip(weight.chunk(group["maps"]), nesterov.chunk(group["maps"]), strict=True):
            matrix = _channels_last(direction).flatten(1)
            size = RMS * math.sqrt(max(matrix.shape))
            part = _channels_last(part)
            part.add_(orthogonal(matrix).view_as(part), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """U·Vᵀ of U·S·Vᵀ, roughly: its singular values are in 0.7 to 1.2, but for those that were next to nothing.

    The Newton–Schulz iteration of the Muon post. Every iterate is a polynomial of the Gram matrix times the matrix, so
    all but the last product are of the smaller size.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    start = wide / wide.norm().clamp_min(1e-7)  # singular values in [0, 1]
    gram = start @ start.T
    product = polynomial = _polynomial(gram)
    for _ in range(ITERATIONS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram)
        product = polynomial @ product
    found = product @ start
    return found if matrix.shape[0] <= matrix.shape[1] else found.T


def _polynomial(gram: Tensor) -> Tensor:
    """A·I + B·G + C·G²."""
    polynomial = torch.addmm(gram, gram, gram, beta=B, alpha=C)
    polynomial.diagonal().add_(A)
    return polynomial


def _channels_last(kernel: Tensor) -> Tensor:
    """A view in the order of the convolutions' memory, whose rows can be flattened without a copy."""
    return kernel.permute(0, 2, 3, 1) if kernel.dim() == 4 else kernel
