"""How an image is prepared for a model; `vae.data.images` applies it."""

from dataclasses import dataclass

from vae.config.parameters import Parameters
from vae.config.sections import Alpha, ValueRange


@dataclass(frozen=True)
class Preprocessing:
    """Part of a model's `config.json`, so that new images are prepared like the training images.

    The last two are missing in models saved before there were such parameters.
    """

    height: int
    width: int
    channels: int
    binarise: str = "none"
    seed: int = 0
    value_range: ValueRange | None = None
    alpha: Alpha = "white"

    @classmethod
    def of(cls, parameters: Parameters) -> "Preprocessing":
        data = parameters.data
        return cls(*data.image_size, data.channels, data.binarise, parameters.seed, data.value_range, data.alpha)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C), as arrays of images have it."""
        return self.height, self.width, self.channels
