"""A VAE measured on a whole split: rate, distortion and the state of its latents, in nats per image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae.compute.batches import in_order
from vae.compute.devices import Compute
from vae.compute.random import generator
from vae.config.sections import LikelihoodKind
from vae.losses.elbo import kl_per_latent, sampled_rate
from vae.models.likelihood import Likelihood, gaussian_log_prob, optimal_sigma, squared_error
from vae.models.vae import LOGVAR_MIN, VAE
from vae.priors.learned import Density

BATCH = 256  # images at a time in a measurement; the noise follows (seed, batch), so it is fixed
BATCH_PIXELS = 256 * 128 * 128  # of larger images fewer, so that memory stays bounded


@dataclass(frozen=True)
class Measurement:
    """One pass over a split in evaluation mode.

    Z stands for the number of units: of a map of latents they are its channels. The rate of a channel is the sum over
    its places, its other numbers are means over them; its moments are those of all places together.

    Attributes:
        images: how many.
        distortion: −E_q[ln p(x|z)], z sampled.
        elbo_se: the standard error of `elbo`: the standard deviation of the images' ELBOs / √N. Each image has noise
            of its own, so it covers both the choice of images and the draws of z. NaN of a single image.
        mse: mean squared error of a pixel in [0, 1], with z = μ. mse_sampled: with z sampled. Of an autoregressive
            decoder both are of each pixel given those before it in the image itself (teacher forcing).
        rate: E_x KL(q(z|x) ‖ p(z)), p the prior that the model was trained with.
        kl_per_latent: (Z,), averaged over images. Of a learned prior, whose rate is not a sum over latents, against
            N(m_j, s_j²), the moments of the aggregate posterior: ½ (ln s_j² − E_x ln σ_j²), 0 for a dead latent.
        mean_variance: (Z,), Var_x(E_q[z_j|x]).
        aggregate_mean, aggregate_variance: (Z,), of q(z_j) over the split.
        aggregate_covariance: (Z, Z), of q(z) over the split: Cov_x(μ) + diag E_x[σ²]; of two levels with the
            correlations of a draw of z₂ for each image.
        learned_prior: whether p is another than N(0, I).
        places: latents of each unit: h·w of a map, else 1.
        top: of two levels of latents, z = [z₂ | u], how many z₂ has; 0 of one level. The moments of u are then those of
            q(u|x, z₂) at a draw of z₂ for each image, but `mean_variance` is that of means at z₂ = μ₂.
    """

    images: int
    distortion: float
    elbo_se: float
    mse: float
    mse_sampled: float
    rate: float
    kl_per_latent: np.ndarray
    mean_variance: np.ndarray
    aggregate_mean: np.ndarray
    aggregate_variance: np.ndarray
    aggregate_covariance: np.ndarray
    learned_prior: bool = False
    places: int = 1
    top: int = 0

    @property
    def kl_of_levels(self) -> dict[str, float]:
        """`kl_top` and `kl_lower`, in nats per image, whose sum is the rate; empty of one level."""
        if self.top == 0:
            return {}
        return {
            "kl_top": float(self.kl_per_latent[: self.top].sum()),
            "kl_lower": float(self.kl_per_latent[self.top :].sum()),
        }

    @property
    def gaussian_rate(self) -> float:
        """Σ_j of `kl_per_latent`: the rate itself for N(0, I); of a learned prior, what linear theory speaks of."""
        return float(self.kl_per_latent.sum())

    @property
    def elbo(self) -> float:
        return -self.distortion - self.rate

    def active(self, threshold: float = 0.01) -> np.ndarray:
        """(Z,) bool: whose mean varies over the split by more than the threshold (Burda 2016, section 5.2).

        A learned prior gives the latents no scale: their variance then is a share of that of q(z_j).
        """
        return self.mean_variance > threshold * (self.aggregate_variance if self.learned_prior else 1.0)

    def active_units(self, threshold: float = 0.01) -> int:
        return int(self.active(threshold).sum())

    def informative_units(self, nats: float = 0.1) -> int:
        """Latents whose KL exceeds `nats`; early in training fewer than are active."""
        return int((self.kl_per_latent > nats).sum())

    @property
    def posterior_share(self) -> np.ndarray:
        """E_x[σ_j²(x)] / s_j²: (Z,), the share of the variance of q(z_j) that is the posteriors' own.

        1 for a latent that carries nothing, near 0 for one that the image determines: by the law of total variance,
        1 minus the share of Var_x(E_q[z_j|x]).
        """
        return 1 - self.mean_variance / self.aggregate_variance

    @property
    def prior_gap(self) -> float:
        """½ Σ_j (s_j² + m_j² − 1 − ln s_j²): how far the aggregate posterior's moments are from N(0, 1).

        Of a learned prior it is no part of the rate. Of a map, at every place as in all of them together.
        """
        m, s2 = self.aggregate_mean, self.aggregate_variance
        return float(0.5 * self.places * np.sum(s2 + m**2 - 1 - np.log(np.maximum(s2, 1e-30))))

    @property
    def prior_gap_full(self) -> float:
        """KL(N(m, S) ‖ N(0, I)) = ½ (tr S + mᵀm − Z − ln det S), S the whole covariance of q(z).

        At least `prior_gap`; what it has more is the total correlation of N(m, S), which samples from the
        prior miss. N images alone add about Z²/4N nats where the posteriors are narrow. Of a map, S is the covariance
        of its channels, and what places have in common is left out.
        """
        m, s = self.aggregate_mean, self.aggregate_covariance
        with np.errstate(invalid="ignore"):  # of a diverged model it is NaN, as all else is
            log_determinant = np.linalg.slogdet(s).logabsdet
        return float(0.5 * self.places * (np.trace(s) + m @ m - len(m) - log_determinant))

    def elbo_at_own_sigma(self, likelihood: Likelihood, pixels: int) -> float:
        """The ELBO at the σ of this split's own error, to compare models of different σ.

        Of a likelihood other than a Gaussian of one σ, whose ELBO does not follow from the error, the ELBO itself.
        """
        if likelihood.kind != "gaussian" or not isinstance(likelihood.sigma, float):
            return self.elbo
        return self.with_likelihood(Likelihood("gaussian", optimal_sigma(self.mse_sampled)), pixels)

    def with_likelihood(self, likelihood: Likelihood, pixels: int) -> float:
        """The ELBO at another Gaussian σ, from the same pass."""
        assert isinstance(likelihood.sigma, float), "one sigma of all pixels"
        error = torch.tensor(self.mse_sampled * pixels, dtype=torch.float64)
        return float(gaussian_log_prob(error, pixels, likelihood.sigma**2)) - self.rate


@torch.no_grad()
def measure(
    model: VAE, images: np.ndarray | Tensor, likelihood: Likelihood, compute: Compute, seed: int, draws: int = 1
) -> Measurement:
    """Measures a whole split, streaming; the noise is the same at every call.

    images: uint8 (N, H, W, C). draws: of z for each image, over which distortion and `mse_sampled` are averaged; each
    costs a pass of the decoder.
    """
    device = compute.device
    sums: dict[str, Tensor] = {}
    prior = evaluation_density(model, compute)

    def add(name: str, values: Tensor) -> None:
        total = values.double().sum(0)
        sums[name] = sums[name] + total if name in sums else total

    for index, x in enumerate(evaluation_batches(model, images, device)):
        random = generator(seed, "measure", index, device)
        with compute.autocast():
            posterior = model.infer(x)
            mu, logvar = posterior(None)
            central = model.decode(mu, x)
        kl = torch.zeros((), dtype=torch.float64, device=device)
        if model.lower is not None:
            add("own", mu)
            add("own2", mu.double().square())
        log_prob, error, rate = torch.zeros(3, len(x), dtype=torch.float64, device=device)
        for _ in range(draws):
            noise = torch.randn(mu.shape, generator=random, device=device)
            with compute.autocast():
                mu, logvar = posterior(noise)
                output = model.decode(mu + torch.exp(0.5 * logvar) * noise, x)
            if model.lower is not None:
                kl = kl + kl_per_latent(mu, logvar).double() / draws
            log_prob += likelihood.log_prob(x, output).double() / draws
            error += squared_error(x, likelihood.mean(output)).double() / draws
            if prior is not None:
                rate += sampled_rate(prior, mu, logvar, noise).double() / draws
        if model.lower is None:
            kl = kl_per_latent(mu, logvar)
        if prior is None:
            rate = kl.double().sum(1)
        add("distortion", -log_prob)
        add("elbo2", (log_prob - rate).square())
        add("sampled", error)
        add("central", squared_error(x, likelihood.mean(central)))
        if prior is None:
            add("kl", kl)
        else:
            add("rate", rate)
            add("logvar", logvar)
        add("mu", mu)
        add("mu2", mu.double().square())
        located = mu
        if model.lower is not None:  # μ_u follows z₂
            located = torch.cat([(mu + torch.exp(0.5 * logvar) * noise)[:, : model.top], mu[:, model.top :]], 1)
            add("located", located)
        by_unit = located.double().unflatten(1, (model.units, model.places)).transpose(1, 2).flatten(0, 1)
        add("outer", (by_unit.T @ by_unit / model.places)[None])
        add("variance", logvar.exp())

    return _of_sums(model, sums, len(images), math.prod(images.shape[1:]), prior is not None)


def _of_sums(model: VAE, sums: dict[str, Tensor], n: int, pixels: int, learned_prior: bool) -> Measurement:
    """sums: over n images, by name, as `measure` adds them up."""
    mean = {name: (total / n).cpu().numpy() for name, total in sums.items()}
    rate_of_all = float(mean["kl"].sum() if not learned_prior else mean["rate"])
    elbo = -float(mean["distortion"]) - rate_of_all
    variance = max(float(mean["elbo2"]) - elbo**2, 0.0)  # of an image's ELBO
    mean_variance = np.maximum(mean["mu2"] - mean["mu"] ** 2, 0)

    def of_units(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values.reshape(model.units, model.places)

    centre = of_units(mean["mu"]).mean(1)
    between = (of_units(mean["mu"]) - centre[:, None]) ** 2  # places
    aggregate_variance = (of_units(mean_variance + mean["variance"]) + between).mean(1)
    if learned_prior:
        mean["kl"] = 0.5 * (np.log(aggregate_variance) - mean["logvar"])
    if model.lower is not None:  # of means at z₂ = μ₂, since at a draw of z₂ those of u vary with the draw
        mean_variance = np.maximum(mean["own2"] - mean["own"] ** 2, 0)
    variance_of_posteriors = of_units(mean["variance"]).mean(1)
    covariance = mean["outer"] - np.outer(centre, centre) + np.diag(variance_of_posteriors)
    if model.lower is not None:
        below = np.where(np.arange(model.latent_dim) < model.top, 0, variance_of_posteriors)
        drawn = mean["outer"] - np.outer(mean["located"], mean["located"]) + np.diag(below)
        scale = np.sqrt(aggregate_variance / np.maximum(np.diag(drawn), 1e-30))
        covariance = drawn * np.outer(scale, scale)
    return Measurement(
        images=n,
        distortion=float(mean["distortion"]),
        elbo_se=math.sqrt(variance / (n - 1)) if n > 1 else math.nan,
        mse=float(mean["central"]) / pixels,
        mse_sampled=float(mean["sampled"]) / pixels,
        rate=rate_of_all,
        kl_per_latent=of_units(mean["kl"]).sum(1),
        mean_variance=of_units(mean_variance).mean(1),
        aggregate_mean=centre,
        aggregate_variance=aggregate_variance,
        aggregate_covariance=covariance,
        learned_prior=learned_prior,
        places=model.places,
        top=0 if model.lower is None else model.top,
    )


@torch.no_grad()
def fitted_sigma(
    model: VAE, images: np.ndarray | Tensor, compute: Compute, seed: int, kind: LikelihoodKind = "gaussian"
) -> float:
    """The optimal σ: from the mean squared error over these images, z sampled (Rybkin 2021).

    Call it with images of the training split, never with those that are then measured with this σ.
    """
    likelihood, error = Likelihood(kind, 1.0), torch.zeros((), dtype=torch.float64, device=compute.device)
    for index, x in enumerate(evaluation_batches(model, images, compute.device)):
        noise = torch.randn(
            len(x), model.latent_dim, generator=generator(seed, "sigma", index, compute.device), device=compute.device
        )
        with compute.autocast():
            output, _, _ = model(x, noise)
        error += squared_error(x, likelihood.mean(output)).double().sum()
    return optimal_sigma(float(error) / (len(images) * math.prod(images.shape[1:])))


@torch.no_grad()
def encode(model: VAE, images: np.ndarray | Tensor, compute: Compute) -> tuple[np.ndarray, np.ndarray]:
    """mu, logvar of every image: float32 (N, Z) each; of two levels at z₂ = μ₂."""
    means, logvars = [], []
    for x in evaluation_batches(model, images, compute.device):
        with compute.autocast():
            mu, logvar = model.encode(x)
        means.append(mu.cpu().numpy())
        logvars.append(logvar.cpu().numpy())
    return np.concatenate(means), np.concatenate(logvars)


@torch.no_grad()
def posteriors_to_draw(
    model: VAE, images: np.ndarray | Tensor, compute: Compute, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `encode`, for drawing z ~ q(z|x): of two levels the mean is a draw of z₂, its ln σ² the lowest there is, and
    those of u are of q(u|x, z₂) at that z₂. The draw follows the seed.
    """
    if model.lower is None:
        return encode(model, images, compute)
    means, logvars = [], []
    for index, x in enumerate(evaluation_batches(model, images, compute.device)):
        random = generator(seed, "posteriors", index, compute.device)
        noise = torch.randn(len(x), model.latent_dim, generator=random, device=compute.device)
        with compute.autocast():
            mu, logvar = model.encode(x, noise)
        z2 = mu[:, : model.top] + torch.exp(0.5 * logvar[:, : model.top]) * noise[:, : model.top]
        means.append(torch.cat([z2, mu[:, model.top :]], 1).cpu().numpy())
        logvars.append(torch.cat([torch.full_like(z2, LOGVAR_MIN), logvar[:, model.top :]], 1).cpu().numpy())
    return np.concatenate(means), np.concatenate(logvars)


@torch.no_grad()
def evaluation_density(model: VAE, compute: Compute) -> Density | None:
    """The learned prior in the precision of the measurement; None for N(0, I)."""
    with compute.autocast():
        return model.density()


def batch_size(height: int, width: int) -> int:
    """Images of this size at a time."""
    return max(min(BATCH, BATCH_PIXELS // (height * width)), 1)


def evaluation_batches(model: VAE, images: np.ndarray | Tensor, device: torch.device) -> Iterator[Tensor]:
    """The split in order, with the model in evaluation mode."""
    training = model.training
    model.eval()
    try:
        yield from in_order(images, batch_size(*images.shape[1:3]), device)
    finally:
        model.train(training)
