"""The encoder as ONNX, for programs that need latents without PyTorch.

    images, uint8 (batch, H, W, C)  →  mu, logvar, float32 (batch, Z); of a map of latents (batch, c, h, w)

The images are as `vae.data.images.load` and the arrays of ingest have them; scaling to [0, 1] is part of the graph.
The steps before it (orientation, resizing) are described in the file's metadata, under `preprocess`.
"""

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vae.config.errors import InputError
from vae.config.files import writing, written_aside
from vae.models.saved import Saved
from vae.models.vae import VAE

OPSET = 18
TOLERANCE = 1e-3  # by which mu and logvar, of about 1 to 10, may differ from PyTorch's
PREPROCESS = (
    "First frame; EXIF orientation applied; {alpha}; {mode}{range}; the whole image resized to {height}×{width} "
    "pixels (Pillow, bicubic, antialiased){binarise}; uint8 (batch, {height}, {width}, {channels}), 0 to 255."
)


class _Encoder(nn.Module):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_map(images.permute(0, 3, 1, 2).float().div(255))


def export(saved: Saved, output: Path) -> float:
    """Writes the encoder, in fp32, and compares it with PyTorch on random images.

    Returns:
        The largest difference of any mu or logvar.

    Raises:
        InputError: its packages are not installed, the file cannot be written, or the two differ.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # needed by torch.onnx, whose own message is obscure
    except ModuleNotFoundError as error:
        raise InputError(f"ONNX needs the package {error.name}: pip install -e '.[onnx]'") from None

    channels, height, width = saved.config.image_shape
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    encoder = _Encoder(saved.model.cpu()).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it lists packages that are not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about PyTorch's internals
        program = torch.onnx.export(
            encoder,
            (torch.from_numpy(images[:2]),),  # two: a batch of one would become a constant of the graph
            input_names=["images"],
            output_names=["mu", "logvar"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "with dynamo=True a program is returned"
    program.model.metadata_props.update(
        {
            "preprocess": _preprocess(saved),
            "preprocessing": json.dumps(asdict(saved.config.preprocessing)),
            "weights.sha256": saved.sha256,
        }
    )
    with writing(output), written_aside(output) as aside:
        program.save(aside)
        difference = _difference(aside, encoder, images)
        if not difference <= TOLERANCE:  # written so that NaN is refused too
            raise InputError(f"{output} was not written: onnxruntime and PyTorch differ by {difference:.2g}")
    return difference


def _difference(file: Path, encoder: nn.Module, images: NDArray[np.uint8]) -> float:
    """The largest difference between the outputs of onnxruntime and PyTorch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    got = session.run(["mu", "logvar"], {"images": images})
    with torch.no_grad():
        expected = encoder(torch.from_numpy(images))
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(got, expected, strict=True))


def _preprocess(saved: Saved) -> str:
    made = saved.config.preprocessing
    return PREPROCESS.format(
        mode="grey" if made.channels == 1 else "RGB",
        alpha="transparency on white" if made.alpha == "white" else "transparency ignored",
        range="" if made.value_range is None else " ({:g} is black, {:g} is white)".format(*made.value_range),
        height=made.height,
        width=made.width,
        channels=made.channels,
        binarise="" if made.binarise == "none" else f"; then binarised ({made.binarise}): 0 or 255",
    )
