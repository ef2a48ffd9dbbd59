"""A model of `architecture: autoencoder_kl` as diffusers' `AutoencoderKL` loads it.

    config.json, diffusion_pytorch_model.safetensors

Images are then in [−1, 1], and a sample of the posterior times `scaling_factor` is what a latent diffusion model works
on. https://huggingface.co/docs/diffusers/api/models/autoencoderkl
"""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor

from vae.config.errors import InputError
from vae.config.files import writing, written_aside
from vae.models.autoencoder_kl import groups_of
from vae.models.saved import Saved

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

# Where ours have another name.
PREFIXES = {"posterior.": "quant_conv.", "decoder.0.": "post_quant_conv.", "decoder.1.": "decoder."}


def export(saved: Saved, folder: Path) -> None:
    """Writes both files.

    Raises:
        InputError: it is a model of another architecture, or the files cannot be written.
    """
    if saved.config.model.architecture != "autoencoder_kl":
        raise InputError(
            f"diffusers has no network like this one: its model.architecture is {saved.config.model.architecture}, and "
            "only autoencoder_kl is AutoencoderKL"
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = {
        WEIGHTS: to_bytes(weights(saved), metadata={"format": "pt"}),
        CONFIG: (json.dumps(configuration(saved), indent=2) + "\n").encode(),
    }
    for name, content in files.items():
        with writing(folder / name), written_aside(folder / name) as aside:
            aside.write_bytes(content)


def weights(saved: Saved) -> dict[str, Tensor]:
    """By the names of diffusers. The maps of its attention are linear layers, (F, F)."""
    found = {}
    for name, tensor in saved.model.state_dict().items():
        if name == "log_sigma":  # of the likelihood
            continue
        prefix = next((ours for ours in PREFIXES if name.startswith(ours)), "")
        is_linear = ".to_" in name and name.endswith("weight")
        found[PREFIXES.get(prefix, "") + name.removeprefix(prefix)] = (tensor.flatten(1) if is_linear else tensor).cpu()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def configuration(saved: Saved) -> dict[str, Any]:
    """`scaling_factor` is 1 over the latents' standard deviation over all channels, as Rombach 2022 take it."""
    channels, height, width = saved.config.image_shape
    model, scales = saved.config.model, len(saved.config.model.widths)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": model.widths,
        "down_block_types": ["DownEncoderBlock2D"] * scales,
        "force_upcast": True,
        "in_channels": channels,
        "latent_channels": model.units,
        "layers_per_block": model.blocks,
        "mid_block_add_attention": model.attention,
        "norm_num_groups": groups_of(model.widths),
        "out_channels": channels,
        "sample_size": max(height, width),
        "scaling_factor": scaling_factor(saved),
        "up_block_types": ["UpDecoderBlock2D"] * scales,
    }


def scaling_factor(saved: Saved) -> float:
    """1 of standardised latents."""
    deviations, means = saved.config.latent_std, saved.config.latent_mean
    if not deviations or not means:
        return 1.0
    mean = sum(means) / len(means)
    variance = sum(s**2 + (m - mean) ** 2 for s, m in zip(deviations, means, strict=True)) / len(means)
    return float(f"{1 / math.sqrt(variance):.6g}")
