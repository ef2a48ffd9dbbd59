"""The trainers that `make bench` compares: the same network, objective, optimiser and batches.

Each trains as its library's users would (own loop, own data loading, float32) and returns the seconds of each epoch.
Given validation images, it also validates and logs each epoch and saves the model, by the library's own means.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vae.compute.batches import to_pixels
from vae.config.resolved import ResolvedParameters
from vae.losses.elbo import kl_per_latent
from vae.models.vae import VAE

Trainer = Callable[[ResolvedParameters, VAE, np.ndarray, np.ndarray | None], list[float]]


def loss_of(p: ResolvedParameters, model: VAE, x: Tensor) -> Tensor:
    """−ELBO per image in nats, up to a constant: Gaussian likelihood of fixed σ, one sample of z."""
    output, mu, logvar = model(x, torch.randn(len(x), model.latent_dim))
    sigma = float(p.objective.sigma)
    distortion = functional.mse_loss(output, x, reduction="sum") / (2 * sigma**2)
    return distortion / len(x) + kl_per_latent(mu, logvar).sum(1).mean()


def pixels(images: np.ndarray) -> Tensor:
    """(N, H, W, C) uint8 → (N, C, H, W) float32 in [0, 1]."""
    return to_pixels(torch.from_numpy(images), torch.device("cpu")).contiguous()


def plain(p: ResolvedParameters, model: VAE, images: np.ndarray, valid: np.ndarray | None = None) -> list[float]:
    """A plain PyTorch loop: shuffle, index, backward, step."""
    x, seconds = pixels(images), []
    y = None if valid is None else pixels(valid)
    optimiser = torch.optim.AdamW(model.parameters(), lr=p.train.learning_rate, weight_decay=0.0)
    model.train()
    for _ in range(p.train.epochs):
        begin = time.perf_counter()
        for chosen in torch.randperm(len(x)).split(p.train.batch_size)[: p.train.steps_per_epoch(len(x))]:
            optimiser.zero_grad()
            loss_of(p, model, x[chosen]).backward()
            optimiser.step()
        seconds.append(time.perf_counter() - begin)
        if y is not None:
            with torch.no_grad():
                losses = [float(loss_of(p, model.eval(), part)) for part in y.split(p.train.batch_size)]
            print(f"validation {sum(losses) / len(losses):.2f}")
            model.train()
    if valid is not None:
        with tempfile.TemporaryFile() as file:
            torch.save(model.state_dict(), file)
    return seconds


def lightning(p: ResolvedParameters, model: VAE, images: np.ndarray, valid: np.ndarray | None = None) -> list[float]:
    """Lightning's Trainer; without validation images, with everything optional turned off."""
    import lightning as pl
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader, TensorDataset

    seconds: list[float] = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.vae = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = loss_of(p, self.vae, batch[0])
            if valid is not None:
                self.log("train/loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("valid/loss", loss_of(p, self.vae, batch[0]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=p.train.learning_rate, weight_decay=0.0)

        def on_train_epoch_start(self) -> None:
            self.begin = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            seconds.append(time.perf_counter() - self.begin)

    loader = DataLoader(TensorDataset(pixels(images)), p.train.batch_size, shuffle=True, drop_last=True)
    check = None if valid is None else DataLoader(TensorDataset(pixels(valid)), p.train.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=p.train.epochs,
            accelerator="cpu",
            default_root_dir=folder,
            logger=False if valid is None else CSVLogger(folder),
            enable_checkpointing=valid is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), loader, check)
    return seconds


def pythae(p: ResolvedParameters, model: VAE, images: np.ndarray, valid: np.ndarray | None = None) -> list[float]:
    """pythae's BaseTrainer, on a BaseAE that wraps the same network."""
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
            keep_best_on_train=valid is None,
        )
        # Full batches only, as in the other trainers.
        whole = len(images) // p.train.batch_size * p.train.batch_size
        train, check = (
            None if part is None else BaseDataset(pixels(part), torch.zeros(len(part)))
            for part in (images[:whole], valid)
        )
        shape = (images.shape[3], *images.shape[1:3])
        trainer = BaseTrainer(
            Model(BaseAEConfig(input_dim=shape, latent_dim=model.latent_dim)),
            train,
            check,
            training_config=configuration,
            callbacks=[Clock()],
        )
        trainer.train()
    return seconds


PEERS: dict[str, Trainer] = {"plain loop": plain, "Lightning": lightning, "pythae": pythae}
