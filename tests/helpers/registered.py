"""A tiny model where the stages expect it."""

from typing import Any

import torch

from tasks import workspace
from vae.models import saved
from vae.models.likelihood import Likelihood
from vae.models.mixture_prior import Mixture
from vae.models.saved import Saved
from vae.models.vae import VAE

SHAPE = (1, 8, 8)


def model(seed: int, prior: Mixture | None = None) -> Saved:
    """A tiny model in models/vae, where the stages expect it."""
    torch.manual_seed(seed)
    architecture: dict[str, Any] = {
        "architecture": "mlp",
        "latent_dim": 2,
        "widths": [4],
        "batch_norm": False,
    }
    saved.save(
        workspace.MODEL,
        VAE(SHAPE, learned_sigma=False, **architecture),
        architecture=architecture,
        image_shape=SHAPE,
        likelihood=Likelihood("gaussian", 0.1),
        preprocessing={},
        precision="fp32",
        kept_epoch=1,
        stopped=None,
        train={"elbo": 1.0},
        prior=prior,
    )
    return saved.load(workspace.MODEL)
