"""Models with weights drawn at random, as a training would leave them."""

from pathlib import Path
from typing import Any

import torch

from vae.config.preprocessing import Preprocessing
from vae.config.sections import Model
from vae.models.likelihood import Likelihood
from vae.models.saved import ModelConfig
from vae.models.vae import VAE


class Malicious:
    """Its pickle touches a file when it is loaded."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.witness,))


def config(image_shape: tuple[int, int, int], model: Model, **more: Any) -> ModelConfig:
    channels, height, width = image_shape
    values: dict[str, Any] = {
        "format": 1, "model": model, "image_shape": image_shape, "likelihood": Likelihood("gaussian", 0.2),
        "preprocessing": Preprocessing(height, width, channels), "precision": "fp32", "kept_epoch": 1,
        "stopped": None, "train": {"elbo": 1.0},
    }  # fmt: skip
    return ModelConfig(**values | more)


def network(made: ModelConfig, seed: int = 0, **more: Any) -> VAE:
    torch.manual_seed(seed)
    return VAE(made.image_shape, likelihood=made.likelihood, **made.model.model_dump(), **more)
