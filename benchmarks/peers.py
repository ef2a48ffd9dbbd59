"""The trainers that `make bench` compares: the same network, objective and batches, and Adam.

Each trains as its library's users would (own loop, own data loading, float32) and returns the seconds of each epoch.
Given validation images, it also validates and logs each epoch and saves the model, by the library's own means; the
model then has the weights that were kept.
"""

import functools
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
from vae.models.vae import VAE, to_device

Trainer = Callable[[ResolvedParameters, VAE, np.ndarray, np.ndarray | None], list[float]]


def loss_of(p: ResolvedParameters, model: VAE, x: Tensor) -> Tensor:
    """−ELBO per image in nats, up to a constant: Gaussian likelihood of fixed or optimal σ, one sample of z."""
    output, mu, logvar = model(x, torch.randn(len(x), model.latent_dim, device=x.device))
    error = functional.mse_loss(output, x)
    scaled = error.log() if p.objective.sigma == "optimal" else error / float(p.objective.sigma) ** 2
    return x[0].numel() / 2 * scaled + kl_per_latent(mu, logvar).sum(1).mean()


def one_cycle(p: ResolvedParameters, steps: int) -> dict[str, Any] | None:
    """This project's schedule as the parameters of torch's OneCycleLR; None for a constant learning rate.

    steps: how often the scheduler is stepped in all: at every step or, in pythae, after every epoch.
    """
    train = p.train
    if train.learning_rate_schedule == "constant":
        return None
    anneal = {"linear": "linear", "cosine": "cos"}[train.learning_rate_schedule]
    rise = max(train.warmup, 2 / steps)  # torch divides by the steps of the rise, less one
    return {
        "max_lr": train.learning_rate, "total_steps": steps, "pct_start": rise, "anneal_strategy": anneal,
        "cycle_momentum": False,
    }  # fmt: skip


def pixels(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(N, H, W, C) uint8 → (N, C, H, W) float32 in [0, 1]."""
    return to_pixels(torch.from_numpy(images), torch.device(device)).contiguous()


def plain(
    p: ResolvedParameters, model: VAE, images: np.ndarray, valid: np.ndarray | None = None, tuned: bool = False
) -> list[float]:
    """A plain PyTorch loop: shuffle, index, backward, step. It keeps the last epoch.

    tuned: bf16, channels last in memory, compiled, a fused optimiser.
    """
    device, batch = torch.device(p.train.device), p.train.batch_size
    x, seconds = pixels(images, device), []
    y = None if valid is None else pixels(valid, device)
    loss = torch.compile(loss_of) if tuned else loss_of
    model = to_device(model, device) if tuned else model.to(device)
    if tuned:
        x = x.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=p.train.learning_rate, weight_decay=0.0, fused=tuned or None)
    steps = p.train.steps_per_epoch(len(x))
    cycle = one_cycle(p, p.train.epochs * steps)
    schedule = cycle and torch.optim.lr_scheduler.OneCycleLR(optimiser, **cycle)
    for _ in range(p.train.epochs):
        model.train()
        begin = now(device)
        for chosen in torch.randperm(len(x), device=device).split(batch)[:steps]:
            optimiser.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=tuned):
                value = loss(p, model, x[chosen])
            value.backward()
            optimiser.step()
            if schedule:
                schedule.step()
        seconds.append(now(device) - begin)
        if y is not None:
            with torch.no_grad():
                losses = [float(loss_of(p, model.eval(), part)) for part in y.split(batch)]
            print(f"validation {sum(losses) / len(losses):.2f}")
    if valid is not None:
        with tempfile.TemporaryFile() as file:
            torch.save(model.state_dict(), file)
    return seconds


def now(device: torch.device) -> float:
    """The time in seconds once a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def lightning(p: ResolvedParameters, model: VAE, images: np.ndarray, valid: np.ndarray | None = None) -> list[float]:
    """Lightning's Trainer, which keeps the best epoch; without validation images, with everything optional off."""
    import lightning as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader, TensorDataset

    seconds: list[float] = []
    batch, steps = p.train.batch_size, p.train.epochs * p.train.steps_per_epoch(len(images))

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

        def configure_optimizers(self) -> Any:
            optimiser = torch.optim.AdamW(self.parameters(), lr=p.train.learning_rate, weight_decay=0.0)
            cycle = one_cycle(p, steps)
            if cycle is None:
                return optimiser
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, **cycle)
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_epoch_start(self) -> None:
            self.begin = now(self.device)

        def on_train_epoch_end(self) -> None:
            seconds.append(now(self.device) - self.begin)

    loader = DataLoader(TensorDataset(pixels(images)), batch, shuffle=True, drop_last=True)
    check = None if valid is None else DataLoader(TensorDataset(pixels(valid)), batch)
    with tempfile.TemporaryDirectory() as folder:
        best = None if valid is None else ModelCheckpoint(f"{folder}/best", monitor="valid/loss")
        trainer = pl.Trainer(
            max_epochs=p.train.epochs,
            accelerator="cpu" if p.train.device == "cpu" else "gpu",
            devices=1,
            default_root_dir=folder,
            logger=False if valid is None else CSVLogger(folder),
            callbacks=best,
            enable_checkpointing=valid is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), loader, check)
        if best is not None:
            # Lightning's file, written above, holds more than weights.
            kept = torch.load(best.best_model_path, weights_only=False)["state_dict"]
            model.load_state_dict({name.removeprefix("vae."): weight for name, weight in kept.items()})
    return seconds


def pythae(p: ResolvedParameters, model: VAE, images: np.ndarray, valid: np.ndarray | None = None) -> list[float]:
    """pythae's BaseTrainer, which keeps the best epoch, on a BaseAE that wraps the same network."""
    from pythae.data.datasets import BaseDataset
    from pythae.models.base import BaseAE, BaseAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    seconds: list[float] = []
    device, batch = torch.device(p.train.device), p.train.batch_size

    class Model(BaseAE):
        def __init__(self, config: BaseAEConfig) -> None:
            super().__init__(config)
            self.vae = model

        def forward(self, inputs: Any, **_: Any) -> ModelOutput:
            return ModelOutput(loss=loss_of(p, self.vae, inputs["data"]))

    class Clock(TrainingCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.begin = now(device)

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            seconds.append(now(device) - self.begin)

    cycle = one_cycle(p, p.train.epochs)
    with tempfile.TemporaryDirectory() as folder:
        configuration = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            num_epochs=p.train.epochs,
            learning_rate=p.train.learning_rate,
            optimizer_cls="AdamW",
            optimizer_params={"weight_decay": 0.0},
            scheduler_cls=None if cycle is None else "OneCycleLR",
            scheduler_params=cycle,
            seed=p.seed,
            no_cuda=device.type == "cpu",
            keep_best_on_train=valid is None,
        )
        # Full batches only, as in the other trainers.
        train, check = (
            None if part is None else BaseDataset(pixels(part), torch.zeros(len(part)))
            for part in (images[: len(images) // batch * batch], valid)
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
    if valid is not None:
        model.load_state_dict(trainer._best_model.vae.state_dict())
    return seconds


PLAIN, TUNED = "plain loop", "plain loop, tuned"
PEERS: dict[str, Trainer] = {PLAIN: plain, "Lightning": lightning, "pythae": pythae}
ALL_PEERS: dict[str, Trainer] = {**PEERS, TUNED: functools.partial(plain, tuned=True)}
