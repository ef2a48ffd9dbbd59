"""A compiled loss is tried before it is trusted: its gradient of one batch beside that of the code as it is.

PyTorch 2.13 miscompiles some networks for a CPU in bf16, and says nothing: of 15 networks, three had gradients that
were NaN or wrong by their whole norm, where rounding made at most 0.05 (docs/benchmarks.md, "Compiling").
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

TOLERANCE = 0.25
NEGLIGIBLE = 0.01  # of the longest gradient: what is much shorter is rounding error, as of a bias before a batch norm


def wrong_gradient(model: nn.Module, compiled: Callable[[], Tensor], plain: Callable[[], Tensor]) -> str | None:
    """The weight whose gradients of the two losses are furthest apart, if too far to be rounding; else None."""
    apart, weight = furthest_apart(model, compiled, plain)
    return None if apart < TOLERANCE else weight


def furthest_apart(model: nn.Module, found: Callable[[], Tensor], expected: Callable[[], Tensor]) -> tuple[float, str]:
    """How far apart the gradients of two losses are where they are furthest, and the weight: NaN is the furthest.

    |g_found − g| / (|g| + 0.01·the longest |g|), of each weight

    The buffers of the model, which batch norm updates, stay as they are.
    """
    names, weights = zip(*((name, w) for name, w in model.named_parameters() if w.requires_grad), strict=True)
    before = [buffer.clone() for buffer in model.buffers()]
    ours, theirs = (
        torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True) for loss in (found, expected)
    )
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
    longest = torch.stack([g.norm() for g in theirs]).max().clamp_min(torch.finfo(torch.float32).tiny)
    apart = torch.stack([(f - g).norm() / (g.norm() + NEGLIGIBLE * longest) for f, g in zip(ours, theirs, strict=True)])
    worst = int(apart.argmax())  # NaN counts as the largest
    return float(apart[worst]), names[worst]
