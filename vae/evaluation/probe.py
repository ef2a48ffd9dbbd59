"""A linear probe: how well a linear classifier reads an image's class from its latents."""

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Probe:
    """A linear classifier of posterior means."""

    classifier: Any
    majority: str  # the most frequent class of the training split

    @classmethod
    def fit(cls, mu: NDArray[np.float32], labels: NDArray[np.object_], seed: int) -> "Probe | None":
        """None with fewer than two classes, or latents that are not finite.

        mu: (N, Z). labels: (N,), None where an image has no class.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known = np.array([label is not None for label in labels], dtype=bool)
        classes, counts = np.unique(labels[known].astype(str), return_counts=True)
        if len(classes) < 2 or not np.isfinite(mu).all():
            return None
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the score is valid either way
            classifier.fit(mu.astype(np.float64)[known], labels[known].astype(str))
        return cls(classifier, str(classes[counts.argmax()]))

    def guess(self, mu: NDArray[np.float32]) -> NDArray[np.object_] | None:
        """The class of each image: (N,); None with latents that are not finite."""
        if not np.isfinite(mu).all():
            return None
        return np.asarray(self.classifier.predict(mu.astype(np.float64)), dtype=object)

    def score(self, mu: NDArray[np.float32], labels: NDArray[np.object_]) -> tuple[float, float] | None:
        """Accuracy, and that of always predicting the majority class.

        Over the images of the classes that the probe was fitted on, since it can predict no other; None where there
        is no such image.
        """
        classes = set(self.classifier.classes_)
        known = np.array([label in classes for label in labels], dtype=bool)
        guesses = self.guess(mu)
        if not known.any() or guesses is None:
            return None
        truth = labels[known].astype(str)
        return float((guesses[known] == truth).mean()), float((truth == self.majority).mean())


@dataclass(frozen=True)
class ClassRead:
    """How often images of a class were predicted right, and the most frequent wrong prediction (None: none).

    unseen: no image of the class was trained on, so that nothing could be right; not part of the accuracy.
    """

    name: str
    images: int
    right: int
    taken_for: str | None
    wrong: int  # how often for that other one
    unseen: bool = False


def classes_read(
    labels: NDArray[np.object_], guesses: NDArray[np.object_] | None, trained: NDArray[np.object_]
) -> list[ClassRead]:
    """One row per class, by name; images without a class are left out.

    labels, guesses: (N,). trained: the labels of the training split.
    """
    if guesses is None:
        return []
    rows, seen = [], set(trained)
    for name in sorted({str(label) for label in labels if label is not None}):
        found = Counter(guesses[np.array([label is not None and str(label) == name for label in labels])])
        images, right = found.total(), found.pop(name, 0)
        taken_for, wrong = min(found.items(), key=lambda other: (-other[1], other[0]), default=(None, 0))
        rows.append(ClassRead(name, images, right, taken_for, wrong, name not in seen))
    return rows
