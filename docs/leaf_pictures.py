"""docs/images/leaves.png: test images, and how each model decodes them; below them, its samples.

`python docs/leaf_pictures.py WORKSPACE …`: a folder for each model, after `make run`, all with the same test split.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))
from vae.compute.devices import Compute
from vae.inference import generate, grids
from vae.inference.grids import as_bytes
from vae.models import saved

PICTURE = Path(__file__).parent / "images" / "leaves.png"
COLUMNS, OF_EACH_CLASS = 10, 2
CPU = Compute(torch.device("cpu"), "fp32")


def main() -> None:
    workspaces = [Path(name) for name in sys.argv[1:]]
    images = np.load(workspaces[0] / "data/images/test.npy")
    chosen = images[first_of_each_class(pd.read_parquet(workspaces[0] / "data/manifest.parquet"))]
    decoded, drawn = [], []
    for workspace in workspaces:
        model = saved.load(workspace / "models/vae")
        decoded.append(generate.reconstruct(model.model, chosen, model.likelihood, CPU))
        drawn.append(as_bytes(generate.samples(model, model.prior, COLUMNS, CPU, seed=0)))
    PICTURE.write_bytes(grids.png(grids.grid(np.concatenate([chosen, *decoded, *drawn]), COLUMNS)))


def first_of_each_class(manifest: pd.DataFrame) -> NDArray[np.int64]:
    """Rows of the test images that come first by class: nobody chose them."""
    test = manifest[(manifest.split == "test") & (manifest.status == "ok")].sort_values("index")
    return test.groupby("label").head(OF_EACH_CLASS).sort_values("label")["index"].to_numpy()[:COLUMNS]


if __name__ == "__main__":
    main()
