"""An autoregressive decoder: p(x|z) = Π_i p(x_i | x_<i, z), in raster order.

A PixelCNN (van den Oord 2016a, "Pixel recurrent neural networks", section 3.3) conditioned at every pixel on a map
decoded from z (van den Oord 2016b, "Conditional image generation with PixelCNN decoders", equation 5; Gulrajani
2017, "PixelVAE"). The channels of a pixel are independent of one another, given the pixels before it, unless the
likelihood couples them.

Such a decoder can do without the latents, which makes it the strongest cause of posterior collapse.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae.models.likelihood import Likelihood

FIRST, HIDDEN = 7, 3  # sides of the kernels: of the layer that sees the image, and of those after it
LAYERS = 4  # after the first one
REACH = FIRST // 2 + LAYERS * (HIDDEN // 2)  # rows up, and columns to either side, that a pixel depends on


class MaskedConv2d(nn.Conv2d):
    """A convolution over the pixels above, and to the left in the same row; type B includes the pixel itself.

    Type A comes first, on the image, where the pixel itself is to be predicted; type B on the layers above it.
    """

    mask: Tensor

    def __init__(self, kind: Literal["A", "B"], before: int, after: int, side: int) -> None:
        super().__init__(before, after, side, padding=side // 2)
        mask = torch.zeros(1, 1, side, side)
        mask[..., : side // 2, :] = 1
        mask[..., side // 2, : side // 2 + (kind == "B")] = 1
        self.register_buffer("mask", mask, persistent=False)

    @property
    def seen(self) -> int:
        """How many inputs each output sums."""
        return self.in_channels * int(self.mask.sum())

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class PixelCNN(nn.Module):
    """The decoder: teacher forcing with an image, generation without one.

    Its masked layers have no batch norm, whose statistics would leak later pixels into earlier ones in training.

    Args:
        conditions: z (B, Z) → a map (B, F, H, W).
        filters: F. channels: of the image.
        likelihood: which makes pixels of the output.
    """

    def __init__(self, conditions: nn.Module, filters: int, channels: int, likelihood: Likelihood) -> None:
        super().__init__()
        self.channels, self.likelihood = channels, likelihood
        self.conditions = conditions
        self.first = MaskedConv2d("A", channels, filters, FIRST)
        self.hidden = nn.ModuleList(MaskedConv2d("B", filters, filters, HIDDEN) for _ in range(LAYERS))
        self.condition = nn.ModuleList(nn.Conv2d(filters, filters, 1) for _ in range(LAYERS + 1))
        self.output = nn.Conv2d(filters, likelihood.outputs(channels), 1)

    @torch.no_grad()
    def shrink_branches(self) -> None:
        """Called once, after the usual initialisation: the sum of all branches starts at the scale of one."""
        for layer in (*self.hidden, *self.condition):
            assert isinstance(layer, nn.Conv2d)
            layer.weight.div_(math.sqrt(LAYERS + len(self.condition)))

    def forward(self, z: Tensor, x: Tensor | None) -> Tensor:
        """z: (B, Z); x: (B, C, H, W), pixels in [0, 1] → (B, outputs, H, W): each pixel given z and those before it."""
        conditions = self.conditions(z)
        return self.predict(self.generate(conditions) if x is None else x, conditions)

    def predict(self, x: Tensor, conditions: Tensor) -> Tensor:
        """All pixels in parallel, each from those before it in x. conditions: (B, F, H, W)."""
        h = self.first(x) + self.condition[0](conditions)
        for layer, condition in zip(self.hidden, self.condition[1:], strict=True):
            h = h + layer(functional.silu(h)) + condition(conditions)
        return self.output(functional.silu(h))

    def generate(self, conditions: Tensor) -> Tensor:
        """The image whose every pixel is the mean given z and the pixels before it: (B, C, H, W) in [0, 1].

        A pixel depends on the window of `REACH` around it only, so no more than that is computed for it.
        """
        images, _, height, width = conditions.shape
        x = conditions.new_zeros(images, self.channels, height, width, dtype=torch.float32)
        for row in range(height):
            for column in range(width):
                top, left = max(row - REACH, 0), max(column - REACH, 0)
                window = (..., slice(top, row + 1), slice(left, column + REACH + 1))
                output = self.predict(x[window], conditions[window])[..., row - top, column - left].float()
                # It was trained on pixels in [0, 1] only.
                x[..., row, column] = self.likelihood.mean(output).clamp(0, 1)
        return x
