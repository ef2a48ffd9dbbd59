"""Two levels of latents: what stays as with one, the KL of each, and bounds beside a likelihood that is known."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.models import config
from helpers.parameters import parse
from helpers.trainings import CPU, VALID, assert_same_bits, interrupted, params, run
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vae.config.beta_elbo import BetaELBO
from vae.config.errors import InputError
from vae.evaluation.evaluate import evaluate
from vae.evaluation.importance_weighted import importance_weighted_bound
from vae.inference import generate
from vae.inference.scoring import elbo_per_image
from vae.losses.elbo import elbo_terms, kl_per_latent
from vae.losses.importance_weighted import importance_weighted_terms
from vae.metrics.measurement import encode, measure, posteriors_to_draw
from vae.models import saved
from vae.models.hierarchy import TopDown
from vae.models.likelihood import Likelihood
from vae.models.vae import VAE, build, to_device
from vae.training.standardise import standardise

VECTORS: dict[str, Any] = {"model.latent_dim": 5, "model.lower_latents": 2}
MAP: dict[str, Any] = {
    "model.architecture": "residual", "model.latent_dim": 3 + 32, "model.lower_latents": [4, 4, 2],
}  # fmt: skip
NETWORKS: list[dict[str, Any]] = [
    VECTORS,
    VECTORS | {"model.architecture": "mlp"},
    VECTORS | {"model.architecture": "gated_mlp", "model.batch_norm": False, "model.widths": [7]},
    VECTORS | {"model.architecture": "residual", "model.attention": True},
    MAP,
    MAP | {"model.latent_dim": 3 + 8, "model.lower_latents": [2, 2, 2], "model.batch_norm": False},
]


def network(changes: dict[str, Any]) -> VAE:
    return build(params(changes)).eval()


@pytest.mark.parametrize("changes", NETWORKS)
@torch.no_grad()
def test_shapes_and_what_the_posterior_follows(changes: dict[str, Any]) -> None:
    model, x = network(changes), torch.rand(4, 1, 8, 8)
    noise = torch.randn(3, 4, model.latent_dim)
    posterior, top = model.infer(x), model.top
    assert top == 3 and model.decode(noise[0]).shape == x.shape
    together = posterior(noise)
    for draw, single in enumerate(noise):
        mu, logvar = posterior(single)
        assert mu.shape == logvar.shape == (4, model.latent_dim)
        for part, of_all in zip((mu, logvar), together, strict=True):
            torch.testing.assert_close(of_all[draw], part)
        torch.testing.assert_close(model(x, single)[0], model.decode(mu + torch.exp(0.5 * logvar) * single))
    central = model.encode(x)[0]
    assert torch.equal(central, posterior(torch.zeros_like(noise[0]))[0])
    assert torch.equal(central[:, :top], mu[:, :top]) and not torch.allclose(central[:, top:], mu[:, top:])
    own = noise[2].clone()
    own[:, top:] = 0  # the noise of u moves nothing but u
    assert torch.equal(posterior(own)[0], mu)


@pytest.mark.parametrize("changes", NETWORKS)
@torch.no_grad()
def test_the_kl_does_not_change_with_the_coordinates(changes: dict[str, Any]) -> None:
    """q(z₁) is the image of q(u) under z₁ = μ_p + σ_p·u, p(z₁) that of N(0, I)."""
    model, x = network(changes), torch.rand(4, 1, 8, 8)
    assert isinstance(model.decoder, TopDown)
    noise = torch.randn(4, model.latent_dim)
    mu, logvar = model.encode(x, noise)
    z2 = (mu + torch.exp(0.5 * logvar) * noise)[:, : model.top]
    u, sigma_u = mu[:, model.top :], torch.exp(0.5 * logvar)[:, model.top :]
    mu_p, logvar_p = model.decoder.lower_prior(model.decoder.context(z2))
    sigma_p = torch.exp(0.5 * logvar_p)
    expected = kl_divergence(Normal(mu_p + sigma_p * u, sigma_p * sigma_u), Normal(mu_p, sigma_p))
    torch.testing.assert_close(kl_per_latent(mu, logvar)[:, model.top :], expected, rtol=1e-4, atol=1e-5)


class Linear(torch.nn.Module):
    """h → one linear function of it, for a hierarchy that is a Gaussian of all its variables."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


SIGMA, PRIOR_SIGMA, SHARE = 0.5, 0.7, 0.8  # z₁ = SHARE·z₂ + PRIOR_SIGMA·u; x = w₁z₁ + w₂z₂ + ½ + SIGMA·noise
W1, W2 = torch.linspace(-0.4, 0.5, 64), torch.linspace(-0.2, 0.3, 64)  # alike: the levels depend on each other


def linear(weight: Tensor, bias: list[float]) -> Any:
    return Linear(weight, torch.tensor(bias))


def linear_gaussian(wider: float = 0.4) -> VAE:
    """Z₂ = Z₁ = 1; wider: by how much the ln σ² of q are above those of the true posterior."""
    model = network({"model.architecture": "mlp", "model.latent_dim": 2, "model.lower_latents": 1})
    decoder, lower = model.decoder, model.lower
    assert isinstance(decoder, TopDown) and lower is not None
    decoder.prior = torch.nn.Sequential(
        Linear(torch.tensor([[SHARE], [0.0]]), torch.tensor([0.0, 2 * math.log(PRIOR_SIGMA)]))
    )
    decoder.of_lower = decoder.of_context = torch.nn.Identity()
    decoder.output = torch.nn.Sequential(
        Linear(torch.stack([W1, W2], 1), torch.full((64,), 0.5)), torch.nn.Unflatten(1, (1, 8, 8))
    )
    # The true posterior of (z₂, u): N(P⁻¹·b, P⁻¹), b linear in x.
    loadings = torch.stack([SHARE * W1 + W2, PRIOR_SIGMA * W1], 1)
    precision = torch.eye(2) + loadings.T @ loadings / SIGMA**2
    of_x = loadings.T / SIGMA**2
    variance, slope = torch.linalg.inv(precision), -precision[1, 0] / precision[1, 1]
    top, below = (variance @ of_x)[0], of_x[1] / precision[1, 1]
    none = torch.zeros(64)
    model.encoder = Both()
    model.posterior = linear(torch.stack([top, none]), [-0.5 * float(top.sum()), math.log(variance[0, 0]) + wider])
    lower.of_context, lower.joined = torch.nn.Identity(), torch.nn.Identity()
    weight = torch.cat([torch.stack([below, none]), torch.tensor([[float(slope)], [0.0]])], 1)
    lower.last = linear(weight, [-0.5 * float(below.sum()), -math.log(precision[1, 1]) + wider])
    return model


class Both(torch.nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.flatten(1)


def log_likelihood(x: Tensor) -> Tensor:
    """ln p(x), exactly: (B, 64) → (B,)."""
    both = torch.stack([PRIOR_SIGMA * W1, SHARE * W1 + W2], 1).double()
    covariance = both @ both.T + SIGMA**2 * torch.eye(64, dtype=torch.float64)
    return MultivariateNormal(torch.full((64,), 0.5, dtype=torch.float64), covariance).log_prob(x.double())


class OfADraw(NamedTuple):
    """Of a draw of (z₂, z₁) ~ q, by its densities in these coordinates: (B,) each, float64."""

    elbo: Tensor  # ln p(x|z) − KL, that of z₁ at the z₂ drawn
    log_weight: Tensor  # ln p(x, z)/q(z|x)


@torch.no_grad()
def drawn(model: VAE, x: Tensor, noise: Tensor) -> OfADraw:
    mu, logvar = model.encode(x, noise)
    std = torch.exp(0.5 * logvar)
    z2, u = (mu + std * noise).T
    p2, p1 = Normal(0.0, 1.0), Normal(SHARE * z2, PRIOR_SIGMA)
    q2 = Normal(mu[:, 0], std[:, 0])
    q1 = Normal(SHARE * z2 + PRIOR_SIGMA * mu[:, 1], PRIOR_SIGMA * std[:, 1])
    z1 = SHARE * z2 + PRIOR_SIGMA * u
    mean = 0.5 + z1[:, None] * W1 + z2[:, None] * W2
    log_prob = Normal(mean, SIGMA).log_prob(x.flatten(1)).sum(1)
    kl = kl_divergence(q2, p2) + kl_divergence(q1, p1)
    ratio = p2.log_prob(z2) + p1.log_prob(z1) - q2.log_prob(z2) - q1.log_prob(z1)
    return OfADraw((log_prob - kl).double(), (log_prob + ratio).double())


def quadrature(of: Callable[[OfADraw], Tensor], model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over draws, (B,) each, by Gauss-Hermite quadrature over both noises."""
    points, weights = np.polynomial.hermite_e.hermegauss(24)
    weights /= weights.sum()
    moments = torch.zeros(2, len(x), dtype=torch.float64)
    for (a, of_a), (b, of_b) in itertools.product(zip(points, weights, strict=True), repeat=2):
        value = of(drawn(model, x, torch.tensor([a, b], dtype=torch.float32).expand(len(x), 2)))
        moments += of_a * of_b * torch.stack([value, value.square()])
    return moments[0], (moments[1] - moments[0].square()).sqrt()


def test_bounds_beside_a_likelihood_that_is_known() -> None:
    model, likelihood, few = linear_gaussian(), Likelihood("gaussian", SIGMA), VALID[:6]
    x = torch.from_numpy(few).permute(0, 3, 1, 2).float() / 255
    exact = log_likelihood(x.flatten(1))
    elbo = measure(model, few, likelihood, CPU, 0, draws=3000)
    brute, _ = quadrature(lambda draw: draw.log_weight, model, x)
    assert elbo.elbo == pytest.approx(float(brute.mean()), abs=0.05)
    gap = math.exp(0.4) - 1 - 0.4  # Σ of ½ (e^a − 1 − a) over both: KL(q ‖ the true posterior)
    torch.testing.assert_close(brute, exact - gap, rtol=0, atol=1e-3)
    bounds = [importance_weighted_bound(model, few, likelihood, CPU, k, 0) for k in (20, 5000)]
    assert elbo.elbo < bounds[0] < bounds[1] == pytest.approx(float(exact.mean()), abs=0.02)
    elbo_of = parse({"objective.sigma": SIGMA, "data.image_size": 8})
    with torch.no_grad():
        noise = torch.randn(5000, 6, 2, generator=torch.Generator().manual_seed(1))
        loss, _, rate = importance_weighted_terms(BetaELBO.of(elbo_of, 1.0), model, x, noise, torch.tensor(1.0), None)
    assert -float(loss) == pytest.approx(float(exact.mean()), abs=0.02)
    assert float(rate) == pytest.approx(elbo.rate, abs=0.05)


def test_the_score_of_each_image_is_within_its_standard_error() -> None:
    model, few, draws = linear_gaussian(), VALID[:6], 10_000
    x = torch.from_numpy(few).permute(0, 3, 1, 2).float() / 255
    elbo, spread = quadrature(lambda draw: draw.elbo, model, x)
    standard_error = spread / math.sqrt(draws)
    assert standard_error.max() < 0.015  # nats; a wrong density is worth −ln PRIOR_SIGMA = 0.36
    scored = torch.from_numpy(elbo_per_image(model, few, Likelihood("gaussian", SIGMA), CPU, draws))
    apart = (scored - elbo) / standard_error
    assert apart.abs().max() < 5, apart


def test_the_weighted_bound_of_each_image_is_within_its_standard_error() -> None:
    """se(ln of the mean weight) = sd(w)/(E[w]·√k), and E[w] = p(x)."""
    model, draws = linear_gaussian(), 1000
    x = torch.from_numpy(VALID[:6]).permute(0, 3, 1, 2).float() / 255
    exact = log_likelihood(x.flatten(1))
    mean, spread = quadrature(lambda draw: (draw.log_weight - exact).exp(), model, x)
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=0, atol=1e-3)
    standard_error = spread / mean / math.sqrt(draws)
    assert standard_error.max() < 0.015
    bounds = [
        importance_weighted_bound(model, VALID[i : i + 1], Likelihood("gaussian", SIGMA), CPU, draws, seed=i)
        for i in range(len(x))
    ]
    apart = (torch.tensor(bounds, dtype=torch.float64) - exact) / standard_error
    assert apart.abs().max() < 5, apart


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("changes", [NETWORKS[2], MAP])
def test_compiled_the_loss_and_its_gradient_are_the_same(changes: dict[str, Any], draws: int) -> None:
    model, x, noise = network(changes), torch.rand(4, 1, 8, 8), torch.randn(draws, 4, params(changes).model.latent_dim)
    elbo = BetaELBO.of(parse({"objective.sigma": SIGMA, "data.image_size": 8}), 1.0)

    def loss(noise: Tensor) -> Tensor:
        if draws == 1:
            terms = elbo_terms(elbo, model, x, noise[0], None)
            return terms.distortion + terms.rate
        return importance_weighted_terms(elbo, model, x, noise, torch.tensor(1.0), None)[0]

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    weights = list(model.parameters())
    found, expected = [(value, *torch.autograd.grad(value, weights)) for value in (compiled(noise), loss(noise))]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(compiled(2 * noise), found[0])  # the noise is no constant of the graph


@pytest.mark.parametrize("changes", [NETWORKS[0], NETWORKS[2], MAP])
def test_a_training_measures_both_levels_and_repeats_to_the_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    p = params(changes)
    one = run(p)
    assert_same_bits(one, interrupted(p, tmp_path / "state.pt", [6], [2]))
    levels = one.train.kl_of_levels
    assert sum(levels.values()) == pytest.approx(one.train.rate) and levels["kl_top"] > 0
    assert levels["kl_top"] == pytest.approx(one.train.kl_per_latent[:3].sum())
    assert one.history[-1]["valid/mse"] < one.history[0]["valid/mse"]
    assert run(params()).train.kl_of_levels == {}


def test_free_bits_in_total_are_of_each_level() -> None:
    """At a weight at which both levels collapse, each keeps what is free."""
    heavy = VECTORS | {"kl.max_weight": 20.0, "train.epochs": 30, "train.select": "last"}
    without, free = (run(params(heavy | more)).train.kl_of_levels for more in ({}, {"kl.free_bits_total": 2.0}))
    assert max(without.values()) < 0.5
    assert all(1.4 < kl < 2.3 for kl in free.values()), free


def test_with_the_true_posterior_each_draw_gives_the_likelihood_itself() -> None:
    """Of two levels only if q(u|x, z₂) is taken at the z₂ that was drawn."""
    x = torch.from_numpy(VALID[:6]).permute(0, 3, 1, 2).float() / 255
    bound = importance_weighted_bound(linear_gaussian(0.0), VALID[:6], Likelihood("gaussian", SIGMA), CPU, 1, 0)
    assert bound == pytest.approx(float(log_likelihood(x.flatten(1)).mean()), abs=1e-3)


@torch.no_grad()
def test_the_covariance_of_all_latents_has_that_between_the_levels() -> None:
    """u depends on z₂ of the same image too: of z₂ ~ N(μ₂, v₂) and E[u|x, z₂] = a + b·z₂, Cov(z₂, u|x) = b·v₂."""
    model = linear_gaussian()
    measured = measure(model, np.repeat(VALID, 300, 0), Likelihood("gaussian", SIGMA), CPU, 0)
    x = torch.from_numpy(VALID).permute(0, 3, 1, 2).float() / 255
    (mu, logvar), (moved, _) = (model.encode(x, torch.tensor([[by, 0.0]]).expand(len(x), 2)) for by in (0.0, 1.0))
    v2, v1 = logvar[0].exp().double()
    b = (moved - mu)[0, 1].double() / v2.sqrt()
    within = torch.stack([torch.stack([v2, b * v2]), torch.stack([b * v2, b**2 * v2 + v1])])
    expected = within + torch.cov(mu.double().T, correction=0)
    assert abs(b * v2) > 0.3 * (v2 * (b**2 * v2 + v1)).sqrt()
    np.testing.assert_allclose(measured.aggregate_covariance, expected, atol=0.02)
    np.testing.assert_allclose(np.diag(measured.aggregate_covariance), measured.aggregate_variance)
    assert measured.prior_gap_full >= measured.prior_gap


@torch.no_grad()
def test_latents_are_not_standardised_and_draws_are_of_both_levels_together() -> None:
    model = linear_gaussian()
    assert not standardise(model, measure(model, VALID, Likelihood("gaussian", SIGMA), CPU, 0))
    mu, logvar = posteriors_to_draw(model, np.repeat(VALID[:1], 20_000, 0), CPU, 0)
    assert float(np.exp(logvar[:, 0]).max()) < 1e-8 and mu[:, 0].std() > 0.3
    # μ_u is linear in the very z₂ that is drawn
    assert abs(np.corrcoef(mu[:, 0], mu[:, 1])[0, 1]) == pytest.approx(1, abs=1e-4)
    assert encode(model, VALID[:1], CPU)[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.latent_dim": 2}, "model.lower_latents = 2 leaves none of model.latent_dim = 2"),
        ({"model.lower_latents": 0}, "invalid lower_latents 0"),
        ({"model.architecture": "autoregressive"}, "needs model.architecture = conv or residual or mlp or gated_mlp"),
        ({"model.lower_latents": [4, 4, 1], "model.latent_dim": 20}, "needs model.architecture = residual"),
        (
            {"model.architecture": "residual", "model.lower_latents": [3, 3, 1], "model.latent_dim": 20},
            "height and width of a scale: [8, 8], [4, 4]",
        ),
        ({"model.prior": "vamp"}, "model.prior does not go with model.lower_latents = 2"),
        ({"model.mean_batch_norm": 0.5}, "model.mean_batch_norm does not go with"),
        ({"train.aggressive_encoder": True}, "train.aggressive_encoder = true does not go with"),
        ({"preflight.pilot": True}, "preflight.pilot = true does not go with"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse({**VECTORS, **changes})
    assert said in str(refused.value)


@pytest.mark.parametrize("changes", NETWORKS)
def test_a_saved_model_draws_reconstructs_and_is_evaluated(changes: dict[str, Any], tmp_path: Path) -> None:
    p, model = params(changes | {"evaluate.importance_samples": 2}), to_device(network(changes), CPU.device)
    saved.save(tmp_path, model, config((1, 8, 8), p.model))
    loaded = saved.load(tmp_path)
    z = torch.randn(3, model.latent_dim)
    assert torch.equal(loaded.model.decode(z), model.decode(z))
    assert generate.samples(loaded, loaded.prior, 4, CPU, seed=0).shape == (4, 8, 8, 1)
    dims, values = np.array([0, 3, 4]), np.array([-1.0, 0.0, 1.0])
    assert len(generate.traversals(loaded, VALID[0], dims, values, CPU)) > 0
    images = dict.fromkeys(("train", "valid", "test"), VALID)
    labels = {split: np.array(["a", "b"] * len(VALID), dtype=object)[: len(VALID)] for split in images}
    metrics = evaluate(loaded, images, labels, p, CPU)["test"].metrics
    assert metrics["kl_top"] + metrics["kl_lower"] == pytest.approx(metrics["kl"], rel=1e-3)  # type: ignore[operator]
    assert metrics["mutual_information"] is None and metrics["fitted_prior_kl"] == metrics["kl"]
    assert metrics["mmd"] is not None and metrics["probe_accuracy"] is not None
