"""Floating-point operations of a training step, for choosing precision and compilation."""

from typing import cast

import torch
from torch import Tensor, nn

from vae.config.parameters import Parameters
from vae.models.vae import build


def training_flops(p: Parameters) -> float:
    """For one image: forward, and twice that backward."""
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
