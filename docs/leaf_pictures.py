"""docs/images/leaves.png and photos-256.jpg: test images, and how each model decodes them; below them, its samples.

`python docs/leaf_pictures.py docs/images/leaves.png WORKSPACE …`: a folder for each model, after `make run`, all with
the same test split. Of a map that is too large for a fitted prior there are no samples: a second stage draws them.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from vae.compute.devices import Compute
from vae.inference import generate, grids
from vae.inference.grids import as_bytes
from vae.models import saved
from vae.priors.standard import StandardNormal

WIDTH, MOST = 1280, 10  # pixels and images of a row
CPU = Compute(torch.device("cpu"), "fp32")


def main() -> None:
    picture, *workspaces = [Path(name) for name in sys.argv[1:]]
    images = np.load(workspaces[0] / "data/images/test.npy")
    columns = min(MOST, WIDTH // images.shape[2])
    chosen = images[first_of_each_class(pd.read_parquet(workspaces[0] / "data/manifest.parquet"), columns)]
    decoded, drawn = [], []
    for workspace in workspaces:
        model = saved.load(workspace / "models/vae")
        decoded.append(generate.reconstruct(model.model, chosen, model.likelihood, CPU))
        if not isinstance(model.prior, StandardNormal):
            drawn.append(as_bytes(generate.samples(model, model.prior, columns, CPU, seed=0)))
    Image.fromarray(grids.grid(np.concatenate([chosen, *decoded, *drawn]), columns)).save(picture, quality=85)


def first_of_each_class(manifest: pd.DataFrame, count: int) -> NDArray[np.int64]:
    """Rows of the test images that come first by class, as many of each: nobody chose them."""
    test = manifest[(manifest.split == "test") & (manifest.status == "ok")].sort_values("index")
    first = test.groupby("label").head(count // test.label.nunique())
    return first.sort_values(["label", "index"])["index"].to_numpy()


if __name__ == "__main__":
    main()
