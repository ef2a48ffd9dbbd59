"""What features are worth: on features that tell the class and on noise, and what is said of the latents."""

from typing import Any

import numpy as np
import pytest

from vae.evaluation.probe import Probe
from vae.evaluation.yardstick import METHODS, PixelComponents, Reading, Yardstick, of_each_class

CLASSES = ("a", "b", "c")


def labelled(count: int, seed: int) -> np.ndarray:
    return np.array(CLASSES, dtype=object)[np.random.default_rng(seed).integers(len(CLASSES), size=count)]


def telling(labels: np.ndarray, seed: int, distance: float = 20.0) -> np.ndarray:
    """Noise, with each class `distance` away from the others."""
    places = distance * np.eye(len(CLASSES))[[CLASSES.index(label or "a") for label in labels]]
    return np.random.default_rng(seed).normal(size=places.shape) + places


def yardstick(distances: dict[str, float], train: int = 120, test: int = 90, seed: int = 0) -> Yardstick:
    known, asked = labelled(train, seed), labelled(test, seed + 1)
    features = [
        {kind: telling(labels, 10 * seed + place, distance) for place, (kind, distance) in enumerate(distances.items())}
        for labels, place in ((known, 2), (asked, 3))
    ]
    features[1] = {kind: telling(asked, 10 * seed + 5 + i, d) for i, (kind, d) in enumerate(distances.items())}
    found = Yardstick.of(features[0], known, features[1], asked, seed)
    assert found is not None
    return found


def test_separate_classes_are_read_without_error_and_noise_by_chance() -> None:
    found = yardstick({"latents": 40.0, "pixels": 0.0})
    for method in METHODS:
        assert found.readings[method, "latents"].accuracy.value == 1
        chance = found.readings[method, "pixels"].accuracy
        assert chance.low < 1 / 3 < chance.high and chance.high - chance.low < 0.4
    perfect = found.readings["probe", "latents"].accuracy
    assert 0.9 < perfect.low < 1 and perfect.high == 1, "1 among 90 images is not certain"
    metrics = found.metrics()
    assert len(metrics) == 2 * 3 * 3 and metrics["few_label_latents"] == metrics["knn_latents_high"] == 1
    assert found.images == 90


def test_the_probe_is_that_of_all_labelled_images() -> None:
    known, asked = labelled(200, 0), labelled(100, 1)
    known[::5], asked[::7] = None, None
    mu, of_test = (telling(labels, seed, 2).astype(np.float32) for labels, seed in ((known, 2), (asked, 3)))
    found, probe = Yardstick.of({"latents": mu}, known, {"latents": of_test}, asked, 0), Probe.fit(mu, known, 0)
    assert found and probe
    score = probe.score(of_test, asked)
    assert score and found.readings["probe", "latents"].accuracy.value == score[0] < 1


def test_few_labels_are_five_of_each_class_or_all() -> None:
    labels = np.array(["a"] * 50 + ["b"] * 3 + ["c"], dtype=object)
    random = np.random.default_rng(0)
    chosen = of_each_class(labels, lambda n: min(n, 5), random)
    assert sorted(labels[chosen]) == ["a"] * 5 + ["b"] * 3 + ["c"]
    assert not np.array_equal(chosen, of_each_class(labels, lambda n: min(n, 5), random)), "drawn anew"
    known, asked = telling(np.array(["a"] * 54), 0), telling(labels, 1)
    assert Yardstick.of({"latents": known}, labels, {"latents": asked}, labels, 0) is not None


@pytest.mark.parametrize("labels", [np.full(8, None), np.full(8, "a", dtype=object)])
def test_without_two_classes_there_is_none(labels: Any) -> None:
    assert Yardstick.of({"latents": np.ones((8, 2))}, labels, {"latents": np.ones((8, 2))}, labels, 0) is None


def test_test_images_of_other_classes_are_left_out() -> None:
    known = labelled(60, 0)
    strange = np.full(8, "z", dtype=object)
    args = {"latents": telling(known, 1)}, known, {"latents": np.ones((8, 3))}
    assert Yardstick.of(*args, strange, 0) is None
    strange[0] = "a"
    one = Yardstick.of(*args, strange, 0)
    assert one and one.images == 1


def test_latents_that_are_not_finite_are_left_out_and_nothing_is_said_of_them() -> None:
    known, asked = labelled(60, 0), labelled(40, 1)
    broken = np.full((60, 3), np.nan)
    found = Yardstick.of(
        {"latents": broken, "pixels": telling(known, 2)}, known,
        {"latents": broken[:40], "pixels": telling(asked, 3)}, asked, 0,
    )  # fmt: skip
    assert found and {kind for _, kind in found.readings} == {"pixels"}
    assert list(found.findings()) == []


def nearest_mean(known: np.ndarray, labels: np.ndarray, asked: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether the class with the nearest mean is right: a linear classifier that takes no time."""
    means = np.stack([known[labels == name].mean(0) for name in CLASSES])
    guesses = np.square(asked[:, None] - means).sum(2).argmin(1)
    return (np.array(CLASSES)[guesses] == truth).astype(np.float64)


def test_intervals_cover_what_another_draw_of_both_splits_gives() -> None:
    """The accuracy expected over splits of this size lies in about 95% of the intervals; so does a difference of 0."""
    accuracies, intervals, differences = [], [], []
    for seed in range(300):
        known, asked = labelled(40, seed), labelled(60, 1000 + seed)
        halves = [of_each_class(known, lambda n: -(-n // 2), np.random.default_rng(i)) for i in range(10)]
        readings = []
        for place in (2000, 3000):
            features, found = telling(known, place + seed, 1.5), telling(asked, 10 * place + seed, 1.5)
            refits = [nearest_mean(features[half], known[half], found, asked).mean() for half in halves]
            readings.append(Reading(nearest_mean(features, known, found, asked), np.array(refits)))
        accuracies.append(readings[0].accuracy.value)
        intervals.append(readings[0].accuracy)
        differences.append(readings[0].above(readings[1]))
    mean = np.mean(accuracies)
    covered = np.mean([found.low <= mean <= found.high for found in intervals])
    equal = np.mean([found.low <= 0 <= found.high for found in differences])
    assert 0.93 < covered < 0.995 and 0.93 < equal < 0.995
    width = np.mean([found.high - found.low for found in intervals])
    assert width < 1.5 * 2 * 1.96 * np.std(accuracies), "nor are they too wide"


def test_a_difference_is_paired() -> None:
    right = (np.arange(200) % 2).astype(np.float64)
    worse = right.copy()
    worse[1::20] = 0  # of 100 right images, 10 more are wrong
    refits = np.linspace(0.4, 0.6, 10)
    gap = Reading(right, refits).above(Reading(worse, refits - 0.05))
    assert gap.value == pytest.approx(0.05)
    assert gap.low > 0 and gap.high - gap.low < 0.08, "the refits move together, and so do the images"
    alone = Reading(right, refits).accuracy
    assert alone.high - alone.low > 3 * (gap.high - gap.low)


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        (
            {"latents": 1.0, "pixels": 1.0, "frozen": 20.0},
            [
                "Frozen features of EfficientNet-Lite0 classify better than the latents: 100.0% against",
                "The latents and as many principal components of the pixels classify alike, as far as ",
            ],
        ),
        (
            {"latents": 20.0, "pixels": 1.0, "frozen": 0.5},
            [
                "The latents classify better than frozen features of EfficientNet-Lite0: 100.0% against",
                "The latents classify better than as many principal components of the pixels: 100.0% against",
            ],
        ),
        ({"latents": 1.0, "pixels": 20.0}, ["As many principal components of the pixels classify better than the"]),
        (
            {"latents": 3.0, "pixels": 3.0, "frozen": 3.0},
            ["The latents and as many principal components of the pixels classify alike, as far as "],
        ),
    ],
)
def test_what_is_said_of_the_latents(distances: dict[str, float], said: list[str]) -> None:
    found = list(yardstick(distances).findings())
    assert len(found) == len(said)
    for sentence, start in zip(found, said, strict=True):
        assert sentence.startswith(start)
    assert ("If classification is the goal" in found[0]) is ("classify better than the latents" in found[0])


@pytest.mark.parametrize(
    ("of_latents", "of_pixels", "first"), [(20, 1, "latents"), (3, 2, "latents"), (1, 20, "pixels")]
)
def test_the_interval_in_a_sentence_is_that_of_the_difference_it_speaks_of(
    of_latents: float, of_pixels: float, first: str
) -> None:
    found = yardstick({"latents": of_latents, "pixels": of_pixels})
    one, other = (found.readings["probe", kind] for kind in (first, "pixels" if first == "latents" else "latents"))
    gap = one.above(other)
    (sentence,) = found.findings()
    shown = f"difference {100 * gap.low:.1f} to {100 * gap.high:.1f} points".replace("-", "−")
    assert shown in sentence and f"{one.accuracy.value:.1%} against {other.accuracy.value:.1%}" in sentence


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("count", "shape"), [(40, (8, 8, 1)), (3, (8, 12, 3)), (1, (8, 8, 1))])
def test_pixels_have_as_many_components_as_the_images_allow(count: int, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    found = PixelComponents.fit(images, 16, 0).of(images)
    assert found.shape == (count, min(16, count))
