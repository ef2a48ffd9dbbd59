"""Maps of latents: one network for images of all sizes, channels as units, and what the parameters refuse."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.parameters import parse
from helpers.trainings import assert_same_bits, interrupted, params, run

from vae.config.errors import InputError
from vae.config.sections import Model
from vae.models.vae import VAE, build

MAP: dict[str, Any] = {"model.architecture": "residual", "model.latent_dim": 16, "model.latent_shape": [2, 2, 3]}


def network(batch_norm: bool = True, attention: bool = True, shape: tuple[int, int, int] = (3, 16, 16)) -> VAE:
    latents = (shape[1] // 4, shape[2] // 4, 5)
    return VAE(
        shape, "residual", math.prod(latents), [6, 12], batch_norm, attention=attention, latent_shape=latents
    ).eval()  # fmt: skip


@torch.no_grad()
def test_a_vector_of_latents_is_the_map_flattened() -> None:
    model, x = network(), torch.rand(2, 3, 16, 16)
    for flat, spread in zip(model.encode(x), model.encode_map(x), strict=True):
        assert spread.shape == (2, 5, 4, 4) and torch.equal(flat, spread.flatten(1)) and flat.shape == (2, 80)
    z = torch.randn(2, 80)
    assert torch.equal(model.decode(z), model.decode_map(z.view(2, 5, 4, 4))) and model.decode(z).shape == x.shape
    assert (model.units, model.places, model.latent_dim) == (5, 16, 80)


@pytest.mark.parametrize("batch_norm", [True, False])
@torch.no_grad()
def test_the_same_weights_encode_and_decode_images_of_other_sizes(batch_norm: bool) -> None:
    small, large = network(batch_norm), network(batch_norm, shape=(3, 40, 24))
    large.load_state_dict(small.state_dict())  # no weight knows the size
    x = torch.rand(2, 3, 40, 24)
    mu, logvar = small.encode_map(x)
    assert mu.shape == logvar.shape == (2, 5, 10, 6)
    assert torch.equal(mu.flatten(1), large.encode(x)[0])
    assert torch.equal(small.decode_map(mu), large.decode(mu.flatten(1)))


@torch.no_grad()
def test_where_nothing_looks_far_a_shifted_image_gives_a_shifted_map() -> None:
    """Without attention, and by batch norm, whose statistics are not those of the image."""
    model, x = network(attention=False), torch.rand(1, 3, 64, 64)
    mu, _ = model.encode_map(x)
    shifted, _ = model.encode_map(x.roll((8, 4), (2, 3)))
    reach = slice(5, -5)
    torch.testing.assert_close(shifted[:, :, reach, reach], mu.roll((2, 1), (2, 3))[:, :, reach, reach])


def test_latent_dim_follows_from_the_shape() -> None:
    assert Model(architecture="residual", latent_shape=(4, 4, 3)).latent_dim == 48
    p = parse({"model.architecture": "residual", "model.latent_shape": [4, 4, 3]})
    assert (p.model.latent_dim, p.model.latent_shape, p.model.units) == (48, (4, 4, 3), 3)
    again = type(p).model_validate(p.model_dump())
    assert again == p and Model.model_validate_json(p.model.model_dump_json()) == p.model
    assert Model(latent_dim=7).units == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.architecture": "conv"}, "needs model.architecture = residual or autoencoder_kl; it is conv"),
        ({"model.latent_dim": 5}, "latent_dim = 5, but latent_shape = [4, 4, 3] has 48 latents"),
        ({"model.latent_shape": [8, 8, 3]}, "set it to [4, 4, 3], or give fewer widths"),
        ({"model.latent_shape": [2, 2, 3]}, "set it to [4, 4, 3], or give more widths"),
        ({"model.latent_shape": [4, 2, 3]}, "set it to [4, 4, 3]"),
        ({"model.latent_shape": [4, 4]}, "[height, width, channels]"),
        ({"model.latent_shape": [4, 4, 0]}, "[height, width, channels]"),
        ({"model.latent_shape": [512, 512, 4]}, "at most 262,144"),
        ({"data.image_size": [16, 18]}, "multiples of 4; it is 16×18"),
        ({"model.prior": "flow"}, "model.prior = flow"),
        ({"train.aggressive_encoder": True}, "train.aggressive_encoder = true"),
        ({"preflight.latent_dims": True}, "preflight.latent_dims = true"),
        ({"model.latent_shape": None, "model.latent_dim": 5000}, "latent_dim = 5000 is more than 4,096"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse({"model.architecture": "residual", "model.latent_shape": [4, 4, 3], **changes})
    assert said in str(refused.value)


def test_large_images_have_as_many_latents_as_others_use() -> None:
    p = parse(
        {
            "data.image_size": 512, "data.channels": 3, "model.architecture": "residual", "model.widths": [8, 8, 8],
            "model.latent_shape": [64, 64, 4],
        }
    )  # fmt: skip
    assert p.model.latent_dim == 16_384 and build(p).latent_map == (4, 64, 64)


LIKE_DIFFUSERS: dict[str, Any] = {
    "model.architecture": "autoencoder_kl", "model.batch_norm": False, "model.latent_shape": [4, 4, 3],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.latent_shape": None}, "needs model.latent_shape, such as [4, 4, 4]"),
        ({"model.batch_norm": True}, "model.architecture = autoencoder_kl: it has group norm; set it to false"),
        ({"model.latent_shape": [2, 2, 3]}, "set it to [4, 4, 3], or give more widths"),
        ({"objective.sigma": "pixel"}, "objective.sigma = pixel"),
        ({"objective.likelihood": "bernoulli"}, "objective.likelihood = bernoulli"),
        ({"model.mean_batch_norm": 0.5}, "model.mean_batch_norm = 0.5"),
        ({"model.widths": [8] * 6, "model.latent_shape": [1, 1, 3]}, "halves the image 5 times"),
        ({"model.widths": [8] * 5, "model.latent_shape": [1, 1, 3]}, "nothing of an image in one place"),
    ],
)
def test_what_the_network_of_diffusers_has_not_is_refused(changes: dict[str, Any], said: str) -> None:
    base = {"data.image_size": 16, "model.widths": [8, 8, 8], **LIKE_DIFFUSERS}
    assert parse(base).model.factor == 4
    with pytest.raises(InputError) as refused:
        parse(base | changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "more",
    [
        {}, {"model.batch_norm": False}, {"model.mean_batch_norm": 0.5},
        {**LIKE_DIFFUSERS, "model.latent_shape": [4, 4, 3], "model.attention": True},
    ],
)  # fmt: skip
def test_a_training_counts_channels_and_repeats_to_the_bit(more: dict[str, Any], tmp_path: Path) -> None:
    p = params(MAP | more)
    one = run(p)
    assert_same_bits(one, interrupted(p, tmp_path / "state.pt", [6], [2]))
    assert all(len(row) == 3 for row in one.kl_per_latent) and len(one.train.kl_per_latent) == 3
    assert one.train.places == p.model.latent_dim // 3 and one.train.aggregate_covariance.shape == (3, 3)
    assert one.train.rate == pytest.approx(one.train.kl_per_latent.sum())
    assert one.history[-1]["valid/mse"] < one.history[0]["valid/mse"]


def test_checkpointing_changes_no_bit() -> None:
    kept, again = (run(params(MAP | LIKE_DIFFUSERS | {"train.gradient_checkpointing": on})) for on in (False, True))
    assert_same_bits(kept, again)
