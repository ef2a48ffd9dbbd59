"""Frozen networks: from a file, from the extra, and what is refused."""

import os
import pickle
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from helpers.frozen import Small, saved, small_network
from torch import Tensor, nn

from vae.config.constants import EFFICIENTNET
from vae.config.errors import InputError
from vae.features.network import POOLED_SIDE, TAPS, check, file_of, is_installed, load

DEVICE = torch.device("cpu")
X = torch.rand(3, 1, 12, 8, generator=torch.Generator().manual_seed(0))


def test_a_network_from_a_file_gives_its_maps_of_grey_images_too(tmp_path: Path) -> None:
    path = small_network(tmp_path / "small.pt2")
    network = load(str(path), DEVICE)
    assert file_of(str(path)) == path
    assert not any(weight.requires_grad for weight in network.parameters())
    fine, coarse, pooled = network.maps(X)
    assert fine.shape == (3, 4, 6, 4) and coarse.shape == (3, 6, 3, 2)
    torch.manual_seed(0)
    expected = Small()(X.expand(-1, 3, -1, -1))
    torch.testing.assert_close([fine, coarse], list(expected))
    torch.testing.assert_close(network.pooled(X), coarse.mean((2, 3)))
    torch.testing.assert_close(pooled[..., 0, 0], network.pooled(X))


def test_a_network_without_maps_serves_alignment_alone(tmp_path: Path) -> None:
    path = tmp_path / "flat.pt2"
    network = load(str(saved(nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 8, 5)), path)), DEVICE)
    assert network.pooled(X).shape == (3, 5)
    with pytest.raises(InputError, match=r"flat\.pt2: objective\.perceptual needs maps"):
        network.maps(X)


@pytest.mark.parametrize("content", [b"", b"no network", b"PK\x03\x04"])
def test_what_is_no_network_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a network saved by torch\.export") as refused:
        load(str(path), DEVICE)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(Small(), tmp_path / "pickle.pt")
    with pytest.raises(InputError, match=r"not a network saved by torch\.export"):
        load(str(tmp_path / "pickle.pt"), DEVICE)


class Unpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ["RAN"]),)


def test_loading_runs_no_code_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even of one in which a part that PyTorch would unpickle is replaced."""
    path, ran = small_network(tmp_path / "small.pt2"), tmp_path / "ran"
    monkeypatch.setenv("RAN", str(ran))
    with ZipFile(path) as whole, ZipFile(tmp_path / "evil.pt2", "w") as evil:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("/sample_inputs/model.pt"):
                content = pickle.dumps(Unpickled())
            evil.writestr(name, content)
        assert any(name.endswith("/sample_inputs/model.pt") for name in whole.namelist())
    with pytest.raises(InputError, match=r"evil\.pt2: not a network"):
        load(str(tmp_path / "evil.pt2"), DEVICE)
    assert not ran.exists()


class WithConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) * torch.ones(4, 1, 1)  # type: ignore[no-any-return]


def test_constants_within_a_network_are_on_its_device(tmp_path: Path) -> None:
    path = saved(WithConstants(), tmp_path / "constants.pt2")
    assert load(str(path), torch.device("meta")).pooled(X.to("meta")).shape == (3, 4)


def test_images_that_a_network_does_not_take_are_named(tmp_path: Path) -> None:
    exported = torch.export.export(Small(), (torch.rand(2, 3, 12, 8),))
    torch.export.save(exported, tmp_path / "fixed.pt2")
    with pytest.raises(InputError, match=r"fixed\.pt2 does not take 3 RGB images of 12×8: .* any batch and image size"):
        load(str(tmp_path / "fixed.pt2"), DEVICE).pooled(X)


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"last": x.mean((2, 3))}


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"named\.pt2 gives dict; expected maps"):
        load(str(saved(Named(), tmp_path / "named.pt2")), DEVICE).pooled(X)


def test_a_network_is_tried_for_what_is_asked_of_it(tmp_path: Path) -> None:
    path = saved(nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 8, 5)), tmp_path / "flat.pt2")
    check(str(path), X, maps=False)
    with pytest.raises(InputError, match=r"perceptual needs maps"):
        check(str(path), X, maps=True)


def test_features_of_another_shape_are_named(tmp_path: Path) -> None:
    tokens = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.Flatten(2))
    with pytest.raises(InputError, match=r"tokens\.pt2 gives \(3, 5, 6\); expected maps"):
        load(str(saved(tokens, tmp_path / "tokens.pt2")), DEVICE).pooled(X)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"objective\.features = .*/none\.pt2: there is no such file"):
        load(str(tmp_path / "none.pt2"), DEVICE)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae.features.network.is_installed", lambda: False)
    with pytest.raises(InputError, match=r"needs the extra `features`: `make features` installs it"):
        load(EFFICIENTNET, DEVICE)


@pytest.mark.skipif(not is_installed(), reason="needs the extra `features`")
def test_efficientnet_gives_the_maps_of_its_blocks_and_their_gradient() -> None:
    network = load(EFFICIENTNET, DEVICE)
    x = torch.rand(2, 3, 112, 160, generator=torch.Generator().manual_seed(0), requires_grad=True)
    maps = network.maps(x)
    of_blocks = [(16, 56, 80), (24, 28, 40), (40, 14, 20), (112, 7, 10), (320, 4, 5)]
    assert [h.shape[1:] for h in maps] == [*of_blocks, (1280, 1, 1)] and len(of_blocks) == len(TAPS)
    square = torch.rand(1, 3, POOLED_SIDE, POOLED_SIDE)
    torch.testing.assert_close(network.maps(square)[-1][..., 0, 0], network.pooled(square))
    sum(h.square().mean() for h in maps).backward()
    assert x.grad is not None and bool(x.grad.any())
    assert network.maps(X)[0].shape[2:] == (84, 56)  # the shorter side is enlarged to 112


@pytest.mark.skipif(not is_installed(), reason="needs the extra `features`")
def test_pooled_features_are_those_of_the_original_network_with_its_batch_norms() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_name("efficientnet-lite0", image_size=POOLED_SIDE)
    original.load_state_dict(torch.load(file_of(EFFICIENTNET), weights_only=True))
    enlarged = nn.functional.interpolate(X, (POOLED_SIDE, POOLED_SIDE), mode="bilinear")
    in_bytes = 255 * enlarged.expand(-1, 3, -1, -1)
    expected = original.eval().extract_features((in_bytes - 127) / 128).mean((2, 3))
    found = load(EFFICIENTNET, DEVICE).pooled(X)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-5)
    assert found.shape == (3, 1280)
