"""A small frozen network in a file, for the losses on features."""

from pathlib import Path

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """(B, 3, H, W) → maps at a half and a quarter of the size, of 4 and 6 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = torch.tanh(self.fine(x))
        return [fine, torch.tanh(self.coarse(fine))]


def small_network(path: Path) -> Path:
    torch.manual_seed(0)
    return saved(Small(), path)


def saved(network: nn.Module, path: Path) -> Path:
    """For batches and images of any size, or of 12×8 where that is all that the network takes."""
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(network.eval(), (torch.rand(2, 3, 12, 8),), dynamic_shapes=(sizes,))
    torch.export.save(exported, path)
    return path
