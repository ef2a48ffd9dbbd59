import itertools
import math

import pytest
import torch
from torch import nn

from vae.config.parameters import Parameters
from vae.losses.elbo import kl_per_latent
from vae.models.networks import GatedLinear
from vae.models.vae import LOGVAR_MIN, VAE, build, to_device

Shape = tuple[int, int, int]


def vae(shape: Shape, architecture: str = "conv", seed: int = 0, **changes: object) -> VAE:
    torch.manual_seed(seed)
    given = {"latent_dim": 5, "widths": [8, 12, 16], "batch_norm": True}
    return VAE(shape, architecture, **{**given, **changes})


def noise(images: int, model: VAE, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, model.latent_dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ["conv", "mlp"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11), (1, 28, 28), (3, 37, 50), (3, 256, 256)])
def test_output_has_the_shape_of_the_input(architecture: str, batch_norm: bool, shape: Shape) -> None:
    widths = [4] * min(8, min(shape[1:]).bit_length() - 1)  # as many as the parameters allow
    model = vae(shape, architecture, batch_norm=batch_norm, widths=widths)
    x = torch.rand(3, *shape)
    output, mu, logvar = model(x, noise(3, model))
    assert output.shape == x.shape
    assert mu.shape == logvar.shape == (3, 5)
    assert output.dtype == mu.dtype == logvar.dtype == torch.float32


@pytest.mark.parametrize("widths", [[4], [4, 6], [4, 6, 8]])
@pytest.mark.parametrize("architecture", ["conv", "mlp"])
def test_a_layer_for_each_width_and_its_mirror(architecture: str, widths: list[int]) -> None:
    model = vae((1, 8, 8), architecture, widths=widths)
    kinds = (nn.Conv2d,) if architecture == "conv" else (nn.Linear,)
    layers = [m for m in model.encoder if isinstance(m, kinds)]
    assert [layer.weight.shape[0] for layer in layers] == widths
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 2 * len(widths)
    bare = vae((1, 8, 8), architecture, widths=widths, batch_norm=False)
    assert not [m for m in bare.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


@pytest.mark.parametrize("ceiling", [10.0, 2.0, -3.0])
def test_logvar_stays_in_its_range(ceiling: float) -> None:
    model = vae((1, 8, 8), logvar_max=ceiling).eval()
    with torch.no_grad():
        model.posterior.weight.mul_(1e6)
        mu, logvar = model.encode(torch.rand(64, 1, 8, 8))
    assert logvar.min() == LOGVAR_MIN and logvar.max() == ceiling
    assert mu.abs().max() > 10  # only logvar is held
    assert torch.exp(0.5 * logvar).isfinite().all() and torch.exp(-logvar).isfinite().all()


def test_z_is_mean_plus_sigma_times_noise() -> None:
    model = vae((1, 8, 8)).eval()
    x, epsilon = torch.rand(4, 1, 8, 8), noise(4, vae((1, 8, 8)))
    with torch.no_grad():
        output, mu, logvar = model(x, epsilon)
        again = model.decode(mu + logvar.exp().sqrt() * epsilon)
        torch.testing.assert_close(output, again)
        assert not torch.allclose(output, model.decode(mu))


def test_weights_follow_the_seed_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build(Parameters(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["posterior.weight"], other["posterior.weight"])


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 64, 64), (3, 128, 128)])
@pytest.mark.parametrize("architecture", ["conv", "mlp", "autoregressive"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_activations_keep_their_scale_at_the_start(architecture: str, batch_norm: bool, shape: Shape) -> None:
    widths = [128, 64, 32] if architecture == "mlp" else [32] * (int(math.log2(shape[1])) - 1)
    model = vae(shape, architecture, latent_dim=16, widths=widths, batch_norm=batch_norm)
    x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, mu, logvar = model(x, noise(16, model))
    for values in (output, mu, logvar):
        assert 0.03 < values.std() < 3
        assert values.mean().abs() < 1.5


def test_every_weight_gets_a_gradient() -> None:
    for architecture, learned in itertools.product(("conv", "mlp"), (True, False)):
        model = vae((1, 12, 9), architecture, learned_sigma=learned, widths=[8, 8])
        output, mu, logvar = model(torch.rand(4, 1, 12, 9), noise(4, model))
        sigma = 1 if model.log_sigma is None else model.log_sigma.exp()
        (output.square().sum() * sigma + mu.square().sum() + logvar.exp().sum()).backward()
        for name, parameter in model.named_parameters():
            if name == "decoder.0.bias":  # batch norm follows it
                assert parameter.grad is None and not parameter.requires_grad
            else:
                assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_memory_order_changes_no_value() -> None:
    model = vae((3, 16, 16)).eval()
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        before = model(x, noise(4, model))
        after = to_device(model, torch.device("cpu"))(x, noise(4, model))
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in model.parameters() if w.dim() == 4)


def test_a_gated_layer_is_its_equation() -> None:
    layer = GatedLinear(3, 2)
    x = torch.randn(5, 3)
    weight, bias = layer.linear.weight, layer.linear.bias
    expected = (x @ weight[:2].T + bias[:2]) * torch.sigmoid(x @ weight[2:].T + bias[2:])
    torch.testing.assert_close(layer(x), expected)


def test_batch_norm_on_the_means_bounds_the_rate_from_below() -> None:
    """Zhu 2020: with the means' mean 0 and standard deviation γ, the rate is at least Z·γ²/2."""
    model = VAE((1, 8, 8), "gated_mlp", 4, [16], False, mean_batch_norm=0.6)
    assert model.mean_norm is not None and not model.mean_norm.weight.requires_grad
    mu, logvar = model.encode(torch.rand(256, 1, 8, 8))
    torch.testing.assert_close(mu.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(mu.std(0, correction=0), torch.full((4,), 0.6), atol=2e-3, rtol=0)
    assert float(kl_per_latent(mu, torch.zeros_like(logvar)).sum(1).mean().detach()) >= 4 * 0.6**2 / 2 * 0.99
