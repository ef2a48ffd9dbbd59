"""The trainers that `make bench` runs beside this project's: the same network, objective, optimiser and batches.

Each takes a model, images and a number of epochs, trains as its library's users would (its own loop, its own data
loading, float32), and returns the seconds of each epoch of training.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vae.batches import to_pixels
from vae.model import VAE
from vae.objective import kl_per_latent
from vae.parameters import Parameters

Trainer = Callable[[Parameters, VAE, np.ndarray], list[float]]


def loss_of(p: Parameters, model: VAE, x: Tensor) -> Tensor:
    """−ELBO per image in nats, without constants: Gaussian likelihood of fixed σ, one sample of z."""
    output, mu, logvar = model(x, torch.randn(len(x), model.latent_dim))
    sigma = float(p.objective.sigma)
    distortion = functional.mse_loss(output, x, reduction="sum") / (2 * sigma**2)
    return distortion / len(x) + kl_per_latent(mu, logvar).sum(1).mean()


def pixels(images: np.ndarray) -> Tensor:
    """(N, H, W, C) uint8 → (N, C, H, W) float32 in [0, 1]."""
    return to_pixels(torch.from_numpy(images), torch.device("cpu")).contiguous()


def plain(p: Parameters, model: VAE, images: np.ndarray) -> list[float]:
    """The loop that anybody writes: shuffle, index, backward, step."""
    x, seconds = pixels(images), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=p.train.learning_rate, weight_decay=0.0)
    model.train()
    for _ in range(p.train.epochs):
        begin = time.perf_counter()
        for chosen in torch.randperm(len(x)).split(p.train.batch_size)[: p.train.steps_per_epoch(len(x))]:
            optimiser.zero_grad()
            loss_of(p, model, x[chosen]).backward()
            optimiser.step()
        seconds.append(time.perf_counter() - begin)
    return seconds


def lightning(p: Parameters, model: VAE, images: np.ndarray) -> list[float]:
    """Lightning's Trainer, with nothing switched on that costs time."""
    import lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    seconds: list[float] = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.vae = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            return loss_of(p, self.vae, batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=p.train.learning_rate, weight_decay=0.0)

        def on_train_epoch_start(self) -> None:
            self.begin = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            seconds.append(time.perf_counter() - self.begin)

    loader = DataLoader(TensorDataset(pixels(images)), p.train.batch_size, shuffle=True, drop_last=True)
    trainer = pl.Trainer(
        max_epochs=p.train.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    return seconds


def pythae(p: Parameters, model: VAE, images: np.ndarray) -> list[float]:
    """pythae's BaseTrainer, on a model of its own kind that holds the same network."""
    import tempfile

    from pythae.data.datasets import BaseDataset
    from pythae.models.base import BaseAE, BaseAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    seconds: list[float] = []

    class Model(BaseAE):
        def __init__(self, config: BaseAEConfig) -> None:
            super().__init__(config)
            self.vae = model

        def forward(self, inputs: Any, **_: Any) -> ModelOutput:
            return ModelOutput(loss=loss_of(p, self.vae, inputs["data"]))

    class Clock(TrainingCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.perf_counter()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.begin)

    with tempfile.TemporaryDirectory() as folder:
        configuration = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=p.train.batch_size,
            num_epochs=p.train.epochs,
            learning_rate=p.train.learning_rate,
            optimizer_cls="AdamW",
            optimizer_params={"weight_decay": 0.0},
            no_cuda=True,
            keep_best_on_train=True,
        )
        data = pixels(images)
        whole = (
            len(data) // p.train.batch_size * p.train.batch_size
        )  # it would train on the rest of a batch too
        dataset = BaseDataset(data[:whole], torch.zeros(whole))
        shape = (images.shape[3], *images.shape[1:3])
        trainer = BaseTrainer(
            Model(BaseAEConfig(input_dim=shape, latent_dim=model.latent_dim)),
            dataset,
            training_config=configuration,
            callbacks=[Clock()],
        )
        trainer.train()
    return seconds


PEERS: dict[str, Trainer] = {"plain loop": plain, "Lightning": lightning, "pythae": pythae}
