"""The pilot's network: a narrow copy of the VAE whose every layer is modulated by the threshold s.

So one network is a VAE for each s (compare Bae 2023, "Multi-rate VAE: train once, get the full rate–distortion curve").
A modulation scales and shifts the features of a layer (FiLM, Perez 2018), after its batch norm where it has one.

Where it would cost too much, the pilot sees averages of k×k pixels, and the layers that would have halved the images
fall away: what is finer than that costs most of the time and is worth few latents.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae.config.parameters import Parameters
from vae.models.networks import GatedLinear
from vae.models.vae import VAE, build

CONDITION = 16  # features of s
NARROWEST, SHARE = 16, 4  # a pilot's width: a quarter, since the width changes the rate by little and the cost by much
FEATURES_PER_LATENT = 4  # at every layer, so that none is narrower than the latents
SMALLEST, FEWEST_LAYERS = 8, 2  # pixels of the shorter side, and convolutions, that averaging leaves

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


def averaged(x: Tensor, k: int) -> Tensor:
    """(B, C, H, W) → (B, C, H//k, W//k)."""
    return functional.avg_pool2d(x, k) if k > 1 else x


def can_average(p: Parameters, k: int) -> bool:
    """Whether enough is left of images and network where the pilot sees squares of k×k pixels as one.

    Not where the pixels' own distribution counts (Bernoulli), or their neighbours (an autoregressive decoder).
    """
    if p.objective.likelihood == "bernoulli" or p.model.architecture == "autoregressive":
        return k == 1
    if any(side % k for side in p.data.image_size):
        return False
    return min(p.data.image_size) // k >= SMALLEST and len(_kept(p, k)) >= FEWEST_LAYERS


def _kept(p: Parameters, k: int) -> list[int]:
    """The widths without those of the convolutions that would have halved the images log₂ k times."""
    return p.model.widths if "mlp" in p.model.architecture else p.model.widths[k.bit_length() - 1 :]


def narrow(p: Parameters, k: int = 1) -> Parameters:
    """The parameters of the pilot's network, of images of k×k pixels averaged; k is a power of two.

    A standard prior, and nothing that keeps a rate up whatever the weight, which `with_enforced_rate` adds.
    """
    model, (height, width) = p.model, (side // k for side in p.data.image_size)
    widths = []
    for level, wide in enumerate(_kept(p, k), start=0 if model.architecture == "autoencoder_kl" else 1):
        places = 1 if "mlp" in model.architecture else max((height >> level) * (width >> level), 1)
        needed = math.ceil(FEATURES_PER_LATENT * model.latent_dim / places)
        widths.append(min(wide, max(NARROWEST, wide // SHARE, needed)))
    changes = {"widths": widths, "prior": "standard", "mean_batch_norm": None, "logvar_max": 10.0}
    kind = "bernoulli" if p.objective.likelihood == "bernoulli" else "gaussian"
    objective = p.objective.model_copy(update={"sigma": "optimal", "likelihood": kind})  # no σ to learn: s has it
    data = p.data.model_copy(update={"image_size": (height, width)})
    return p.model_copy(update={"data": data, "model": model.model_copy(update=changes), "objective": objective})


class PilotNetwork(nn.Module):
    """`output, mu, logvar = network(x, noise, u)`; u: (B,), where each image's ln s lies, −1 for the lowest, 1 for the
    highest.

    Attributes:
        vae: whose layers the modulations are attached to.
        k: the images are averages of k×k pixels (`averaged`).
    """

    conditions = 5

    def __init__(self, p: Parameters, k: int = 1) -> None:
        super().__init__()
        self.k, self.vae = k, build(narrow(p, k))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(p.seed)
            self.embed = nn.Sequential(
                nn.Linear(self.conditions, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION), nn.SiLU()
            )  # fmt: skip
            modulated = modulated_layers(self.vae)
            modulations = [nn.Linear(CONDITION, 2 * features_of(layer)) for layer in modulated]
        self.modulations = nn.ModuleList(modulations)
        for layer, modulation in zip(modulated, modulations, strict=True):
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)
            layer.register_forward_hook(lambda _, __, features, by=modulation: self._modulated(features, by))
        self._condition: Tensor | None = None

    def forward(self, x: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._condition_on(u)
        return self.vae(x, noise)

    def encode(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """μ and ln σ² of q(z|x): (B, Z) each."""
        self._condition_on(u)
        return self.vae.encode(x)

    def decode(self, z: Tensor, u: Tensor) -> Tensor:
        """The decoder's output: (B, C, H, W). An autoregressive one generates it, without an image."""
        self._condition_on(u)
        return self.vae.decode(z)

    def reconstruct(self, x: Tensor, u: Tensor) -> Tensor:
        """The decoder's output at z = μ."""
        return self.decode(self.encode(x, u)[0], u)

    def _condition_on(self, u: Tensor, *others: Tensor) -> None:
        waves = [torch.sin(math.pi * u), torch.cos(math.pi * u), torch.sin(2 * math.pi * u)]
        self._condition = self.embed(torch.stack([u, u * u, *waves, *others], 1))

    def _modulated(self, features: Tensor, modulation: nn.Linear) -> Tensor:
        """(1 + a)·h + b for features (B, F, …)."""
        assert self._condition is not None
        scale, shift = modulation(self._condition).view(len(features), 2, -1, *[1] * (features.dim() - 2)).unbind(1)
        return features * (1 + scale) + shift


class NestedNetwork(PilotNetwork):
    """A pilot with any number of its latents, the first ones, for each image: the others are dropped (nested dropout,
    Rippel 2014, "Learning ordered representations with nested dropout").

    The posterior of a dropped latent is the prior, so that it costs nothing.

    Attributes:
        latents: how many are left; None: from 1 to Z, evenly in their logarithm over a batch, as it is trained.
    """

    conditions = 8

    def __init__(self, p: Parameters, k: int = 1) -> None:
        super().__init__(p, k)
        self.latents: int | None = None

    def forward(self, x: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x, u)
        z = (mu + torch.exp(0.5 * logvar) * noise) * self._is_left(len(x), x.device)
        return self.vae.decode(z, x), mu, logvar

    def encode(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = super().encode(x, u)
        kept = self._is_left(len(x), x.device)
        return mu * kept, logvar * kept

    def _condition_on(self, u: Tensor, *others: Tensor) -> None:
        v = 2 * self._left(len(u), u.device).log() / math.log(self.vae.latent_dim) - 1
        super()._condition_on(u, v, v * v, u * v)

    def _is_left(self, count: int, device: torch.device) -> Tensor:
        return torch.arange(self.vae.latent_dim, device=device) < self._left(count, device)[:, None]

    def _left(self, count: int, device: torch.device) -> Tensor:
        """The number of latents of each image: (count,)."""
        if self.latents is not None:
            return torch.full((count,), self.latents, device=device)
        share = (torch.arange(count, device=device) + 0.5) / count
        return ((self.vae.latent_dim + 1) ** share).long()


def modulated_layers(model: VAE) -> list[nn.Module]:
    """Those before an activation, each after its norm, and the posterior; not the decoder's output."""
    found: list[nn.Module] = []
    for part in (model.encoder, model.decoder):
        layers = [m for m in part.modules() if isinstance(m, (*LAYERS, *NORMS, GatedLinear))]
        inside = {id(m.linear) for m in layers if isinstance(m, GatedLinear)}
        layers = [m for m in layers if id(m) not in inside]
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            normed = isinstance(following, NORMS)
            is_output = part is model.decoder and following is None
            if not normed and not is_output:
                found.append(layer)
    return [*found, model.posterior]


def features_of(layer: nn.Module) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return layer.num_features
    if isinstance(layer, GatedLinear):
        return layer.linear.out_features // 2
    assert isinstance(layer, LAYERS)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
