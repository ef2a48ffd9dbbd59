"""The pilot's network: the VAE of each threshold, an image's own threshold alone, and no layer too narrow."""

from typing import Any

import pytest
import torch
from helpers.trainings import TRAIN, unresolved

from vae.compute.batches import to_pixels
from vae.pilot.network import PilotNetwork, averaged, can_average, narrow

ARCHITECTURES: list[dict[str, Any]] = [
    {},
    {"model.batch_norm": False},
    {"model.architecture": "residual", "model.blocks": 2, "model.attention": True},
    {"model.architecture": "residual", "model.batch_norm": False},
    {"model.architecture": "mlp"},
    {"model.architecture": "gated_mlp", "model.batch_norm": False},
    {"model.architecture": "gated_mlp"},
    {"model.architecture": "autoregressive"},
]
LEVELS = [{"objective.sigma": "pixel"}, {"objective.likelihood": "logistic_mixture"}]
X = to_pixels(TRAIN[:6], torch.device("cpu"))
NOISE = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def modulated(changes: dict[str, Any]) -> PilotNetwork:
    """In evaluation mode, its modulations drawn at random: at first they are 0."""
    network = PilotNetwork(unresolved(changes)).eval()
    generator = torch.Generator().manual_seed(1)
    for modulation in network.modulations:
        modulation.weight.data.normal_(0, 0.3, generator=generator)
    return network


@pytest.mark.parametrize("changes", ARCHITECTURES)
@torch.no_grad()
def test_it_starts_as_one_vae_for_all_thresholds(changes: dict[str, Any]) -> None:
    network = PilotNetwork(unresolved(changes)).eval()
    low, high = (network(X, NOISE, torch.full((6,), u)) for u in (-1.0, 1.0))
    for one, other, plain in zip(low, high, network.vae(X, NOISE), strict=True):
        assert torch.equal(one, other) and torch.equal(one, plain)


@pytest.mark.parametrize("changes", ARCHITECTURES)
@torch.no_grad()
def test_an_image_depends_on_its_own_threshold_alone(changes: dict[str, Any]) -> None:
    network = modulated(changes)
    u = torch.linspace(-1, 1, 6)
    among_others = network(X, NOISE, u)
    for index in range(6):
        alone = network(X[index : index + 1], NOISE[index : index + 1], u[index : index + 1])
        elsewhere = network(X[index : index + 1], NOISE[index : index + 1], u[index : index + 1] + 0.5)
        for of_all, of_one, of_another in zip(among_others, alone, elsewhere, strict=True):
            torch.testing.assert_close(of_all[index], of_one[0], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(of_one, of_another, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "widths"),
    [
        ({"model.widths": [6, 8]}, [6, 8]),  # never wider than the network itself
        ({"model.widths": [64, 256]}, [16, 64]),
        ({"model.widths": [256, 256], "model.latent_dim": 100}, [64, 100]),  # 2×2 places: 400 features for 100 latents
        ({"model.architecture": "mlp", "model.widths": [400, 400], "model.latent_dim": 50}, [200, 200]),
    ],
)
def test_it_is_a_quarter_as_wide_but_not_narrower_than_its_latents(changes: dict[str, Any], widths: list[int]) -> None:
    assert narrow(unresolved(changes)).model.widths == widths


def test_nothing_in_it_keeps_a_rate_up() -> None:
    p = narrow(unresolved({"model.mean_batch_norm": 0.5, "model.logvar_max": -1.0, "objective.sigma": "learned"}))
    network = PilotNetwork(p)
    assert network.vae.mean_norm is None and network.vae.log_sigma is None and p.model.logvar_max == 10
    assert PilotNetwork(unresolved({"model.prior": "mixture"})).vae.prior is None


PHOTOS: dict[str, Any] = {
    "data.source": "folder", "data.path": "photos", "data.image_size": [64, 32], "data.channels": 3,
    "model.widths": [32, 64, 128, 256],
}  # fmt: skip


def test_averages_come_with_the_layers_that_would_have_halved_the_images_left_out() -> None:
    p = narrow(unresolved(PHOTOS), 4)
    assert tuple(p.data.image_size) == (16, 8) and p.model.widths == [32, 64]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert averaged(x, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5] and averaged(x, 1) is x
    network = PilotNetwork(unresolved(PHOTOS), 2)
    output, mu, _ = network(torch.rand(2, 3, 32, 16), torch.zeros(2, 3), torch.zeros(2))
    assert output.shape == (2, 3, 32, 16) and mu.shape == (2, 3) and network.k == 2


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 4),  # 16×8 pixels and two convolutions
        ({"model.architecture": "mlp"}, 4),
        ({"model.widths": [32, 64]}, 1),
        ({"data.image_size": 16}, 2),
        ({"data.image_size": [66, 34]}, 2),  # of 4×4 pixels a row and a column would be cut off
        ({"model.architecture": "autoregressive"}, 1),
        ({"objective.likelihood": "bernoulli"}, 1),
    ],
)
def test_averages_leave_enough_of_images_and_network(changes: dict[str, Any], most: int) -> None:
    p = unresolved(PHOTOS | changes)
    assert [k for k in (1, 2, 4, 8, 16) if k == 1 or can_average(p, k)] == [k for k in (1, 2, 4) if k <= most]


@pytest.mark.parametrize("changes", LEVELS)
@pytest.mark.parametrize("architecture", ["conv", "autoregressive"])
def test_other_likelihoods_are_taken_for_a_gaussian_of_one_sigma(changes: dict[str, Any], architecture: str) -> None:
    plain, other = ({"model.architecture": architecture, **more} for more in ({}, changes))
    assert narrow(unresolved(other)) == narrow(unresolved(plain))
    assert PilotNetwork(unresolved(other)).decode(torch.zeros(2, 3), torch.zeros(2)).shape == (2, 1, 8, 8)
