"""Training images seen anew: mirrored, or in the eight symmetries of a square (the dihedral group D₄), and moved."""

import torch
from torch import Tensor

ORIENTATIONS = {"none": 1, "flip": 2, "dihedral": 8}  # by data.augment


def oriented(x: Tensor, orientation: int) -> Tensor:
    """Images (B, C, H, W) after orientation // 2 quarter turns, mirrored if it is odd; 0 leaves them as they are."""
    turned = torch.rot90(x, orientation // 2, (2, 3))
    return turned.flip(3) if orientation % 2 else turned


def each_oriented(x: Tensor, orientation: Tensor, count: int) -> Tensor:
    """Every image in an orientation of its own. x: (B, C, H, W), H = W if count > 2; orientation: (B,), below count."""
    result = x
    for number in range(1, count):  # all of them are computed, so that a GPU is not waited for
        result = torch.where((orientation == number)[:, None, None, None], oriented(x, number), result)
    return result


def random_orientations(batch_size: int, count: int, generator: torch.Generator) -> Tensor:
    """(B,) int64, uniform below count. The smallest draws give the last one, so that `flip` mirrors at a draw < 0.5."""
    draws = torch.rand(batch_size, generator=generator, device=generator.device)
    return count - 1 - (count * draws).long()


def shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Every image moved by pixels of its own, (B,) int64; what comes into it is its border, mirrored.

    x: (B, C, H, W), H and W above the largest shift.
    """
    for dim, by in ((2, down), (3, right)):
        last = x.shape[dim] - 1
        source = torch.arange(last + 1, device=x.device) - by[:, None]
        source = last - (last - source.abs()).abs()  # (B, H) or (B, W), mirrored at both ends
        source = source[:, None, :, None] if dim == 2 else source[:, None, None, :]
        x = x.gather(dim, source.expand_as(x))
    return x


def random_shifts(batch_size: int, most: int, generator: torch.Generator) -> Tensor:
    """(2, B) int64, uniform from −most to most."""
    return torch.randint(-most, most + 1, (2, batch_size), generator=generator, device=generator.device)
