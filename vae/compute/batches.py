"""Images as batches, in an order that follows from (seed, epoch) alone: a resumed training sees the same batches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae import limits
from vae.compute.random import generator
from vae.config.errors import InputError
from vae.config.parameters import Parameters


def open_images(path: Path) -> np.ndarray:
    """Memory-maps uint8 images (N, H, W, C).

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        # "c": the array is writable, as PyTorch asks, and the file is not.
        images = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `dvc repro ingest` makes it") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a NumPy array: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"{path} holds {images.dtype} of shape {images.shape}; expected uint8 N×H×W×C")
    return images


def to_pixels(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 (B, H, W, C) → float32 (B, C, H, W) in [0, 1], in channels-last memory order."""
    batch = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    return batch.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div(255)


def for_measuring(train_images: np.ndarray, p: Parameters) -> np.ndarray:
    """The training images, binarised like the other splits: with `binarise: dynamic`, drawn once from the seed."""
    if p.data.binarise != "dynamic":
        return train_images
    random = np.random.default_rng(p.seed)
    drawn = np.empty(train_images.shape, np.uint8)
    for start in range(0, len(drawn), 1024):
        part = train_images[start : start + 1024]
        drawn[start : start + 1024] = np.where(random.integers(0, 255, part.shape) < part, 255, 0)
    return drawn


def in_order(images: np.ndarray | Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """All images once, in order; the last batch may be smaller."""
    for start in range(0, len(images), batch_size):
        yield to_pixels(images[start : start + batch_size], device)


def resident(images: np.ndarray, device: torch.device) -> np.ndarray | Tensor:
    """A tensor to index batches from, where half of the memory holds it; else the array itself.

    On a GPU a copy, if it fits in half of the free memory; on a CPU the mapped file, which the system then caches.
    """
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else limits.memory()
    return torch.from_numpy(np.asarray(images)).to(device) if images.nbytes < room / 2 else images


def gather(images: np.ndarray | Tensor, chosen: Tensor, device: torch.device) -> Tensor:
    """images[chosen]: on the device of a tensor; from an array, in pinned memory where the device is a GPU."""
    if isinstance(images, Tensor):
        return images[chosen.to(images.device)]
    batch = torch.from_numpy(images[chosen.numpy()])
    return batch.pin_memory() if device.type == "cuda" else batch


def full_batches(images: np.ndarray | Tensor, order: Tensor, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """The full batches of an epoch, uint8 (B, H, W, C); the remainder is dropped.

    From an array, which did not fit into memory, a thread reads the next batch while the device computes.
    """
    parts = order[: len(order) // batch_size * batch_size].view(-1, batch_size)
    if isinstance(images, Tensor):
        for part in parts.to(images.device):
            yield images[part]
        return
    if len(parts) == 0:
        return
    with ThreadPoolExecutor(1, "read-ahead") as reader:
        ahead = reader.submit(gather, images, parts[0], device)
        for following in parts[1:]:
            batch = ahead.result()
            ahead = reader.submit(gather, images, following, device)
            yield batch
        yield ahead.result()


def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """A permutation of range(images) for an epoch, counted from 0."""
    return torch.randperm(images, generator=generator(seed, "order", epoch))
