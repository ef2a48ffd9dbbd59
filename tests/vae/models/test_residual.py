"""Residual networks: any size of image, identity at first, attention by its equation, and checkpointing."""

import math
from typing import Any

import pytest
import torch
from helpers.trainings import TRAIN, params
from torch import nn

from vae.compute.batches import to_pixels
from vae.losses.elbo import elbo_terms
from vae.models.residual import ResidualBlock, SelfAttention
from vae.models.vae import VAE, build
from vae.training.state import TrainState

GROUP_NORM: dict[str, Any] = {"model.architecture": "residual", "model.batch_norm": False}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (3, 17, 40), (1, 13, 9), (3, 256, 200)])
@pytest.mark.parametrize("batch_norm", [True, False])
@torch.no_grad()
def test_images_of_any_size_come_back_in_theirs(shape: tuple[int, int, int], batch_norm: bool) -> None:
    model = VAE(shape, "residual", 5, [6, 12, 8], batch_norm, blocks=2, attention=True).eval()
    output, mu, logvar = model(torch.rand(2, *shape), torch.zeros(2, 5))
    assert output.shape == (2, *shape) and mu.shape == logvar.shape == (2, 5)


@pytest.mark.parametrize("blocks", [1, 3])
def test_each_scale_has_its_blocks_and_the_lowest_its_attention(blocks: int) -> None:
    model = VAE((3, 32, 32), "residual", 4, [8, 16, 32], True, blocks=blocks, attention=True)
    for part in (model.encoder, model.decoder):
        widths = [m.last.out_channels for m in part.modules() if isinstance(m, ResidualBlock)]
        assert sorted(widths) == [width for width in (8, 16, 32) for _ in range(blocks)]
        assert [m.last.out_channels for m in part.modules() if isinstance(m, SelfAttention)] == [32]


@torch.no_grad()
def test_branches_start_at_zero() -> None:
    """So that a deep network starts as a shallow one."""
    shallow, deep = (build(params({**GROUP_NORM, "model.blocks": blocks})).eval() for blocks in (1, 4))
    for part in ("encoder", "decoder"):
        one, other = (
            [m for m in getattr(model, part) if not isinstance(m, ResidualBlock)] for model in (shallow, deep)
        )
        assert [type(m) for m in one] == [type(m) for m in other]
    blocks = [m for m in deep.modules() if isinstance(m, ResidualBlock)]
    for block in blocks:
        x = torch.randn(2, block.last.in_channels, 4, 4)
        assert torch.equal(block(x), x)
    model = VAE((1, 16, 16), "residual", 4, [8, 16], True, attention=True)
    (attention,) = (m for m in model.encoder.modules() if isinstance(m, SelfAttention))
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(attention(x), x)


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (64, 1), (128, 2), (192, 3), (100, 2), (67, 67)])
@torch.no_grad()
def test_attention_is_softmax_of_queries_and_keys(width: int, heads: int) -> None:
    attention = SelfAttention(width, batch_norm=False).eval()
    assert attention.heads == heads
    x = torch.randn(2, width, 3, 2, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.projection(attention.norm(x)).flatten(2).double().chunk(3, 1)
    found = torch.empty_like(q)
    size = width // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.einsum("bfi,bfj->bij", q[:, part], k[:, part]) / math.sqrt(size)
        found[:, part] = torch.einsum("bij,bfj->bfi", scores.softmax(-1), v[:, part])
    expected = x + attention.last(found.float().view_as(x))
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "groups"), [(4, 1), (32, 8), (128, 32), (512, 32), (100, 25), (3, 1), (34, 2)])
def test_groups_are_of_four_channels_or_more(width: int, groups: int) -> None:
    (norm, *_) = ResidualBlock(width, batch_norm=False).branch
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups


def test_checkpointing_changes_no_bit_of_a_gradient() -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        p = params({**GROUP_NORM, "model.blocks": 2, "train.gradient_checkpointing": checkpointing})
        model = TrainState(p, TRAIN, torch.device("cpu"), None).model
        blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
        assert {block.checkpointing for block in blocks} == {checkpointing}
        for block in blocks:
            nn.init.normal_(block.last.weight, generator=torch.Generator().manual_seed(0))
        x = to_pixels(TRAIN[:4], torch.device("cpu"))
        terms = elbo_terms(p.elbo, model, x, torch.ones(4, p.model.latent_dim), None)
        (terms.distortion + terms.rate).backward()
        return [weight.grad for weight in model.parameters() if weight.grad is not None]

    kept, again = gradients(False), gradients(True)
    assert len(kept) == len(again) > 20
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
