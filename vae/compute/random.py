"""Randomness that follows from (seed, purpose, progress): no generator state outlives a step."""

import hashlib

import torch


def generator(seed: int, purpose: str, progress: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator for one purpose at one step or epoch, independent of all others."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{progress}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
