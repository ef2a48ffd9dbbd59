"""The networks: q(z|x), a diagonal Gaussian posterior, and p(x|z), the decoder (Kingma & Welling 2014)."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from vae.config.beta_elbo import BetaELBO
from vae.config.parameters import Parameters
from vae.models.autoencoder_kl import Attention, ResnetBlock, autoencoder_kl
from vae.models.hierarchy import LowerPosterior, TopDown, two_levels
from vae.models.likelihood import GAUSSIAN, Likelihood, form
from vae.models.networks import convolutional, fully_connected
from vae.models.pixelcnn import MaskedConv2d, PixelCNN
from vae.models.residual import ResidualBlock, SelfAttention, residual
from vae.priors.learned import Density, Learned, LearnedFlow, LearnedMixture, VampPrior
from vae.priors.standard import STANDARD, Prior, StandardNormal

# exp(±logvar) stays a number in every precision: a runaway encoder is then seen as a large KL, not as NaN.
LOGVAR_MIN = -20.0

# mu and logvar of q(z|x), (B, Z) each, at noise (B, Z) or (k, B, Z); None is no noise.
Posterior = Callable[[Tensor | None], tuple[Tensor, Tensor]]


class VAE(nn.Module):
    """Encoder and decoder for images of one shape; with a map of latents, also for images of other sizes.

    Args:
        image_shape: (C, H, W).
        architecture: `conv`: a stride-2 4×4 convolution for each width and its mirror; `mlp`: a hidden
            layer for each width and its mirror; `gated_mlp`: the same of gated linear layers; `residual`: `conv`
            with residual blocks at each scale (vae.models.residual); `autoencoder_kl`: the network of latent
            diffusion's first stage (vae.models.autoencoder_kl); `autoregressive`: the encoder of `conv`, and a
            PixelCNN that its mirror conditions (vae.models.pixelcnn).
        latent_dim: Z, the number of latents.
        latent_shape: (h, w, c) of a map of latents, of `residual` and `autoencoder_kl`; z is that map, (c, h, w),
            flattened.
        lower_latents: of the `latent_dim` latents the last Z₁, a vector, or a map (h, w, c), are of a second, lower
            level (vae.models.hierarchy).
        widths: filters or hidden units of each layer.
        batch_norm: after each convolution or hidden layer; before each convolution of a residual block, which
            otherwise has group norm.
        blocks, attention: of `residual` and `autoencoder_kl`: residual blocks of each scale; self-attention at the
            lowest one.
        mean_batch_norm: γ of a batch norm on the posterior means, fixed; it keeps the rate above Z·γ²/2
            (Zhu 2020, section 3.2).
        logvar_max: c, the ceiling of the posterior's ln σ². Below 0 no latent can become the prior: each costs at
            least ½(exp(c) − 1 − c) nats, a committed rate (compare the δ-VAE of Razavi 2019).
        prior: p(z): `standard`, N(0, I); or one that is trained with the model (vae.priors.learned).
        prior_components: K, of `mixture` and `vamp`.
        learned_sigma: the noise of p(x|z) is a parameter of the model, `log_sigma`: (), or (C,) where the likelihood
            has a σ of each channel.
        likelihood: what the decoder's output means, whatever the value of σ.

    Attributes:
        latent_map: (c, h, w); None of a vector.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        architecture: Literal["conv", "residual", "autoencoder_kl", "mlp", "gated_mlp", "autoregressive"],
        latent_dim: int,
        widths: list[int],
        batch_norm: bool,
        blocks: int = 1,
        attention: bool = False,
        mean_batch_norm: float | None = None,
        logvar_max: float = 10.0,  # the value of models saved before it could be set
        prior: Literal["standard", "mixture", "vamp", "flow"] = "standard",
        prior_components: int = 100,
        learned_sigma: bool = False,
        likelihood: Likelihood = GAUSSIAN,
        latent_shape: tuple[int, int, int] | None = None,
        lower_latents: int | tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.image_shape, self.latent_dim, self.logvar_max = image_shape, latent_dim, logvar_max
        self.latent_map = latent_shape and (latent_shape[2], *latent_shape[:2])
        decoded = likelihood.outputs(image_shape[0])
        self.encoder: nn.Module
        self.decoder: nn.Module
        self.top = latent_dim  # Z₂ where there are two levels
        self.lower: LowerPosterior | None = None
        if lower_latents is not None:
            levels = two_levels(
                image_shape, architecture, latent_dim, lower_latents, widths, batch_norm, decoded, blocks, attention
            )
            self.encoder, features, self.lower, self.decoder = levels
            self.top = levels.decoder.top
        elif architecture == "autoregressive":
            self.encoder, features, conditions = convolutional(
                image_shape, latent_dim, widths, batch_norm, decoded=widths[0]
            )
            self.decoder = PixelCNN(conditions, widths[0], image_shape[0], likelihood)
        elif architecture == "residual":
            self.encoder, features, self.decoder = residual(
                image_shape, latent_dim, widths, batch_norm, decoded, blocks, attention,
                channels=self.latent_map and self.units,
            )  # fmt: skip
        elif architecture == "autoencoder_kl":
            self.encoder, features, self.decoder = autoencoder_kl(
                image_shape[0], self.units, widths, decoded, blocks, attention
            )
        elif architecture == "conv":
            self.encoder, features, self.decoder = convolutional(image_shape, latent_dim, widths, batch_norm, decoded)
        else:
            self.encoder, features, self.decoder = fully_connected(
                image_shape, latent_dim, widths, batch_norm, decoded, gated=architecture == "gated_mlp"
            )
        self.posterior: nn.Linear | nn.Conv2d  # mu and logvar
        if self.latent_map is None:
            self.posterior = nn.Linear(features, 2 * self.top)
        else:
            side = 1 if architecture == "autoencoder_kl" else 3
            self.posterior = nn.Conv2d(features, 2 * self.units, side, padding=side // 2)
        self.mean_norm = None
        if mean_batch_norm is not None:
            self.mean_norm = (nn.BatchNorm1d if self.latent_map is None else nn.BatchNorm2d)(self.units)
            self.mean_norm.weight.requires_grad_(False).fill_(mean_batch_norm)
        self.log_sigma: nn.Parameter | None = None
        if learned_sigma:
            shape = (len(likelihood.sigma),) if isinstance(likelihood.sigma, tuple) else ()
            self.log_sigma = nn.Parameter(torch.zeros(shape))
        self._initialise()
        # Last, so that the networks of one seed start alike with every prior.
        self.prior: Learned | None = None
        if prior == "mixture":
            self.prior = LearnedMixture(latent_dim, prior_components)
        elif prior == "vamp":
            self.prior = VampPrior(image_shape, prior_components)
        elif prior == "flow":
            self.prior = LearnedFlow(latent_dim)

    @property
    def units(self) -> int:
        """What latents are counted by: Z, or the c channels of a map."""
        return self.latent_dim if self.latent_map is None else self.latent_map[0]

    @property
    def places(self) -> int:
        """Latents of each unit: h·w of a map, else 1."""
        return self.latent_dim // self.units

    @property
    def prior_name(self) -> str:
        """Of the prior that the ELBO is trained with."""
        return STANDARD if self.prior is None else self.prior.name

    def density(self) -> Density | None:
        """The learned p(z) of the weights as they are, on the model's device; None for N(0, I).

        Pseudo-inputs pass through the encoder by themselves, and batch norm gives them its running statistics, in
        training too: they are encoded as a single image would be, and do not count in the statistics of the data.
        """
        match self.prior:
            case VampPrior():
                with _running_statistics(self.encoder):
                    return self.prior.density(*self.encode(self.prior.images()))
            case LearnedMixture():
                return self.prior.density()
        return self.prior

    @torch.no_grad()
    def own_prior(self) -> Prior:
        """The prior that the ELBO is trained with, as a density on the CPU that no longer changes."""
        density = self.density()
        if density is None:
            return StandardNormal(self.latent_dim)
        if isinstance(density, LearnedFlow):
            return copy.deepcopy(density).cpu().requires_grad_(False)
        return density.fixed()

    def infer(self, x: Tensor) -> Posterior:
        """x: (B, C, H, W), pixels in [0, 1] → q(z|x), whose `mu, logvar` are a function of the noise that z has.

        They follow the noise where there are two levels alone: those of u are of q(u|x, z₂), z₂ = μ₂ + σ₂·ε₂.
        """
        if self.lower is None:
            mu, logvar = (part.flatten(1) for part in self.encode_map(x))
            return lambda noise: (mu, logvar)
        assert isinstance(self.decoder, TopDown)
        context, (above, beside) = self.decoder.context, self.encoder(x)
        top_mu, top_logvar = self._bounded(self.posterior(above))

        def at(noise: Tensor | None) -> tuple[Tensor, Tensor]:
            if noise is None:
                return self._both_levels(top_mu, top_logvar, context(top_mu), beside)
            z2 = top_mu + torch.exp(0.5 * top_logvar) * noise[..., : self.top]
            if noise.dim() == 2:
                return self._both_levels(top_mu, top_logvar, context(z2), beside)
            draws = len(noise)
            again = [part.repeat(draws, *[1] * (part.dim() - 1)) for part in (top_mu, top_logvar, beside)]
            mu, logvar = self._both_levels(again[0], again[1], context(z2.flatten(0, 1)), again[2])
            return mu.unflatten(0, (draws, -1)), logvar.unflatten(0, (draws, -1))

        return at

    def encode(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `infer`, at one noise, (B, Z); by default none, where z₂ = μ₂: (B, Z) each, float32."""
        return self.infer(x)(noise)

    def encode_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, but maps, (B, c, h, w) each, where the latents are one; the sides of x, of any size, are then
        multiples of the network's factor.
        """
        return self.encode(x) if self.lower is not None else self._bounded(self.posterior(self.encoder(x)))

    def _bounded(self, posterior: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = posterior.float().chunk(2, dim=1)
        if self.mean_norm is not None:
            mu = self.mean_norm(mu)
        return mu, logvar.clamp(LOGVAR_MIN, self.logvar_max)

    def _both_levels(self, mu: Tensor, logvar: Tensor, context: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
        """Of z = [z₂ | u]; mu, logvar, context: of z₂."""
        assert self.lower is not None
        lower_mu, lower_logvar = self.lower(beside, context)
        return torch.cat([mu, lower_mu], 1), torch.cat([logvar, lower_logvar.clamp(LOGVAR_MIN, self.logvar_max)], 1)

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """z: (B, Z) → (B, outputs, H, W), float32, what `Likelihood` makes p(x|z) of.

        x: (B, C, H, W), the images that are scored. An autoregressive decoder predicts each pixel from z and the
            pixels of x before it; without x it draws a picture of its own, pixel by pixel. Others do not look at x.
        """
        return self.decode_map(z if self.latent_map is None else z.unflatten(1, self.latent_map), x)

    def decode_map(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """As `decode`, but of a map (B, c, h, w) of any size where the latents are one."""
        output = self.decoder(z, x) if isinstance(self.decoder, PixelCNN) else self.decoder(z)
        return output.float()

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One sample of z by the reparameterisation z = μ + σ·ε; noise: (B, Z), standard normal.

        Returns:
            decode(z, x), mu, logvar.
        """
        if isinstance(self.decoder, TopDown):
            return self._forward_of_two_levels(self.decoder, x, noise)
        mu, logvar = self.infer(x)(noise)
        return self.decode(mu + torch.exp(0.5 * logvar) * noise, x), mu, logvar

    def _forward_of_two_levels(self, decoder: TopDown, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`: what `infer` and `decode` give, with the context of z₂, most of a ladder, worked out once."""
        above, beside = self.encoder(x)
        mu, logvar = self._bounded(self.posterior(above))
        context = decoder.context(mu + torch.exp(0.5 * logvar) * noise[:, : self.top])
        mu, logvar = self._both_levels(mu, logvar, context, beside)
        return decoder(mu + torch.exp(0.5 * logvar) * noise, context).float(), mu, logvar

    @property
    def output_layer(self) -> nn.Linear | nn.Conv2d | nn.ConvTranspose2d:
        """The decoder's last."""
        layers = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
        return [m for m in self.decoder.modules() if isinstance(m, layers)][-1]

    @property
    def gaussian_layers(self) -> list[nn.Linear | nn.Conv2d]:
        """Those that give a mean and a ln σ² of one input: of q(z|x), and of two levels of q(u|x, z₂) and p(z₁|z₂)."""
        if self.lower is None or not isinstance(self.decoder, TopDown):
            return [self.posterior]
        return [self.posterior, self.lower.last, self.decoder.last_of_prior]

    @torch.no_grad()
    def start_output(self, values: Tensor) -> None:
        """Adds to the decoder's output: (outputs,)."""
        bias = self.output_layer.bias
        assert bias is not None
        bias.add_(values.to(bias).repeat_interleave(len(bias) // len(values)))

    def _initialise(self) -> None:
        """He for layers before an activation (He 2015), Glorot for those without (Glorot & Bengio 2010)."""
        layers = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
        plain = [*self.gaussian_layers, self.output_layer]
        for module in self.modules():
            if isinstance(module, layers):
                if module in plain:
                    nn.init.xavier_uniform_(module.weight)
                elif isinstance(module, nn.ConvTranspose2d):
                    # An output pixel of a stride-2 transposed convolution depends on a quarter of the kernel.
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
        for module in self.modules():
            if isinstance(module, ResidualBlock | SelfAttention | ResnetBlock | Attention):
                nn.init.zeros_(module.last.weight)


@contextmanager
def _running_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norm as in evaluation: by its running statistics, which do not change.

    By copies of them: a batch that changes the statistics before the backward pass would change the gradient.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.training]
    statistics = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm, (mean, variance) in zip(norms, statistics, strict=True):
        assert mean is not None and variance is not None
        norm.eval()
        norm.running_mean, norm.running_var = mean.clone(), variance.clone()
    try:
        yield
    finally:
        for norm, kept in zip(norms, statistics, strict=True):
            norm.train()
            norm.running_mean, norm.running_var = kept


def build(p: Parameters) -> VAE:
    """A new model, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        return VAE(
            p.data.image_shape,
            learned_sigma=p.objective.sigma in ("learned", "channel"),
            likelihood=form(BetaELBO.of(p, 1.0), p.data.channels),
            **p.model.model_dump(),
        )


def to_device(model: VAE, device: torch.device) -> VAE:
    """Moves a model, with its convolutions channels last in memory, the fastest order on CPU and GPU."""
    for parameter in model.to(device).parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
