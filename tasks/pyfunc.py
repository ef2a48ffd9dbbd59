"""The model as MLflow serves it: images in, latents, reconstructions or scores out. Loads no pickle."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

TASKS = ("encode", "reconstruct", "score")


class ServedVAE(PythonModel):
    """`predict(images, params={"task": …})`; images: uint8 (N, H, W, C), grey, RGB or RGBA, of any size.

    Each is brought to the size and channels of the training images by what ingest did to those.

    encode: a table with mu_j and logvar_j of q(z|x).
    reconstruct: uint8 (N, H, W, C) of the training images' size, the mean of p(x|z = mu).
    score: a table with `elbo`, in nats per image; the lower, the more unusual is the image.
    """

    def load_context(self, context: Any) -> None:
        from vae import saved
        from vae.images import Preprocessing

        self.saved = saved.load(Path(context.artifacts["vae"]))
        self.preprocessing = Preprocessing.from_dict(self.saved.preprocessing)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        from vae import diagnostics
        from vae.images import load

        task = (params or {}).get("task", "encode")
        if task not in TASKS:
            raise ValueError(f"task = {task!r}; expected one of {', '.join(TASKS)}")
        images = np.stack([load(image, self.preprocessing) for image in np.asarray(model_input)])
        compute = self.saved.compute()
        if task == "reconstruct":
            return diagnostics.reconstruct(self.saved.model, images, self.saved.likelihood, compute)
        if task == "score":
            return pd.DataFrame(
                {"elbo": diagnostics.elbo_per_image(self.saved.model, images, self.saved.likelihood, compute)}
            )
        mu, logvar = diagnostics.encode(self.saved.model, images, compute)
        latents = range(mu.shape[1])
        names = [f"mu_{j}" for j in latents] + [f"logvar_{j}" for j in latents]
        return pd.DataFrame(np.concatenate([mu, logvar], axis=1), columns=names)


mlflow.models.set_model(ServedVAE())
