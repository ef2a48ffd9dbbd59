"""Parameters of a stage that takes a second."""

import torch

from vae.compute.devices import Compute

CPU = Compute(torch.device("cpu"), "fp32")


EPOCHS, LATENTS = 4, 3


PARAMETERS = {
    "seed": 0,
    "data": {
        "source": "npy", "path": "x", "image_size": 8, "channels": 1, "valid_fraction": 0.1,
        "test_fraction": 0.1, "max_bad_fraction": 0.0,
    },
    "model": {"architecture": "mlp", "latent_dim": LATENTS, "widths": [8], "batch_norm": False},
    "objective": {"likelihood": "gaussian", "sigma": 0.3, "reduction": "sum"},
    "kl": {"schedule": "constant", "max_weight": 1.0, "annealing_epochs": 0},
    "train": {"epochs": EPOCHS, "batch_size": 16, "learning_rate": 3e-3, "select": "last", "on_collapse": "continue"},
    "monitor": {},
    "evaluate": {"importance_samples": 2, "register_as": "vae"},
}  # fmt: skip
