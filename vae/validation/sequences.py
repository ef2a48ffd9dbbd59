"""Whether images that follow one another in their source are alike, and the split separates them.

Frames of a video are near-copies of their neighbours. A random split puts some of them into validation and test, whose
scores then say how well the model remembers, not how well it generalises.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FEWEST, MOST = 20, 500  # pairs of neighbours: fewer show nothing, of more an even sample is compared


@dataclass(frozen=True)
class Neighbours:
    """Images of one class that follow one another in the source, one for training and one not.

    Attributes:
        pairs: how many.
        ratio: their mean squared difference, divided by that of any two images of the class: about 1 in random order.
    """

    pairs: int
    ratio: float


def separated_neighbours(rows: pd.DataFrame, images: Mapping[str, NDArray[np.uint8]]) -> Neighbours | None:
    """None with fewer than 20 such pairs, as where the source has splits of its own, or where all images are equal.

    Images are compared within their class, since files stored class by class are more alike than files of all classes.

    Args:
        rows: one per image in the order of the source: its `split`, its `index` in that split's array, its `label`.
        images: of each split, uint8 (N, H, W, C).
    """
    splits, indices = rows["split"].to_numpy(), rows["index"].to_numpy()
    by_class = rows.groupby(rows["label"].fillna("").to_numpy()).indices.values()
    pairs: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    others: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    random = np.random.default_rng(0)
    for members in map(np.asarray, by_class):
        train = splits[members] == "train"
        first = np.flatnonzero(train[:-1] != train[1:])
        pairs.append(np.stack([members[first], members[first + 1]], axis=1))
        steps = random.integers(1, max(len(members), 2), len(first))  # to any other image of the class
        others.append(members[(first + steps) % len(members)])
    neighbours = np.concatenate(pairs)
    if len(neighbours) < FEWEST:
        return None

    def image(row: int) -> NDArray[np.float32]:
        return images[splits[row]][indices[row]].astype(np.float32)

    near = far = 0.0
    step = -(-len(neighbours) // MOST)
    for (a, b), c in zip(neighbours[::step], np.concatenate(others)[::step], strict=True):
        x = image(a)
        near += float(np.square(x - image(b)).mean())
        far += float(np.square(x - image(c)).mean())
    return Neighbours(len(neighbours), near / far) if far > 0 else None
