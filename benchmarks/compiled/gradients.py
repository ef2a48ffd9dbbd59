"""Does torch.compile get the gradients right on this machine? `python -m benchmarks.compiled.gradients`

For each network, in bf16, how far the gradients of the compiled loss are from those of the loss as it is, and, beside
it, how far bf16 alone takes them from fp32's: `vae.training.compiled.furthest_apart`, on 32 patches of photos.
"""

from collections.abc import Callable
from typing import Any

import torch
import typer
from torch import Tensor

from benchmarks import speed
from benchmarks.speed import Case
from tasks.processes import entry
from vae.compute.batches import to_pixels
from vae.losses.elbo import elbo_terms
from vae.models.vae import build, to_device
from vae.training.compiled import furthest_apart

RESIDUAL: dict[str, Any] = {"architecture": "residual", "widths": [32, 64, 128]}
MAP = {"latent_shape": [8, 8, 4], "latent_dim": 256}
LADDER = {"lower_latents": [8, 8, 4], "latent_dim": 320}
NETWORKS: dict[str, dict[str, Any]] = {
    "conv": {},
    "conv, batch norm": {"batch_norm": True},
    "conv, hvae, batch norm": {"batch_norm": True, "lower_latents": 32},
    "residual": RESIDUAL,
    "residual, batch norm": RESIDUAL | {"batch_norm": True},
    "residual, batch norm, attention": RESIDUAL | {"batch_norm": True, "attention": True},
    "residual, map, attention": RESIDUAL | MAP | {"attention": True},
    "residual, map, batch norm": RESIDUAL | MAP | {"batch_norm": True},
    "residual, hvae, batch norm": RESIDUAL | {"batch_norm": True, "lower_latents": 32},
    "residual, ladder of 8×8": RESIDUAL | LADDER,
    "residual, ladder of 8×8, batch norm": RESIDUAL | LADDER | {"batch_norm": True},
    "residual, ladder of 16×16, batch norm": RESIDUAL | LADDER | {"batch_norm": True, "lower_latents": [16, 16, 1]},
    "autoencoder_kl": {
        "architecture": "autoencoder_kl", "widths": [32, 64], "latent_shape": [32, 32, 4], "latent_dim": 4096
    },
    "mlp, batch norm": {"architecture": "mlp", "widths": [300, 300], "batch_norm": True},
    "gated mlp": {"architecture": "gated_mlp", "widths": [300, 300]},
}  # fmt: skip


def main() -> None:
    """Print a row for each network."""
    print("| network | bf16 from fp32 | compiled from not compiled | weight |\n| --- | --- | --- | --- |")
    for name, shape in NETWORKS.items():
        rounding, apart, weight = distances(shape)
        print(f"| {name} | {rounding:.3f} | {apart:.3f} | {weight} |", flush=True)


def distances(shape: dict[str, Any]) -> tuple[float, float, str]:
    """How far bf16 is from fp32, how far compiled bf16 is from bf16, and for which weight."""
    case = Case(64, 3, (32, 64, 128, 256), 64, 32, 32, shape=shape)
    p = speed.parameters_of(case, seed=0)
    torch.compiler.reset()
    torch.manual_seed(p.seed)
    cpu = torch.device("cpu")
    model, x = to_device(build(p), cpu).train(), to_pixels(speed.photos(case.side, 3, case.batch), cpu)
    noise = torch.randn(case.batch, p.model.latent_dim)

    def loss(terms: Callable[..., Any], bf16: bool) -> Callable[[], Tensor]:
        def value() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                found = terms(p.elbo, model, x, noise, None)
            return found.distortion + found.rate

        return value

    plain = loss(elbo_terms, bf16=True)
    rounding, _ = furthest_apart(model, plain, loss(elbo_terms, bf16=False))
    return rounding, *furthest_apart(model, loss(torch.compile(elbo_terms), bf16=True), plain)


if __name__ == "__main__":
    entry.run(lambda: typer.run(main))
