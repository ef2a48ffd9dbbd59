"""The loss against PyTorch's distributions and against losses written out plainly."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.parameters import Changes, parse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions
from torch.nn import functional

from vae.config.beta_elbo import BetaELBO
from vae.config.constants import SMALLEST_SIGMA
from vae.config.resolved import ResolvedKL
from vae.losses.elbo import ELBOLoss, Logs, kl_per_latent, penalised_rate
from vae.losses.kl_control import KLControl
from vae.models.likelihood import Likelihood

SHAPE, LATENTS, BATCH = (3, 8, 9), 7, 6
PIXELS = math.prod(SHAPE)


def elbo(weight: float = 1.0, **objective: Any) -> BetaELBO:
    size = {"data.image_size": list(SHAPE[1:]), "data.channels": 3, "model.latent_dim": LATENTS}
    changes = {f"objective.{name}": value for name, value in objective.items()}
    return BetaELBO.of(parse(size | changes), weight)


class Network:
    """Gives the same output, mu and logvar, which ask for gradients, to any images."""

    def __init__(self, log_sigma: float | None = None) -> None:
        random = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()

        self.outputs = drawn(BATCH, *SHAPE), drawn(BATCH, LATENTS), drawn(BATCH, LATENTS)
        self.log_sigma = log_sigma and torch.tensor(log_sigma, dtype=torch.float64, requires_grad=True)

    def __call__(self, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return self.outputs

    def density(self) -> None:
        """N(0, I)."""


X = torch.rand(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = torch.zeros(1, BATCH, LATENTS)


def loss_of(e: BetaELBO, network: Any, beta: float, x: Tensor = X) -> tuple[Tensor, Logs]:
    return ELBOLoss(e, KLControl(ResolvedKL(), PIXELS, torch.device("cpu")))(network, x, NOISE, beta)


def assert_same_gradients(one: Tensor, other: Tensor, of: list[Tensor]) -> None:
    gradients = (torch.autograd.grad(loss, of, retain_graph=True) for loss in (one, other))
    for a, b in zip(*gradients, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)


@settings(deadline=None)
@given(st.floats(-30, 30), st.floats(-15, 8))
def test_kl_of_two_gaussians_is_that_of_torch(mu: float, logvar: float) -> None:
    mean, log, zero = torch.tensor([mu, logvar, 0.0], dtype=torch.float64)
    q, p = distributions.Normal(mean, (0.5 * log).exp()), distributions.Normal(zero, zero + 1)
    expected = distributions.kl_divergence(q, p)
    torch.testing.assert_close(kl_per_latent(mean, log), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("objective", [{"sigma": 0.2}, {"likelihood": "bernoulli"}])
def test_sum_reduction_is_the_elbo_with_its_rate_times_beta(objective: Changes, beta: float) -> None:
    network, e = Network(), elbo(**objective)
    output, mu, logvar = network.outputs
    x = X.round() if "likelihood" in objective else X
    gaussian, bernoulli = distributions.Normal(output, 0.2), distributions.Bernoulli(logits=output)
    p = bernoulli if "likelihood" in objective else gaussian
    distortion = -p.log_prob(x).sum((1, 2, 3)).mean()
    q = distributions.Normal(mu, (0.5 * logvar).exp())
    rate = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1).mean()
    loss, logs = loss_of(e, network, beta, x)
    torch.testing.assert_close(e.scale * loss, distortion + beta * rate)
    assert loss.requires_grad and not any(value.requires_grad for value in logs.values())
    torch.testing.assert_close(logs, {"loss": loss, "reconstruction": distortion, "kl": rate})


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("weight", [1.0, 0.001])
@pytest.mark.parametrize("ramp", [1.0, 0.3, 0.0])
def test_mean_reduction_is_the_plain_mean_mean_loss(likelihood: str, weight: float, ramp: float) -> None:
    network, e = Network(), elbo(weight, likelihood=likelihood, reduction="mean")
    output, mu, logvar = network.outputs
    ours = e.scale * loss_of(e, network, ramp * e.beta)[0]
    kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).mean()
    errors = {"gaussian": functional.mse_loss, "bernoulli": functional.binary_cross_entropy_with_logits}
    plain = errors[likelihood](output, X) + ramp * weight * kl
    assert_same_gradients(ours, plain, [output] if ramp == 0 else [output, mu, logvar])
    constant = weight / LATENTS * PIXELS / 2 * math.log(2 * math.pi * weight * PIXELS / (2 * LATENTS))
    assert ours.item() - plain.item() == pytest.approx(constant if likelihood == "gaussian" else 0, abs=1e-9)


def test_optimal_sigma_has_the_gradient_of_log_mse() -> None:
    network = Network()
    output = network.outputs[0]
    loss, logs = loss_of(elbo(), network, 0.0)
    assert_same_gradients(loss, PIXELS / 2 * functional.mse_loss(output, X).log(), [output])
    # ... and its value is the best that any sigma gives
    best = math.sqrt(functional.mse_loss(output, X).item())
    less, at, more = (
        -Likelihood("gaussian", best * factor).log_prob(X, output).mean().item() for factor in (0.98, 1, 1.02)
    )
    assert logs["reconstruction"].item() == pytest.approx(at) and at < min(less, more)


def test_optimal_sigma_stops_at_the_rounding_of_grey_levels() -> None:
    network = Network()
    loss, _ = loss_of(elbo(), network, 0.0, x=network.outputs[0].detach() + 1e-6)
    assert loss.item() == pytest.approx(PIXELS / 2 * math.log(2 * math.pi * SMALLEST_SIGMA**2), abs=1e-3)
    assert torch.autograd.grad(loss, network.outputs[0])[0].isfinite().all()


def test_learned_sigma_is_driven_to_the_optimal_one() -> None:
    best = 0.5 * functional.mse_loss(Network().outputs[0], X).log().item()

    def learned(log_sigma: float) -> tuple[float, float]:
        """The loss, and its gradient by log_sigma."""
        network = Network(log_sigma)
        loss, _ = loss_of(elbo(sigma="learned"), network, 0.0)
        return loss.item(), torch.autograd.grad(loss, network.log_sigma)[0].item()

    assert learned(best) == pytest.approx((loss_of(elbo(), Network(), 0.0)[0].item(), 0), abs=1e-6)
    assert learned(best - 0.1)[1] < 0 < learned(best + 0.1)[1]


RATES = torch.tensor([[0.0, 0.4, 3.0], [0.1, 0.2, 1.0]])  # means 0.05, 0.3 and 2


@pytest.mark.parametrize(
    ("free", "rate", "gradient"),
    [
        ({}, 2.35, [0.5, 0.5, 0.5]),
        ({"free_bits": 0.25}, 0.25 + 0.3 + 2.0, [0.0, 0.5, 0.5]),
        ({"free_bits_total": 2.0}, 2.35, [0.5, 0.5, 0.5]),
        ({"free_bits_total": 2.5}, 2.5, [0.0, 0.0, 0.0]),
        ({"free_bits_total": 0.5, "lower_from": (2,)}, 0.5 + 2.0, [0.0, 0.0, 0.5]),
        ({"free_bits_total": 2.1, "lower_from": (1,)}, 2.1 + 2.3, [0.0, 0.5, 0.5]),
    ],
)
def test_free_bits_hide_a_cost_below_them(free: dict[str, float], rate: float, gradient: list[float]) -> None:
    rates = RATES.clone().requires_grad_()
    penalised = penalised_rate(replace(elbo(), **free), rates)
    assert penalised.item() == pytest.approx(rate)
    torch.testing.assert_close(torch.autograd.grad(penalised, rates)[0], torch.tensor([gradient, gradient]))


def test_free_bits_are_in_the_loss_and_not_in_its_logs() -> None:
    plain, logs = loss_of(elbo(sigma=0.2), Network(), 1.0)
    free, same_logs = loss_of(replace(elbo(sigma=0.2), free_bits_total=1e3), Network(), 1.0)
    assert free.item() == pytest.approx(plain.item() - logs["kl"].item() + 1e3)
    assert same_logs["kl"] == logs["kl"] and same_logs["reconstruction"] == logs["reconstruction"]


def test_a_control_sees_a_batch_only_where_it_steers() -> None:
    kl = ResolvedKL(target_kl=5.0, max_weight=2.0, proportional_gain=0.3)
    loss = ELBOLoss(elbo(sigma=0.2), KLControl(kl, PIXELS, torch.device("cpu")))
    unsteered, logs = loss(Network(), X, NOISE, 1.0, steer=False)
    assert unsteered.item() == pytest.approx(logs["reconstruction"].item())  # the controller's first weight is 0
    assert not loss.control.state.any()
    steered, _ = loss(Network(), X, NOISE, 1.0)
    weight = loss.control.state[1].item()
    assert weight > 0.1 and not loss.control.state.requires_grad
    assert steered.item() == pytest.approx(logs["reconstruction"].item() + weight * logs["kl"].item())


def test_geco_fits_a_learned_sigma_by_maximum_likelihood_and_the_networks_do_not_feel_it() -> None:
    def geco(network: Network, sigma: str | float) -> Tensor:
        control = KLControl(ResolvedKL(reconstruction_target=0.1), PIXELS, torch.device("cpu"))
        return ELBOLoss(elbo(sigma=sigma), control)(network, X, NOISE, 1.0)[0]

    learned, network = Network(math.log(0.7)), Network()
    one, other = geco(learned, "learned"), geco(network, 0.2)
    for a, b in zip(
        torch.autograd.grad(one, learned.outputs, retain_graph=True),
        torch.autograd.grad(other, network.outputs),
        strict=True,
    ):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b)
    error = (X - learned.outputs[0]).square().sum((1, 2, 3)).mean().item()
    (gradient,) = torch.autograd.grad(one, [learned.log_sigma])
    assert gradient.item() == pytest.approx(PIXELS - error / 0.7**2)  # of N·ln σ + error/(2σ²)
