"""The export for diffusers: its names and shapes, and, where it is installed, the same numbers."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import vae
from helpers.models import config, network
from helpers.trainings import CPU
from safetensors.torch import load_file
from torch import Tensor

from tasks import workspace
from vae import diffusers
from vae.config.errors import InputError
from vae.config.sections import Model
from vae.inference import tiled
from vae.models import saved
from vae.models.saved import Saved


def written(folder: Path = workspace.MODEL, attention: bool = True, blocks: int = 1, **more: Any) -> Saved:
    """A model whose weights are all random: branches that start at 0 would hide what they compute."""
    model = Model(
        architecture="autoencoder_kl", latent_shape=(8, 12, 4), widths=[8, 16], batch_norm=False, blocks=blocks,
        attention=attention,
    )  # fmt: skip
    made = config((3, 16, 24), model, latent_mean=[0.5, 0, 0, -0.5], latent_std=[2.0, 2.0, 1.0, 1.0], **more)
    vae_ = network(made).eval()
    with torch.no_grad():
        for weight in vae_.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    saved.save(folder, vae_, made)
    return saved.load(folder)


def names_of_diffusers() -> dict[str, tuple[int, ...]]:
    """Of AutoencoderKL(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4), from diffusers 0.42.1."""

    def convolution(name: str, out: int, into: int, side: int = 3) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def resnet(name: str, before: int, width: int) -> dict[str, tuple[int, ...]]:
        shortcut = convolution(f"{name}.conv_shortcut", width, before, 1) if before != width else {}
        return {
            **norm(f"{name}.norm1", before), **convolution(f"{name}.conv1", width, before),
            **norm(f"{name}.norm2", width), **convolution(f"{name}.conv2", width, width), **shortcut,
        }  # fmt: skip

    def attention(name: str, width: int) -> dict[str, tuple[int, ...]]:
        maps = {}
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            maps |= {f"{name}.{part}.weight": (width, width), f"{name}.{part}.bias": (width,)}
        return norm(f"{name}.group_norm", width) | maps

    found = {
        **convolution("encoder.conv_in", 8, 3),
        **resnet("encoder.down_blocks.0.resnets.0", 8, 8),
        **convolution("encoder.down_blocks.0.downsamplers.0.conv", 8, 8),
        **resnet("encoder.down_blocks.1.resnets.0", 8, 16),
        **norm("encoder.conv_norm_out", 16), **convolution("encoder.conv_out", 8, 16),
        **convolution("decoder.conv_in", 16, 4),
        **resnet("decoder.up_blocks.0.resnets.0", 16, 16), **resnet("decoder.up_blocks.0.resnets.1", 16, 16),
        **convolution("decoder.up_blocks.0.upsamplers.0.conv", 16, 16),
        **resnet("decoder.up_blocks.1.resnets.0", 16, 8), **resnet("decoder.up_blocks.1.resnets.1", 8, 8),
        **norm("decoder.conv_norm_out", 8), **convolution("decoder.conv_out", 3, 8),
        **convolution("quant_conv", 8, 8, 1), **convolution("post_quant_conv", 4, 4, 1),
    }  # fmt: skip
    for part in ("encoder", "decoder"):
        found |= attention(f"{part}.mid_block.attentions.0", 16)
        found |= resnet(f"{part}.mid_block.resnets.0", 16, 16) | resnet(f"{part}.mid_block.resnets.1", 16, 16)
    return found


def test_the_weights_have_the_names_and_shapes_of_diffusers(tmp_path: Path) -> None:
    diffusers.export(written(tmp_path / "model"), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / diffusers.WEIGHTS)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == names_of_diffusers()


def test_the_configuration_says_what_the_network_is(tmp_path: Path) -> None:
    model = written(tmp_path / "model", attention=False, blocks=2)
    diffusers.export(model, tmp_path / "out")
    found = json.loads((tmp_path / "out" / diffusers.CONFIG).read_text())
    assert found["_class_name"] == "AutoencoderKL"
    assert (found["block_out_channels"], found["layers_per_block"], found["norm_num_groups"]) == ([8, 16], 2, 8)
    assert (found["latent_channels"], found["sample_size"], found["mid_block_add_attention"]) == (4, 24, False)
    # of all channels together: (4 + 4 + 1 + 1)/4 within, and (0.25 + 0.25)/4 between them
    assert found["scaling_factor"] == pytest.approx(1 / math.sqrt(2.5 + 0.125), rel=1e-5)
    standardised = model.config.model_copy(update={"latent_mean": [0.0] * 4, "latent_std": [1.0] * 4})
    assert diffusers.scaling_factor(dataclasses.replace(model, config=standardised)) == 1


def test_the_command_exports_and_other_networks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written()
    done = vae("export", "out", "--format", "diffusers", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["scaling_factor"] == pytest.approx(0.617213, rel=1e-4)
    assert {file.name for file in Path("out").iterdir()} == {diffusers.CONFIG, diffusers.WEIGHTS}
    made = config((3, 8, 8), Model(latent_dim=3, widths=[4]))
    other = dataclasses.replace(saved.load(workspace.MODEL), config=made)
    with pytest.raises(InputError, match=r"its model\.architecture is conv"):
        diffusers.export(other, tmp_path / "other")


@pytest.mark.parametrize(("attention", "blocks"), [(True, 1), (False, 2)])
@torch.no_grad()
def test_diffusers_loads_it_and_computes_the_same(tmp_path: Path, attention: bool, blocks: int) -> None:
    theirs = pytest.importorskip("diffusers")
    ours = written(tmp_path / "model", attention, blocks)
    diffusers.export(ours, tmp_path / "out")
    loaded = theirs.AutoencoderKL.from_pretrained(tmp_path / "out").eval()
    for height, width in ((16, 24), (40, 32)):
        x = torch.rand(2, 3, height, width)
        moments = loaded.encode(2 * x - 1).latent_dist
        mu, logvar = ours.model.encode_map(x)
        torch.testing.assert_close(moments.mean, mu, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.logvar, logvar, rtol=1e-5, atol=1e-5)
        pictures: Tensor = loaded.decode(mu).sample
        torch.testing.assert_close((pictures + 1) / 2, ours.model.decode_map(mu), rtol=1e-5, atol=1e-5)
    assert loaded.config.scaling_factor == pytest.approx(diffusers.scaling_factor(ours))


def test_tiles_are_of_the_training_images(tmp_path: Path) -> None:
    model = written(tmp_path / "model").model
    assert tiled.factor(model) == 2
    mu, _ = tiled.encode(model, torch.rand(1, 3, 21, 50), CPU)
    assert mu.shape == (1, 4, 11, 25)
