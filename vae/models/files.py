"""The files of a model on disk, for whoever does not load it: PyTorch takes seconds to import."""

import hashlib
from pathlib import Path

from vae.config.errors import InputError

WEIGHTS_FILE, CONFIG_FILE, PRIOR_FILE = "weights.safetensors", "config.json", "prior.safetensors"


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights. Raises: InputError: there are none."""
    try:
        with (folder / WEIGHTS_FILE).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise missing(folder, WEIGHTS_FILE) from None


def missing(folder: Path, name: str) -> InputError:
    return InputError(f"{folder} holds no model: {name} is missing; `dvc repro train` makes it")
