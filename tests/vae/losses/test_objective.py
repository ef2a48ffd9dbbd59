"""Known values of the objective: PyTorch's distributions, SciPy's integrals, and losses written out plainly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor, distributions
from torch.nn import functional
from vae.losses.objective import Objective, effective_beta

from vae.config.constants import SMALLEST_SIGMA
from vae.losses.elbo import kl_per_latent
from vae.models.likelihood import Likelihood, gaussian_log_prob, optimal_sigma, squared_error

SHAPE, LATENTS, BATCH = (3, 4, 5), 7, 6
PIXELS = math.prod(SHAPE)


def objective(**changes: object) -> Objective:
    given = {
        "likelihood": "gaussian", "sigma": "optimal", "reduction": "sum", "pixels": PIXELS, "latents": LATENTS,
        "final_weight": 1.0,
    }  # fmt: skip
    return Objective(**{**given, **changes})


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x in [0, 1], and output, mu, logvar that ask for gradients."""
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(BATCH, *SHAPE, generator=random, dtype=torch.float64)
    output = torch.randn(BATCH, *SHAPE, generator=random, dtype=torch.float64).requires_grad_()
    mu = torch.randn(BATCH, LATENTS, generator=random, dtype=torch.float64).requires_grad_()
    logvar = torch.randn(BATCH, LATENTS, generator=random, dtype=torch.float64).requires_grad_()
    return x, output, mu, logvar


def assert_same_gradients(one: Tensor, other: Tensor, of: list[Tensor]) -> None:
    gradients = (torch.autograd.grad(loss, of, retain_graph=True) for loss in (one, other))
    for a, b in zip(*gradients, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)


@settings(deadline=None)
@given(st.floats(-30, 30), st.floats(-15, 8))
def test_kl_of_two_gaussians_is_that_of_torch(mu: float, logvar: float) -> None:
    mean, log = torch.tensor(mu, dtype=torch.float64), torch.tensor(logvar, dtype=torch.float64)
    expected = distributions.kl_divergence(
        distributions.Normal(mean, (0.5 * log).exp()),
        distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)),
    )
    torch.testing.assert_close(kl_per_latent(mean, log), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (1.3, 0.4), (-2.0, 2.5), (0.1, 0.05)])
def test_kl_is_the_integral_that_defines_it(mu: float, sigma: float) -> None:
    q, p = stats.norm(mu, sigma), stats.norm()
    expected, _ = integrate.quad(
        lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mu - 12 * sigma, mu + 12 * sigma
    )
    got = kl_per_latent(
        torch.tensor(mu, dtype=torch.float64), torch.tensor(2 * math.log(sigma), dtype=torch.float64)
    )
    assert float(got) == pytest.approx(expected, abs=1e-8)


def test_kl_keeps_each_latent_apart() -> None:
    got = kl_per_latent(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.zeros(2, 2))
    torch.testing.assert_close(got, torch.tensor([[0.0, 2.0], [0.5, 0.0]]))


@settings(deadline=None)
@given(st.floats(0.002, 5), st.integers(0, 3))
def test_gaussian_log_prob_is_that_of_torch(sigma: float, seed: int) -> None:
    x, output, *_ = batch(seed)
    expected = distributions.Normal(output, sigma).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Likelihood("gaussian", sigma).log_prob(x, output), expected)
    variance = torch.tensor(sigma**2, dtype=torch.float64)
    torch.testing.assert_close(gaussian_log_prob(squared_error(x, output), PIXELS, variance), expected)


@pytest.mark.parametrize("binary", [True, False])
def test_bernoulli_log_prob_is_that_of_torch(binary: bool) -> None:
    x, output, *_ = batch()
    x = x.round() if binary else x  # of grey pixels it is the cross-entropy
    bernoulli = distributions.Bernoulli(logits=output, validate_args=binary)
    expected = bernoulli.log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Likelihood("bernoulli").log_prob(x, output), expected)
    torch.testing.assert_close(Likelihood("bernoulli").mean(output), 1 / (1 + (-output).exp()))
    assert Likelihood("gaussian", 1.0).mean(output) is output


@pytest.mark.parametrize("final_weight", [1.0, 0.001])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_gaussian_mean_reduction_is_the_plain_mean_mean_loss(final_weight: float, share: float) -> None:
    x, output, mu, logvar = batch()
    o = objective(reduction="mean", final_weight=final_weight)
    weight = share * final_weight
    kl = kl_per_latent(mu, logvar)
    ours = o.scale * (o.distortion(x, output, None) + o.beta(weight) * o.penalised_rate(kl))
    plain = functional.mse_loss(output, x) + weight * (
        -0.5 * (1 + logvar - mu.square() - logvar.exp()).mean()
    )
    assert_same_gradients(ours, plain, [output] if share == 0 else [output, mu, logvar])
    sigma2 = final_weight * PIXELS / (2 * LATENTS)
    assert o.equivalent_sigma == pytest.approx(math.sqrt(sigma2))
    constant = final_weight / LATENTS * PIXELS / 2 * math.log(2 * math.pi * sigma2)
    assert ours.item() - plain.item() == pytest.approx(constant)


def test_bernoulli_mean_reduction_is_the_plain_mean_mean_loss() -> None:
    x, output, mu, logvar = batch()
    o = objective(likelihood="bernoulli", reduction="mean", final_weight=0.3)
    kl = kl_per_latent(mu, logvar)
    ours = o.scale * (o.distortion(x, output, None) + o.beta(0.2) * o.penalised_rate(kl))
    plain = functional.binary_cross_entropy_with_logits(output, x) + 0.2 * kl.mean()
    assert ours.item() == pytest.approx(plain.item())
    assert_same_gradients(ours, plain, [output, mu, logvar])
    assert o.equivalent_sigma is None
    assert o.beta(0.2) == pytest.approx(0.2 * PIXELS / LATENTS)


def test_sum_reduction_is_the_elbo_itself() -> None:
    x, output, mu, logvar = batch()
    o = objective(sigma=0.2)
    q = distributions.Normal(mu, (0.5 * logvar).exp())
    rate = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    elbo = distributions.Normal(output, 0.2).log_prob(x).sum((1, 2, 3)) - rate
    loss = o.scale * (
        o.distortion(x, output, None) + o.beta(1.0) * o.penalised_rate(kl_per_latent(mu, logvar))
    )
    torch.testing.assert_close(loss, -elbo.mean())
    assert o.equivalent_sigma is None


def test_optimal_sigma_has_the_gradient_of_log_mse() -> None:
    x, output, *_ = batch()
    plain = PIXELS / 2 * functional.mse_loss(output, x).log()
    ours = objective().distortion(x, output, None)
    assert_same_gradients(ours, plain, [output])
    # ... and its value is the best that any sigma gives
    mse = functional.mse_loss(output, x).item()
    at = {
        factor: -Likelihood("gaussian", math.sqrt(mse) * factor).log_prob(x, output).mean().item()
        for factor in (0.98, 1.0, 1.02)
    }
    assert ours.item() == pytest.approx(at[1.0]) and at[1.0] < min(at[0.98], at[1.02])


def test_optimal_sigma_stops_at_the_rounding_of_grey_levels() -> None:
    x, *_ = batch()
    exact = (x + 1e-6).requires_grad_()
    loss = objective().distortion(x, exact, None)
    assert loss.item() == pytest.approx(PIXELS / 2 * math.log(2 * math.pi * SMALLEST_SIGMA**2), abs=1e-3)
    assert torch.autograd.grad(loss, exact)[0].isfinite().all()
    assert optimal_sigma(0.0) == SMALLEST_SIGMA == pytest.approx(1 / (255 * math.sqrt(12)))
    assert optimal_sigma(0.04) == pytest.approx(0.2)


def test_learned_sigma_is_driven_to_the_optimal_one() -> None:
    x, output, *_ = batch()
    o = objective(sigma="learned")
    best = 0.5 * functional.mse_loss(output, x).log().detach()
    log_sigma = best.clone().requires_grad_()
    loss = o.distortion(x, output, log_sigma)
    assert torch.autograd.grad(loss, log_sigma)[0].item() == pytest.approx(0, abs=1e-9)
    assert loss.item() == pytest.approx(objective().distortion(x, output, None).item())
    off = (best + 0.1).requires_grad_()
    assert torch.autograd.grad(o.distortion(x, output, off), off)[0] > 0


def test_free_bits_hide_what_a_latent_costs_below_them() -> None:
    kl = torch.tensor([[0.0, 0.4, 3.0], [0.1, 0.2, 1.0]], requires_grad=True)  # means 0.05, 0.3, 2
    free = objective(free_bits=0.25).penalised_rate(kl)
    assert free.item() == pytest.approx(0.25 + 0.3 + 2.0)
    (gradient,) = torch.autograd.grad(free, kl)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]))
    assert objective().penalised_rate(kl).item() == pytest.approx(2.35)


@pytest.mark.parametrize(
    ("changes", "mse", "expected"),
    [
        ({"final_weight": 4.0}, 0.01, 4.0),
        ({"final_weight": 4.0, "sigma": "learned"}, 0.5, 4.0),
        ({"final_weight": 2.0, "sigma": 0.1}, 0.02, 2.0 * 0.01 / 0.02),
        ({"final_weight": 0.001, "reduction": "mean"}, 0.02, 0.001 * PIXELS / (2 * LATENTS * 0.02)),
        ({"final_weight": 3.0, "likelihood": "bernoulli"}, 0.02, 3.0),
        ({"final_weight": 3.0, "likelihood": "bernoulli", "reduction": "mean"}, 0.02, 3 * PIXELS / LATENTS),
        ({"sigma": 0.1}, 0.0, 0.01 / SMALLEST_SIGMA**2),
    ],
)
def test_effective_beta(changes: dict, mse: float, expected: float) -> None:
    assert effective_beta(objective(**changes), mse) == pytest.approx(expected)


def test_the_likelihood_that_reporting_uses() -> None:
    assert objective(likelihood="bernoulli").known_likelihood() == Likelihood("bernoulli")
    assert objective().known_likelihood() is None
    assert objective(sigma=0.3).known_likelihood() == Likelihood("gaussian", 0.3)
    learned = objective(sigma="learned")
    assert learned.known_likelihood(math.log(0.2)) == Likelihood("gaussian", pytest.approx(0.2))
    assert learned.known_likelihood(-50.0) == Likelihood("gaussian", SMALLEST_SIGMA)
    mean = objective(reduction="mean", final_weight=0.01)
    assert mean.known_likelihood() == Likelihood("gaussian", mean.equivalent_sigma)


def test_free_bits_in_total_are_counted_over_all_latents() -> None:
    kl = torch.tensor([[0.2, 0.1, 0.5], [0.4, 0.3, 0.1]])
    rate = float(kl.mean(0).sum())
    objective = Objective(
        "gaussian", "optimal", "sum", pixels=4, latents=3, final_weight=1.0, free_bits_total=0.5
    )
    assert float(objective.penalised_rate(kl)) == pytest.approx(rate)
    objective = Objective(
        "gaussian", "optimal", "sum", pixels=4, latents=3, final_weight=1.0, free_bits_total=2.0
    )
    assert float(objective.penalised_rate(kl)) == 2.0
