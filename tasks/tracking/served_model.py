"""The model as MLflow serves it: images in, latents, reconstructions or scores out. Loads no pickles."""

import base64
import binascii
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel
from PIL import Image

from vae.data.images import UnusableImage, load, scaled
from vae.inference import generate, scoring
from vae.inference.grids import as_bytes
from vae.metrics import measurement
from vae.models import saved
from vae.priors.standard import StandardNormal

TASKS = ("encode", "reconstruct", "score", "sample")
MOST_SAMPLES = 10_000


class ServedVAE(PythonModel):
    """`predict(images, params={"task": …})`, with images of any size and kind, as one of

    - uint8 (N, H, W, C) or (N, H, W), grey, RGB or RGBA; over HTTP nested lists of integers from 0 to 255; where the
      model was trained with `data.value_range`, numbers of that range;
    - image files as base64 strings;
    - a table with one column of either, for arrays of different sizes.

    Each is brought to the size and channels of the training images in the same way as by ingest.

    encode: a table with mu_j and logvar_j of q(z|x); of a map of latents, mu and logvar as float32 (N, 2, c, h, w).
    reconstruct: the mean of p(x|z = mu) at the size of the training images: uint8 (N, H, W, C), or, if all images
        were files, PNG files as base64 strings.
    score: a table with `elbo` and `score` = −elbo, in nats (the higher the score, the more unusual the image), and
        `percentile`: the percentage of validation images that scored lower, if the model has those scores.
    sample: `count` new pictures, uint8 (count, H, W, C), with z from `prior`: `fitted` to the latents after training,
        or `standard`, N(0, I); the same `seed` gives the same pictures. The images are not looked at.
    """

    def load_context(self, context: Any) -> None:
        self.saved = saved.load(Path(context.artifacts["vae"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        task = (params or {}).get("task", "encode")
        if task not in TASKS:
            raise refused(f"task = {task!r}; expected one of {', '.join(TASKS)}")
        if task == "sample":
            return self._sampled({"count": 16, "prior": "fitted", "seed": 0} | (params or {}))
        rows = list(_rows(model_input))
        images, compute = self.prepared(rows), self.saved.compute()
        if task == "reconstruct":
            copies = generate.reconstruct(self.saved.model, images, self.saved.likelihood, compute)
            return [_as_png(copy) for copy in copies] if all(isinstance(row, str) for row in rows) else copies
        if task == "score":
            scores = scoring.scores(self.saved, images, compute)
            table = pd.DataFrame({"elbo": -scores, "score": scores})
            ranks = scoring.ranks(self.saved, scores)
            return table if np.isnan(ranks).all() else table.assign(percentile=ranks)
        mu, logvar = measurement.encode(self.saved.model, images, compute)
        if (shape := self.saved.model.latent_map) is not None:
            return np.stack([mu, logvar], axis=1).reshape(-1, 2, *shape)
        names = [f"{part}_{j}" for part in ("mu", "logvar") for j in range(mu.shape[1])]
        return pd.DataFrame(np.concatenate([mu, logvar], axis=1), columns=names)

    def _sampled(self, params: dict[str, Any]) -> np.ndarray:
        count, prior = params["count"], params["prior"]
        if not 1 <= count <= MOST_SAMPLES:
            raise refused(f"count = {count}; expected 1 to {MOST_SAMPLES:,}")
        priors = {"fitted": self.saved.prior, "standard": StandardNormal(self.saved.model.latent_dim)}
        if prior not in priors:
            raise refused(f"prior = {prior!r}; expected one of {', '.join(priors)}")
        return as_bytes(generate.samples(self.saved, priors[prior], count, self.saved.compute(), params["seed"]))

    def prepared(self, rows: list[Any]) -> np.ndarray:
        """uint8 (N, H, W, C) at the model's size."""
        if not rows:
            raise refused("no images given")
        images, preprocessing = [], self.saved.config.preprocessing
        for number, row in enumerate(rows):
            try:
                images.append(load(_content(row, preprocessing.value_range), preprocessing))
            except (UnusableImage, ValueError, TypeError) as error:
                raise refused(f"image {number}: {error}") from None
        return np.stack(images)


def refused(reason: str) -> MlflowException:
    """The server answers 400 with this text."""
    return MlflowException.invalid_parameter_value(reason)


def _rows(model_input: Any) -> Iterable[Any]:
    if isinstance(model_input, pd.DataFrame):
        if model_input.shape[1] != 1:
            names = ", ".join(map(str, model_input.columns))
            raise refused(f"expected a table with one column of images; got {model_input.shape[1]}: {names}")
        return model_input.iloc[:, 0]
    if isinstance(model_input, str | bytes | dict) or not np.iterable(model_input):
        raise refused(f"expected a list of images, not {type(model_input).__name__}")
    return model_input


def _content(row: Any, value_range: tuple[float, float] | None) -> bytes | np.ndarray:
    """A file's bytes, or pixels.

    Raises:
        ValueError: it is neither.
        UnusableImage: numbers outside the range.
    """
    if isinstance(row, str):
        try:
            return base64.b64decode(row, validate=True)
        except binascii.Error as error:
            raise ValueError(f"invalid base64: {error}") from None
    pixels = np.asarray(row)
    if value_range is not None and pixels.dtype.kind in "biuf" and pixels.size:
        return scaled(pixels, value_range)
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.integer) or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"pixels of {pixels.dtype}; expected integers from 0 to 255")
    return pixels.astype(np.uint8)


def _as_png(pixels: np.ndarray) -> str:
    """(H, W, C) → base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(ServedVAE())
