"""p(x|z) against PyTorch's distributions."""

import math

import pytest
import torch
from helpers.parameters import Changes
from helpers.trainings import params
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributions

from vae.config.constants import SMALLEST_SIGMA
from vae.models.discretised import SMALLEST_DISCRETISED_SIGMA
from vae.models.likelihood import Likelihood, gaussian_log_prob, known_likelihood, optimal_sigma, squared_error

KIND = "objective.likelihood"


def images(seed: int = 0) -> tuple[Tensor, Tensor]:
    """x in [0, 1] and a decoder's output, (6, 3, 4, 5) each."""
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(6, 3, 4, 5, generator=random, dtype=torch.float64)
    return x, torch.randn(6, 3, 4, 5, generator=random, dtype=torch.float64)


@settings(deadline=None)
@given(st.floats(0.002, 5), st.integers(0, 3))
def test_gaussian_log_prob_is_that_of_torch(sigma: float, seed: int) -> None:
    x, output = images(seed)
    expected = distributions.Normal(output, sigma).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Likelihood("gaussian", sigma).log_prob(x, output), expected)
    variance = torch.tensor(sigma**2, dtype=torch.float64)
    torch.testing.assert_close(gaussian_log_prob(squared_error(x, output), 60, variance), expected)


@pytest.mark.parametrize("binary", [True, False])
def test_bernoulli_log_prob_is_that_of_torch(binary: bool) -> None:
    x, output = images()
    x = x.round() if binary else x  # of grey pixels it is the cross-entropy
    bernoulli = distributions.Bernoulli(logits=output, validate_args=binary)
    torch.testing.assert_close(Likelihood("bernoulli").log_prob(x, output), bernoulli.log_prob(x).flatten(1).sum(1))
    torch.testing.assert_close(Likelihood("bernoulli").mean(output), 1 / (1 + (-output).exp()))
    assert Likelihood("gaussian", 1.0).mean(output) is output


def test_the_optimal_sigma_is_the_root_of_the_error_down_to_the_rounding_of_grey_levels() -> None:
    assert optimal_sigma(0.0) == SMALLEST_SIGMA == pytest.approx(1 / (255 * math.sqrt(12)))
    assert optimal_sigma(0.04) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "log_sigma", "known"),
    [
        ({}, None, None),
        ({"objective.likelihood": "bernoulli"}, None, Likelihood("bernoulli")),
        ({"objective.sigma": 0.3}, None, Likelihood("gaussian", 0.3)),
        ({"objective.sigma": "learned"}, math.log(0.2), Likelihood("gaussian", pytest.approx(0.2))),
        ({"objective.sigma": "learned"}, -50.0, Likelihood("gaussian", SMALLEST_SIGMA)),
        ({"objective.sigma": "pixel"}, None, Likelihood("gaussian")),
        ({KIND: "logistic_mixture"}, None, Likelihood("logistic_mixture", components=10)),
        ({KIND: "discretised_gaussian"}, None, None),
        ({KIND: "discretised_gaussian", "objective.sigma": 0.3}, None, Likelihood("discretised_gaussian", 0.3)),
        (
            {KIND: "discretised_gaussian", "objective.sigma": "learned"},
            -50.0,
            Likelihood("discretised_gaussian", SMALLEST_DISCRETISED_SIGMA),
        ),
    ],
)
def test_what_is_known_unmeasured(changes: Changes, log_sigma: float | None, known: object) -> None:
    log = None if log_sigma is None else torch.tensor(log_sigma, dtype=torch.float64, requires_grad=True)
    assert known_likelihood(params(changes).elbo, log) == known
