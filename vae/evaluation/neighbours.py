"""k nearest neighbours: the class that most of the k training images nearest to an image have."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

K = 5
NEAREST = 64  # kept for each image: half of the training images leave 5 of them but for one case in 10¹³
BLOCK = 512  # images at a time: bounds the memory of the distances


@dataclass(frozen=True)
class Neighbours:
    """nearest: (N, M), the training images nearest to each image, the nearest first. labels: of the training images."""

    nearest: NDArray[np.int64]
    labels: NDArray[np.object_]

    @classmethod
    def of(cls, train: NDArray[np.floating], labels: NDArray[np.object_], images: NDArray[np.floating]) -> "Neighbours":
        """By Euclidean distance of features scaled to mean 0 and variance 1 over the training images.

        train: (T, F). labels: (T,), none is None. images: (N, F).
        """
        train, images = train.astype(np.float64), images.astype(np.float64)
        mean, spread = train.mean(0), train.std(0)
        scale = np.where(spread > 0, spread, 1)
        known, asked = (train - mean) / scale, (images - mean) / scale
        squares, most = np.square(known).sum(1), min(NEAREST, len(known))
        parts = []
        for start in range(0, len(asked), BLOCK):
            distances = squares - 2 * asked[start : start + BLOCK] @ known.T  # but for the image's own square
            near = np.argpartition(distances, most - 1, axis=1)[:, :most]
            order = np.argsort(np.take_along_axis(distances, near, 1), axis=1, kind="stable")
            parts.append(np.take_along_axis(near, order, 1))
        return cls(np.concatenate(parts), labels)

    def guess(self, among: NDArray[np.int64] | None = None) -> NDArray[np.object_]:
        """The most frequent class of each image's 5 nearest training images: (N,); the nearer ones break a tie.

        among: the training images that count; None for all.
        """
        allowed = np.ones(len(self.labels), bool)
        if among is not None:
            allowed = np.isin(np.arange(len(self.labels)), among)
        counts = allowed[self.nearest]
        place = np.cumsum(counts, axis=1)  # from 1
        weights = np.where(counts & (place <= K), 1 + 1e-3 * (K - place), 0.0)
        names, classes = np.unique(self.labels.astype(str), return_inverse=True)
        votes = np.zeros((len(self.nearest), len(names)))
        np.add.at(votes, (np.arange(len(votes))[:, None], classes[self.nearest]), weights)
        return names[votes.argmax(1)].astype(object)
