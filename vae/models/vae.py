"""The networks: q(z|x), a diagonal Gaussian posterior, and p(x|z), the decoder (Kingma & Welling 2014)."""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae.models.convolution import Doubling, Halving
from vae.models.pixelcnn import MaskedConv2d, PixelCNN

# exp(±logvar) stays a number in every precision: a runaway encoder is then seen as a large KL, not as NaN.
LOGVAR_MIN = -20.0


class VAE(nn.Module):
    """Encoder and decoder for images of one shape.

    Args:
        image_shape: (C, H, W).
        architecture: `conv`: a stride-2 4×4 convolution for each width and its mirror; `mlp`: a hidden
            layer for each width and its mirror; `gated_mlp`: the same of gated linear layers; `autoregressive`:
            the encoder of `conv`, and a PixelCNN that its mirror conditions (vae.autoregressive).
        latent_dim: Z, the number of latents.
        widths: filters or hidden units of each layer.
        batch_norm: after each convolution or hidden layer.
        mean_batch_norm: γ of a batch norm on the posterior means, fixed; it keeps the rate above Z·γ²/2
            (Zhu 2020, section 3.2).
        logvar_max: c, the ceiling of the posterior's ln σ². Below 0 no latent can become the prior: each costs at
            least ½(exp(c) − 1 − c) nats, a committed rate (compare the δ-VAE of Razavi 2019).
        learned_sigma: the Gaussian noise of p(x|z) is a parameter of the model, `log_sigma`.
        likelihood: `gaussian`, or `bernoulli`: the decoder's output is then logits. An autoregressive decoder,
            which feeds on its own output, has to know.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        architecture: Literal["conv", "mlp", "gated_mlp", "autoregressive"],
        latent_dim: int,
        widths: list[int],
        batch_norm: bool,
        mean_batch_norm: float | None = None,
        logvar_max: float = 10.0,  # also of models that were saved before it could be set
        learned_sigma: bool = False,
        likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
    ) -> None:
        super().__init__()
        self.latent_dim, self.logvar_max = latent_dim, logvar_max
        if architecture == "autoregressive":
            self.encoder, features, conditions = _convolutional(
                image_shape, latent_dim, widths, batch_norm, decoded=widths[0]
            )
            self.decoder: nn.Module = PixelCNN(
                conditions, widths[0], image_shape[0], bernoulli=likelihood == "bernoulli"
            )
        else:
            build = {"conv": _convolutional, "mlp": _fully_connected, "gated_mlp": _gated}[architecture]
            self.encoder, features, self.decoder = build(image_shape, latent_dim, widths, batch_norm)
        self.posterior = nn.Linear(features, 2 * latent_dim)  # mu and logvar
        self.mean_norm = None
        if mean_batch_norm is not None:
            self.mean_norm = nn.BatchNorm1d(latent_dim)
            self.mean_norm.weight.requires_grad_(False).fill_(mean_batch_norm)
        self.log_sigma = nn.Parameter(torch.zeros(())) if learned_sigma else None
        self._initialise()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, C, H, W), pixels in [0, 1] → mu, logvar of q(z|x): (B, Z) each, float32."""
        mu, logvar = self.posterior(self.encoder(x)).float().chunk(2, dim=1)
        if self.mean_norm is not None:
            mu = self.mean_norm(mu)
        return mu, logvar.clamp(LOGVAR_MIN, self.logvar_max)

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """z: (B, Z) → (B, C, H, W), float32: the mean of a Gaussian p(x|z), the logits of a Bernoulli one.

        x: (B, C, H, W), the images that are scored. An autoregressive decoder predicts each pixel from z and the
            pixels of x before it; without x it draws a picture of its own, pixel by pixel. Others do not look at x.
        """
        output = self.decoder(z, x) if isinstance(self.decoder, PixelCNN) else self.decoder(z)
        return output.float()

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One sample of z by the reparameterisation z = μ + σ·ε; noise: (B, Z), standard normal.

        Returns:
            decode(z, x), mu, logvar.
        """
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * noise, x), mu, logvar

    def _initialise(self) -> None:
        """He for layers before an activation (He 2015), Glorot for those without (Glorot & Bengio 2010)."""
        layers = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
        output = [m for m in self.decoder.modules() if isinstance(m, layers)][-1]
        for module in self.modules():
            if isinstance(module, layers):
                if module in (self.posterior, output):
                    nn.init.xavier_uniform_(module.weight)
                elif isinstance(module, nn.ConvTranspose2d):
                    # Each output pixel of a stride-2 transposed convolution sees a quarter of the kernel.
                    kernel = math.prod(module.kernel_size) / math.prod(module.stride)
                    nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * kernel)))
                elif isinstance(module, MaskedConv2d):
                    nn.init.normal_(module.weight, std=math.sqrt(2 / module.seen))
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.decoder, PixelCNN):
            self.decoder.shrink_branches()


def to_device(model: VAE, device: torch.device) -> VAE:
    """Moves a model, its convolutions in the memory order that is fastest on CPU and GPU alike."""
    for parameter in model.to(device).parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _convolutional(
    image_shape: tuple[int, int, int],
    latent_dim: int,
    widths: list[int],
    batch_norm: bool,
    decoded: int | None = None,
) -> tuple[nn.Module, int, nn.Module]:
    """decoded: channels of what the decoder gives, where it is not an image."""
    channels, height, width = image_shape
    sizes = [(height, width)]  # a 4×4 convolution of stride 2, padding 1, halves and rounds down
    for _ in widths:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    filters, mirrored = [channels, *widths], [decoded or channels, *widths]
    features = widths[-1] * math.prod(sizes[-1])

    down: list[nn.Module] = []
    for before, after in itertools.pairwise(filters):
        down += [
            Halving(before, after, bias=not batch_norm),
            *_normalised_silu(nn.BatchNorm2d(after) if batch_norm else None),
        ]
    up: list[nn.Module] = [
        nn.Linear(latent_dim, features, bias=not batch_norm),
        _Unflatten(1, (widths[-1], *sizes[-1])),
        *_normalised_silu(nn.BatchNorm2d(widths[-1]) if batch_norm else None),
    ]
    for level in range(len(widths), 0, -1):
        last = level == 1
        odd = (sizes[level - 1][0] % 2, sizes[level - 1][1] % 2)  # a row or column that the halving lost
        up.append(Doubling(mirrored[level], mirrored[level - 1], odd, bias=last or not batch_norm))
        if not last:
            up += _normalised_silu(nn.BatchNorm2d(mirrored[level - 1]) if batch_norm else None)
    *down, silu = down  # comes after the change of memory order, so that its gradient meets no other order
    return nn.Sequential(*down, nn.Flatten(), silu), features, nn.Sequential(*up)


class _Unflatten(nn.Unflatten):
    """In the memory order of the convolutions that follow: what lies between two orders is slow, backward above all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous(memory_format=torch.channels_last)


def _fully_connected(
    image_shape: tuple[int, int, int], latent_dim: int, widths: list[int], batch_norm: bool
) -> tuple[nn.Module, int, nn.Module]:
    def layer(before: int, after: int) -> list[nn.Module]:
        linear = nn.Linear(before, after, bias=not batch_norm)
        return [linear, *_normalised_silu(nn.BatchNorm1d(after) if batch_norm else None)]

    return _mlp(image_shape, latent_dim, widths, layer)


def _gated(
    image_shape: tuple[int, int, int], latent_dim: int, widths: list[int], batch_norm: bool
) -> tuple[nn.Module, int, nn.Module]:
    def layer(before: int, after: int) -> list[nn.Module]:
        return [GatedLinear(before, after), *([nn.BatchNorm1d(after)] if batch_norm else [])]

    return _mlp(image_shape, latent_dim, widths, layer)


def _mlp(
    image_shape: tuple[int, int, int],
    latent_dim: int,
    widths: list[int],
    layer: Callable[[int, int], list[nn.Module]],
) -> tuple[nn.Module, int, nn.Module]:
    def hidden(units: list[int]) -> list[nn.Module]:
        return [module for before, after in itertools.pairwise(units) for module in layer(before, after)]

    pixels = math.prod(image_shape)
    encoder = nn.Sequential(nn.Flatten(), *hidden([pixels, *widths]))
    decoder = nn.Sequential(
        *hidden([latent_dim, *reversed(widths)]),
        nn.Linear(widths[0], pixels),
        nn.Unflatten(1, image_shape),
    )
    return encoder, widths[-1], decoder


class GatedLinear(nn.Module):
    """h = (Wx + b) ⊙ sigmoid(Vx + c) (Dauphin 2017, section 2; Tomczak & Welling 2018 use it in VAEs)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, 2 * after)

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(self.linear(x), dim=1)


def _normalised_silu(norm: nn.Module | None) -> list[nn.Module]:
    return [nn.SiLU()] if norm is None else [norm, nn.SiLU()]
