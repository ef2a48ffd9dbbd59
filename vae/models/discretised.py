"""Likelihoods of 8-bit pixels: the probability of a level is what a density has over its bin.

    P(x) = F((x + w/2 − m)/s) − F((x − w/2 − m)/s),  w = 1/255; black's bin reaches down to −∞, white's up to ∞

(Salimans 2017, "PixelCNN++", equation 2), x a level / 255. The 256 levels of a pixel sum to 1, so that −log₂ P of an
image is the length of a code for it. F is Gaussian or logistic; σ is its standard deviation, s = σ·√3/π if logistic.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

BIN = 1 / 255
LOGISTIC = math.sqrt(3) / math.pi  # scale of a logistic distribution of standard deviation 1

# An eighth of a bin: a mean in the middle of its bin then has 99.9% of the probability there, so that nothing is left
# to gain below it but ever steeper gradients.
SMALLEST_DISCRETISED_SIGMA = BIN / 8
LARGEST_SIGMA = 10.0  # as objective.sigma allows; a pixel of [0, 1] has no use for more


def gaussian(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """ln P of each pixel: the shape of x. By symmetry in the lower tail, where ln Φ keeps its digits."""
    distance, half = (x - mean) / sigma, 0.5 * BIN / sigma
    inner = -distance.abs()
    upper, lower = _log_normal_cdf(inner + half), _log_normal_cdf(inner - half)
    middle = upper + _log1mexp(torch.maximum(upper - lower, half))  # at least that, but for rounding
    black, white = _log_normal_cdf(distance + half), _log_normal_cdf(half - distance)
    return _with_open_ends(x, black, middle, white)


def logistic(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """ln P of each pixel: the shape of x. With F(u) = 1/(1 + e^−u), F(u) − F(l) = F(u)·F(−l)·(1 − e^(l − u))."""
    scale = LOGISTIC * sigma
    distance, half = (x - mean) / scale, 0.5 * BIN / scale
    black, white = functional.logsigmoid(distance + half), functional.logsigmoid(half - distance)
    return _with_open_ends(x, black, black + white + _log1mexp(2 * half), white)


def _with_open_ends(x: Tensor, black: Tensor, middle: Tensor, white: Tensor) -> Tensor:
    return torch.where(x < BIN / 2, black, torch.where(x > 1 - BIN / 2, white, middle))


def _log_normal_cdf(t: Tensor) -> Tensor:
    """ln Φ(t), which below 0 is ln ½erfcx(−t/√2) − t²/2. The gradient of `torch.special.log_ndtr` overflows there."""
    below, above = t.clamp_max(0) / math.sqrt(2), t.clamp_min(0) / math.sqrt(2)
    lower = (0.5 * torch.special.erfcx(-below)).log() - below.square()
    return torch.where(t < 0, lower, torch.log1p(-0.5 * torch.erfc(above)))


def _log1mexp(d: Tensor) -> Tensor:
    """ln(1 − e^−d), d > 0."""
    return (-torch.expm1(-d)).log()


def bounded_sigma(raw: Tensor, smallest: float) -> Tensor:
    """σ from a decoder's raw ln σ. A soft floor, ln σ = f + softplus(raw − f), so that a pixel that has become too sure
    of itself still has a gradient that leads back (as Rybkin 2021's code has it).
    """
    floor = math.log(smallest)
    return (floor + functional.softplus(raw - floor)).clamp_max(math.log(LARGEST_SIGMA)).exp()


def mixture_outputs(channels: int, components: int) -> int:
    """Of each component: its logit; a mean and ln σ for each channel; a coupling for each pair of channels."""
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def mixture(x: Tensor, output: Tensor, components: int) -> Tensor:
    """ln P of each pixel, its channels together, under K logistic components: (B, C, H, W) → (B, H, W).

    A component's mean of green is shifted by a·(red − ½), that of blue by b·(red − ½) + c·(green − ½), which is
    Salimans 2017, equation 3, for pixels of [0, 1] in place of [−1, 1]; a, b and c are within ±1.

    output: (B, `mixture_outputs`, H, W).
    """
    logits, means, sigmas, couplings = _parts(output, components)
    seen = x[:, None]
    shifted = [_shifted(means, couplings, seen, channel) for channel in range(x.shape[1])]
    inside = logistic(seen, torch.stack(shifted, 2), sigmas).sum(2)
    return torch.logsumexp(logits.log_softmax(1) + inside, 1)


def mixture_mean(output: Tensor, components: int) -> Tensor:
    """E[x] of each pixel: (B, `mixture_outputs`, …) → (B, C, …).

    The open bins gather what a component has beyond 0 and 1, hence its mean is ∫₀¹ (1 − F(y)) dy. Of coupled channels
    each follows the mean of those before it, which is exact where nothing lies beyond.
    """
    logits, means, sigmas, couplings = _parts(output, components)
    expected: list[Tensor] = []
    for channel in range(means.shape[2]):
        seen = torch.stack(expected, 2) if expected else means
        scale, location = LOGISTIC * sigmas[:, :, channel], _shifted(means, couplings, seen, channel)
        below = functional.softplus(location / scale) - functional.softplus((location - 1) / scale)
        expected.append((scale * below).clamp(0, 1))
    return (logits.softmax(1)[:, :, None] * torch.stack(expected, 2)).sum(1)


def mixture_start(channels: int, components: int, sigma: float) -> Tensor:
    """The output to start from: components evenly over [0, 1], all as wide as σ: (`mixture_outputs`,)."""
    each = torch.zeros(components, mixture_outputs(channels, 1) - 1)
    each[:, :channels] = ((torch.arange(components) + 0.5) / components)[:, None]
    each[:, channels : 2 * channels] = math.log(sigma)
    return torch.cat([torch.zeros(components), each.flatten()])


def _parts(output: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (B, K, …); means and σ (B, K, C, …); couplings (B, K, C·(C − 1)/2, …)."""
    channels = 1 if output.shape[1] == mixture_outputs(1, components) else 3
    logits, rest = output[:, :components], output[:, components:].unflatten(1, (components, -1))
    means, raw, couplings = rest.split([channels, channels, channels * (channels - 1) // 2], 2)
    return logits, means, bounded_sigma(raw, SMALLEST_DISCRETISED_SIGMA), couplings.tanh()


def _shifted(means: Tensor, couplings: Tensor, seen: Tensor, channel: int) -> Tensor:
    """A channel's mean, given the channels before it: (B, K, …)."""
    first = channel * (channel - 1) // 2
    shifts = [couplings[:, :, first + before] * (seen[:, :, before] - 0.5) for before in range(channel)]
    return means[:, :, channel] + sum(shifts)
