"""Probabilities of 8-bit levels against SciPy, in float64, and what makes them usable in float32."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vae.models import discretised
from vae.models.likelihood import Likelihood, bits_per_dim, gaussian_log_prob, smallest_sigma, squared_error

LEVELS = torch.arange(256, dtype=torch.float64) / 255
KINDS = {"discretised_gaussian": discretised.gaussian, "discretised_logistic": discretised.logistic}


def expected(kind: str, levels: Tensor, mean: Tensor, sigma: Tensor) -> np.ndarray:
    """P by the difference of two CDFs, whichever tail has more digits: of each level, (…)."""
    x, m, s = (part.double().numpy() for part in torch.broadcast_tensors(levels, mean, sigma))
    name = "norm" if kind == "discretised_gaussian" else "logistic"
    density = getattr(scipy.stats, name)(m, s if name == "norm" else s * math.sqrt(3) / math.pi)
    low = np.where(x < 0.5 / 255, -np.inf, x - 0.5 / 255)
    high = np.where(x > 254.5 / 255, np.inf, x + 0.5 / 255)
    return np.where(x > m, density.sf(low) - density.sf(high), density.cdf(high) - density.cdf(low))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [discretised.SMALLEST_DISCRETISED_SIGMA, 0.003, 0.1, 1.0, discretised.LARGEST_SIGMA])
@pytest.mark.parametrize("mean", [-3.0, -0.01, 0.0, 0.3, 0.5, 128 / 255, 0.999, 1.0, 1.7])
def test_levels_have_their_share_of_the_density_and_sum_to_1(kind: str, sigma: float, mean: float) -> None:
    m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    found = KINDS[kind](LEVELS, m, s)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-9)
    by_hand = expected(kind, LEVELS, m, s)
    np.testing.assert_allclose(found.exp().numpy(), by_hand, rtol=1e-6, atol=1e-14)
    single = KINDS[kind](LEVELS.float(), m.float(), s.float())
    assert single.isfinite().all() and single.double().exp().sum().item() == pytest.approx(1, abs=1e-4)
    likely = torch.from_numpy(by_hand) > 1e-30
    # The two tails' difference, 1/(255σ), has its rounding relative to 1.
    torch.testing.assert_close(single.double()[likely], found[likely], rtol=1e-4, atol=3e-4 * max(sigma, 1))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.floats(-1, 2), st.floats(math.log(1 / 2040), math.log(10)))
def test_the_levels_of_any_pixel_sum_to_1(kind: str, mean: float, log_sigma: float) -> None:
    m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(log_sigma, dtype=torch.float64).exp()
    assert KINDS[kind](LEVELS, m, s).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_a_known_value() -> None:
    half_bin = torch.tensor(0.5 / 255)
    within_one_sigma = discretised.gaussian(torch.tensor(100 / 255), torch.tensor(100 / 255), half_bin)
    assert within_one_sigma.exp().item() == pytest.approx(0.682689, abs=1e-4)
    black = Likelihood("discretised_gaussian", 0.1).log_prob(
        torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5 / 255)
    )
    assert black.item() == pytest.approx(4 * math.log(0.5), abs=1e-5)  # its bin ends at the mean
    assert bits_per_dim(black.item(), 4) == pytest.approx(1)


def test_where_sigma_is_wide_and_the_ends_far_it_is_the_density_times_the_width_of_a_bin() -> None:
    random = torch.Generator().manual_seed(0)
    mean = 0.5 + 0.05 * torch.randn(4, 3, 5, 6, generator=random, dtype=torch.float64)
    x = (255 * (mean + 0.05 * torch.randn(mean.shape, generator=random)).clamp(0.2, 0.8)).round() / 255
    density = gaussian_log_prob(squared_error(x, mean), 90, 0.05**2) - 90 * math.log(255)
    found = Likelihood("discretised_gaussian", 0.05).log_prob(x, mean)
    torch.testing.assert_close(found, density, rtol=0, atol=0.05)
    assert not torch.allclose(found, density + 1, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["gaussian", *KINDS])
def test_sigma_of_a_channel_or_a_pixel_is_that_of_each_by_itself(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (4, 3, 5, 6), generator=random) / 255
    mean, sigmas = torch.rand(x.shape, generator=random), (0.05, 0.2, 0.7)
    each = [Likelihood(kind, s).log_prob(x[:, [c]], mean[:, [c]]) for c, s in enumerate(sigmas)]  # type: ignore[arg-type]
    channel = Likelihood(kind, sigmas)  # type: ignore[arg-type]
    torch.testing.assert_close(channel.log_prob(x, mean), sum(each))
    pixel = Likelihood(kind)  # type: ignore[arg-type]
    floor = math.log(smallest_sigma(kind))
    raw = floor + (torch.tensor(sigmas).log() - floor).expm1().log()  # the inverse of the soft floor
    raw = raw.view(-1, 1, 1).expand_as(x)
    output = torch.cat([mean, raw], 1)
    torch.testing.assert_close(pixel.log_prob(x, output), channel.log_prob(x, mean))
    assert pixel.outputs(3) == 6 and channel.outputs(3) == 3
    torch.testing.assert_close(pixel.mean(output), mean)
    torch.testing.assert_close(pixel.mean(output), channel.mean(mean))


def test_the_floor_of_a_decoders_sigma_is_soft_and_the_ceiling_is_10() -> None:
    raw = torch.tensor([-1e4, -30.0, math.log(0.2), 50.0, 1e4], requires_grad=True)
    sigma = discretised.bounded_sigma(raw, 0.001)
    torch.testing.assert_close(sigma.detach(), torch.tensor([0.001, 0.001, 0.201, 10, 10]), rtol=1e-3, atol=0)
    sigma.log().sum().backward()
    assert raw.grad is not None and raw.grad[2] > 0.99
    just_below = torch.tensor(math.log(0.001) - 3.0, requires_grad=True)
    discretised.bounded_sigma(just_below, 0.001).log().backward()
    assert just_below.grad is not None and just_below.grad > 0.04


MIXTURES = [(channels, components) for channels in (1, 3) for components in (1, 4)]


def drawn(channels: int, components: int, seed: int = 0) -> Tensor:
    """The output for 3 images of 2×2 pixels, float64: means mostly in [0, 1], σ from a fifth of a bin to 1."""
    random = torch.Generator().manual_seed(seed)
    output = torch.randn(
        3, discretised.mixture_outputs(channels, components), 2, 2, generator=random, dtype=torch.float64
    )
    each = output[:, components:].unflatten(1, (components, -1))  # a view
    each[:, :, :channels] = 0.5 + 0.4 * each[:, :, :channels]
    each[:, :, channels : 2 * channels] = -3 + 2 * each[:, :, channels : 2 * channels]
    return output


def by_components(x: np.ndarray, output: Tensor, image: int, row: int, column: int, components: int) -> float:
    """P of one pixel's channels, x: (C,), written out."""
    channels, total = len(x), 0.0
    numbers = output[image, :, row, column].numpy()
    weights = np.exp(numbers[:components]) / np.exp(numbers[:components]).sum()
    for k, own in enumerate(numbers[components:].reshape(components, -1)):
        means, floor = own[:channels].copy(), math.log(1 / 2040)
        sigmas = np.exp(floor + np.log1p(np.exp(own[channels : 2 * channels] - floor))).clip(max=10)
        if channels == 3:
            a, b, c = np.tanh(own[6:])
            means[1] += a * (x[0] - 0.5)
            means[2] += b * (x[0] - 0.5) + c * (x[1] - 0.5)
        p = weights[k]
        for channel in range(channels):
            parts = (torch.tensor(float(value)).double() for value in (x[channel], means[channel], sigmas[channel]))
            p *= expected("discretised_logistic", *parts)
        total += p
    return float(total)


@pytest.mark.parametrize(("channels", "components"), MIXTURES)
def test_a_mixture_is_the_sum_of_its_components(channels: int, components: int) -> None:
    output = drawn(channels, components)
    random = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (3, channels, 2, 2), generator=random).double() / 255
    x[0, :, 0, 0], x[0, :, 1, 1] = 0, 1
    found = discretised.mixture(x, output, components)
    for image, row, column in itertools.product(range(3), range(2), range(2)):
        p = by_components(x[image, :, row, column].numpy(), output, image, row, column, components)
        assert found[image, row, column].item() == pytest.approx(math.log(max(p, 1e-300)), rel=1e-6), (
            image,
            row,
            column,
        )
    likelihood = Likelihood("logistic_mixture", components=components)
    torch.testing.assert_close(likelihood.log_prob(x, output), found.sum((1, 2)))


@pytest.mark.parametrize("components", [1, 5])
def test_the_levels_of_a_grey_mixture_sum_to_1(components: int) -> None:
    output = drawn(1, components)
    levels = LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    for image in output:
        total = discretised.mixture(levels, image.expand(256, -1, -1, -1), components).exp().sum(0)
        torch.testing.assert_close(total, torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("components", [1, 3])
def test_each_channel_of_a_mixture_sums_to_1_given_those_before_it(components: int) -> None:
    """Σ over blue of P(r, g, b) does not depend on blue's parameters, nor does that over green and blue on green's."""
    output, other = drawn(3, components)[:1], drawn(3, components, seed=7)[:1]

    def joint(red: float, green: float, output: Tensor) -> Tensor:
        x = torch.empty(256, 3, 2, 2, dtype=torch.float64)
        x[:, 0], x[:, 1], x[:, 2] = red, green, LEVELS.view(-1, 1, 1)
        return discretised.mixture(x, output.expand(256, -1, -1, -1), components).exp().sum(0)

    def exchanged(*places: int) -> Tensor:
        mixed = output.clone()
        mine, theirs = (part[:, components:].unflatten(1, (components, -1)) for part in (mixed, other))
        for place in places:
            mine[:, :, place] = theirs[:, :, place]
        return mixed

    # of a component: means 0 to 2, ln σ 3 to 5, couplings red to green 6, red to blue 7, green to blue 8
    of_blue, of_both = exchanged(2, 5, 7, 8), exchanged(1, 2, 4, 5, 6, 7, 8)
    for red, green in ((0.0, 1.0), (0.4, 120 / 255)):
        torch.testing.assert_close(joint(red, green, of_blue), joint(red, green, output))
    red = 100 / 255
    sums = [sum(joint(red, float(green), made) for green in LEVELS) for made in (output, of_both)]
    torch.testing.assert_close(sums[0], sums[1])
    assert isinstance(sums[0], Tensor) and sums[0].min() > 0 and sums[0].max() < 1


@pytest.mark.parametrize("components", [1, 4])
def test_the_picture_of_a_grey_mixture_is_its_mean(components: int) -> None:
    output = drawn(1, components)
    levels = LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    for image in output:
        p = discretised.mixture(levels, image.expand(256, -1, -1, -1), components).exp()
        mean = (levels[:, 0] * p).sum(0)
        found = Likelihood("logistic_mixture", components=components).mean(image[None])
        torch.testing.assert_close(found[0, 0], mean, rtol=0, atol=0.5 / 255)


def test_the_picture_of_coupled_channels_is_the_mean_where_all_is_within_the_range() -> None:
    output = torch.zeros(1, 10, dtype=torch.float64)
    output[0, 1:4] = torch.tensor([0.6, 0.4, 0.5])  # means
    output[0, 4:7] = math.log(0.02)
    output[0, 7:] = torch.tensor([0.5, -0.3, 0.8]).atanh()
    green = 0.4 + 0.5 * 0.1
    blue = 0.5 - 0.3 * 0.1 + 0.8 * (green - 0.5)
    found = Likelihood("logistic_mixture", components=1).mean(output)
    torch.testing.assert_close(found, torch.tensor([[0.6, green, blue]], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "likelihood",
    [
        Likelihood("gaussian"),
        Likelihood("discretised_gaussian", 0.002),
        Likelihood("discretised_gaussian"),
        Likelihood("discretised_logistic"),
        Likelihood("logistic_mixture", components=3),
    ],
)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e2, 1e6])
def test_values_and_gradients_are_finite_whatever_the_output(
    likelihood: Likelihood, channels: int, size: float
) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (4, channels, 6, 6), generator=random) / 255
    x[0], x[1] = 0, 1
    output = size * torch.randn(4, likelihood.outputs(channels), 6, 6, generator=random)
    output.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = likelihood.log_prob(x, output)
    assert found.isfinite().all() and found.dtype == torch.float32
    found.sum().backward()
    assert output.grad is not None and output.grad.isfinite().all() and output.grad.any()
    assert likelihood.mean(output).isfinite().all() and likelihood.mean(output).shape == x.shape


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_float64(kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (400,), generator=random) / 255
    start = x + 0.1 * torch.randn(400, generator=random), -1 - 3 * torch.rand(400, generator=random)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        mean, log_sigma = (part.to(dtype).clone().requires_grad_() for part in start)
        KINDS[kind](x.to(dtype), mean, log_sigma.exp()).sum().backward()
        assert mean.grad is not None and log_sigma.grad is not None
        gradients.append(torch.stack([mean.grad, log_sigma.grad]).double())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_a_mixture_starts_as_wide_as_the_mean_images_error_and_evenly() -> None:
    for channels, components in MIXTURES:
        likelihood = Likelihood("logistic_mixture", components=components)
        start = likelihood.start(channels, 0.3)
        assert start is not None and start.shape == (likelihood.outputs(channels),)
        mean = likelihood.mean(start[None])
        torch.testing.assert_close(mean, torch.full((1, channels), 0.5), rtol=0, atol=1e-5)
        assert math.sqrt(np.exp(2 * start.numpy()[components:].reshape(components, -1)[0, channels])) == pytest.approx(
            0.3
        )
    assert Likelihood("gaussian", 0.3).start(3, 0.3) is None and Likelihood("bernoulli").start(3, 0.3) is None
