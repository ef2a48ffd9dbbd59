"""Floating-point operations of a training step, for choosing precision and compilation."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from vae.config.parameters import Parameters
from vae.models.vae import build


def training_flops(p: Parameters) -> float:
    """For one image: forward, and twice that backward. Pseudo-inputs are encoded once for a whole batch."""
    model = build(p).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(torch.zeros(1, *p.data.image_shape), torch.zeros(1, p.model.latent_dim))
    flops = float(forward.get_total_flops())
    if p.model.prior == "vamp":
        with torch.no_grad(), FlopCounterMode(display=False) as encoding:
            model.encode(torch.zeros(1, *p.data.image_shape))
        flops += encoding.get_total_flops() * p.model.prior_components / p.train.batch_size
    return 3 * flops
