"""What a VAE does to a whole split: rate, distortion and the health of its latents, in nats per image."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vae.compute.batches import generator, in_order
from vae.compute.devices import Compute
from vae.losses.objective import Likelihood, gaussian_log_prob, kl_per_latent, optimal_sigma, squared_error
from vae.models.vae import VAE

BATCH = 256  # images at a time in a measurement; the noise follows (seed, batch), so it is fixed
MUTUAL_INFORMATION_IMAGES = 10_000  # the estimate is quadratic in time


@dataclass(frozen=True)
class Measurement:
    """One pass over a split in evaluation mode.

    Attributes:
        images: how many.
        distortion: −E_q[ln p(x|z)], z sampled.
        mse: mean squared error of a pixel in [0, 1], with z = μ. mse_sampled: with z sampled. Of an autoregressive
            decoder both are of each pixel given those before it in the image itself (teacher forcing).
        kl_per_latent: (Z,), averaged over images.
        mean_variance: (Z,), Var_x(E_q[z_j|x]).
        aggregate_mean, aggregate_variance: (Z,), of q(z_j) over the split.
        aggregate_covariance: (Z, Z), of q(z) over the split: Cov_x(μ) + diag E_x[σ²].
    """

    images: int
    distortion: float
    mse: float
    mse_sampled: float
    kl_per_latent: np.ndarray
    mean_variance: np.ndarray
    aggregate_mean: np.ndarray
    aggregate_variance: np.ndarray
    aggregate_covariance: np.ndarray

    @property
    def rate(self) -> float:
        return float(self.kl_per_latent.sum())

    @property
    def elbo(self) -> float:
        return -self.distortion - self.rate

    def active(self, threshold: float = 0.01) -> np.ndarray:
        """(Z,) bool: whose mean varies over the split by more than the threshold (Burda 2016, section 5.2)."""
        return self.mean_variance > threshold

    def active_units(self, threshold: float = 0.01) -> int:
        return int(self.active(threshold).sum())

    def informative_units(self, nats: float = 0.1) -> int:
        """Latents that cost more than `nats`: of a young model, fewer than are active."""
        return int((self.kl_per_latent > nats).sum())

    @property
    def posterior_share(self) -> np.ndarray:
        """E_x[σ_j²(x)] / s_j²: (Z,), what of the variance of q(z_j) is the posteriors' own and not the images'.

        1 for a latent that says nothing, near 0 for one that is told exactly: by the law of total variance
        1 less the share of Var_x(E_q[z_j|x]).
        """
        return 1 - self.mean_variance / self.aggregate_variance

    @property
    def prior_gap(self) -> float:
        """½ Σ_j (s_j² + m_j² − 1 − ln s_j²): how far the aggregate posterior's moments are from N(0, 1)."""
        m, s2 = self.aggregate_mean, self.aggregate_variance
        return float(0.5 * np.sum(s2 + m**2 - 1 - np.log(np.maximum(s2, 1e-30))))

    @property
    def prior_gap_full(self) -> float:
        """KL(N(m, S) ‖ N(0, I)) = ½ (tr S + mᵀm − Z − ln det S), S the whole covariance of q(z).

        At least `prior_gap`; what it has more is the total correlation of N(m, S), which samples from the
        prior miss. N images alone add about Z²/4N nats where the posteriors are narrow.
        """
        m, s = self.aggregate_mean, self.aggregate_covariance
        with np.errstate(invalid="ignore"):  # of a diverged model it is NaN, as all else is
            log_determinant = np.linalg.slogdet(s).logabsdet
        return float(0.5 * (np.trace(s) + m @ m - len(m) - log_determinant))

    def elbo_at_own_sigma(self, kind: str, pixels: int) -> float:
        """The ELBO at the σ of this split's own error, so that models of different σ compare; Bernoulli: the ELBO."""
        if kind == "bernoulli":
            return self.elbo
        return self.with_likelihood(Likelihood("gaussian", optimal_sigma(self.mse_sampled)), pixels)

    def with_likelihood(self, likelihood: Likelihood, pixels: int) -> float:
        """The ELBO that another Gaussian σ would have given, from the same pass."""
        error = torch.tensor(self.mse_sampled * pixels, dtype=torch.float64)
        return float(gaussian_log_prob(error, pixels, likelihood.variance)) - self.rate


@torch.no_grad()
def measure(
    model: VAE, images: np.ndarray | Tensor, likelihood: Likelihood, compute: Compute, seed: int
) -> Measurement:
    """Measures a whole split, streaming; the noise is the same at every call.

    images: uint8 (N, H, W, C).
    """
    device = compute.device
    sums: dict[str, Tensor] = {}

    def add(name: str, values: Tensor) -> None:
        total = values.double().sum(0)
        sums[name] = sums[name] + total if name in sums else total

    for index, x in enumerate(_batches(model, images, device)):
        noise = torch.randn(
            len(x), model.latent_dim, generator=generator(seed, "measure", index, device), device=device
        )
        with compute.autocast():
            output, mu, logvar = model(x, noise)
            central = model.decode(mu, x)
        add("distortion", -likelihood.log_prob(x, output))
        add("sampled", squared_error(x, likelihood.mean(output)))
        add("central", squared_error(x, likelihood.mean(central)))
        add("kl", kl_per_latent(mu, logvar))
        add("mu", mu)
        add("mu2", mu.double().square())
        add("outer", (mu.double().T @ mu.double())[None])
        add("variance", logvar.exp())

    n, pixels = len(images), math.prod(images.shape[1:])
    mean = {name: (total / n).cpu().numpy() for name, total in sums.items()}
    mean_variance = np.maximum(mean["mu2"] - mean["mu"] ** 2, 0)
    return Measurement(
        images=n,
        distortion=float(mean["distortion"]),
        mse=float(mean["central"]) / pixels,
        mse_sampled=float(mean["sampled"]) / pixels,
        kl_per_latent=mean["kl"],
        mean_variance=mean_variance,
        aggregate_mean=mean["mu"],
        aggregate_variance=mean_variance + mean["variance"],
        aggregate_covariance=mean["outer"] - np.outer(mean["mu"], mean["mu"]) + np.diag(mean["variance"]),
    )


@torch.no_grad()
def fitted_sigma(model: VAE, images: np.ndarray | Tensor, compute: Compute, seed: int) -> float:
    """The optimal σ: from the mean squared error over these images, z sampled (Rybkin 2021).

    To be called with images of the training split, never with those that the σ then judges.
    """
    error = torch.zeros((), dtype=torch.float64, device=compute.device)
    for index, x in enumerate(_batches(model, images, compute.device)):
        noise = torch.randn(
            len(x),
            model.latent_dim,
            generator=generator(seed, "sigma", index, compute.device),
            device=compute.device,
        )
        with compute.autocast():
            output, _, _ = model(x, noise)
        error += squared_error(x, output).double().sum()
    return optimal_sigma(float(error) / (len(images) * math.prod(images.shape[1:])))


@torch.no_grad()
def encode(model: VAE, images: np.ndarray | Tensor, compute: Compute) -> tuple[np.ndarray, np.ndarray]:
    """mu, logvar of every image: float32 (N, Z) each."""
    means, logvars = [], []
    for x in _batches(model, images, compute.device):
        with compute.autocast():
            mu, logvar = model.encode(x)
        means.append(mu.cpu().numpy())
        logvars.append(logvar.cpu().numpy())
    return np.concatenate(means), np.concatenate(logvars)


@torch.no_grad()
def reconstruct(
    model: VAE, images: np.ndarray | Tensor, likelihood: Likelihood, compute: Compute
) -> np.ndarray:
    """The mean of p(x|z = μ): uint8 (N, H, W, C) → uint8 of the same shape.

    An autoregressive decoder draws it from μ alone, without a look at the image.
    """
    parts = []
    for x in _batches(model, images, compute.device):
        with compute.autocast():
            pixels = likelihood.mean(model.decode(model.encode(x)[0]))
        parts.append(pixels.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def elbo_per_image(
    model: VAE, images: np.ndarray | Tensor, likelihood: Likelihood, compute: Compute, samples: int = 8
) -> np.ndarray:
    """The ELBO of each image in nats, its distortion averaged over samples of z: (N,) float64.

    The noise follows from the image's own pixels: neither its neighbours nor its place changes its ELBO.
    images: uint8 (N, H, W, C).
    """
    parts = []
    for index, x in enumerate(_batches(model, images, compute.device)):
        noise = _noise_of(images[index * BATCH : (index + 1) * BATCH], samples, model.latent_dim)
        with compute.autocast():
            mu, logvar = model.encode(x)
            log_prob = torch.zeros(len(x), dtype=torch.float64, device=compute.device)
            for epsilon in noise.to(compute.device):
                z = mu + torch.exp(0.5 * logvar) * epsilon
                log_prob += likelihood.log_prob(x, model.decode(z, x)) / samples
        parts.append((log_prob - kl_per_latent(mu, logvar).sum(1)).cpu().numpy())
    return np.concatenate(parts)


def _noise_of(images: np.ndarray | Tensor, samples: int, latents: int) -> Tensor:
    """Standard normal, drawn for each image on its own: uint8 (B, H, W, C) → (samples, B, latents), on the CPU."""
    drawn = []
    for image in images.cpu().numpy() if isinstance(images, Tensor) else images:
        digest = hashlib.sha256(image.tobytes()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn.append(torch.randn(samples, latents, generator=random))
    return torch.stack(drawn, dim=1)


@dataclass(frozen=True)
class MutualInformation:
    """I_q(x; z) = R − KL(q(z) ‖ p(z)) (Hoffman & Johnson 2016).

    It can never exceed ln n of its sample (He 2019): where R comes within 2 nats of that, `value` and
    `aggregate_kl` are None and `saturated_at` is ln n.
    """

    value: float | None
    aggregate_kl: float | None
    saturated_at: float | None


def mutual_information(mu: np.ndarray, logvar: np.ndarray, seed: int) -> MutualInformation:
    """I_q = E_x E_q(z|x) [ln q(z|x) − ln q(z)], q(z) the mixture over the sample's own posteriors.

    mu, logvar: (N, Z); of more than 10,000 images a seeded sample is taken.
    """
    random = np.random.default_rng(seed)
    if len(mu) > MUTUAL_INFORMATION_IMAGES:
        chosen = np.sort(random.choice(len(mu), MUTUAL_INFORMATION_IMAGES, replace=False))
        mu, logvar = mu[chosen], logvar[chosen]
    mu, logvar = mu.astype(np.float64), logvar.astype(np.float64)
    n, latents = mu.shape
    rate = float(kl_per_latent(torch.from_numpy(mu), torch.from_numpy(logvar)).sum(1).mean())
    if rate >= math.log(n) - 2:
        return MutualInformation(None, None, math.log(n))

    noise = random.standard_normal(mu.shape)
    z = mu + np.exp(0.5 * logvar) * noise
    log_normaliser = -0.5 * (latents * math.log(2 * math.pi) + logvar.sum(1))
    own = log_normaliser - 0.5 * (noise**2).sum(1)  # ln q(z_i|x_i)
    precision = np.exp(-logvar)
    constant = log_normaliser - 0.5 * (mu**2 * precision).sum(1)
    total = 0.0
    for start in range(0, n, 1024):
        part = z[start : start + 1024]
        # ln q(z_i|x_j) with the square multiplied out, so that it is two matrix products
        all_pairs = -0.5 * part**2 @ precision.T + part @ (mu * precision).T + constant
        total += float((own[start : start + 1024] - np.logaddexp.reduce(all_pairs, axis=1)).sum())
    information = total / n + math.log(n)
    return MutualInformation(information, rate - information, None)


def _batches(model: VAE, images: np.ndarray | Tensor, device: torch.device) -> Iterator[Tensor]:
    """The split in order, the model in evaluation mode meanwhile."""
    training = model.training
    model.eval()
    try:
        yield from in_order(images, BATCH, device)
    finally:
        model.train(training)
