import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae.data.splits import assign

FRACTIONS = {"test": 0.2, "valid": 0.1}
# (content, label): few contents, so that duplicates, also across labels, are common
images = st.lists(st.tuples(st.integers(0, 40).map(str), st.sampled_from(["a", "b", None])), min_size=1, max_size=80)
fractions = st.fixed_dictionaries({"test": st.floats(0.01, 0.6), "valid": st.floats(0.01, 0.39)})


def cut(images: list[tuple[str, str | None]], fractions: dict[str, float] = FRACTIONS, seed: int = 0) -> list[str]:
    contents, labels = [c for c, _ in images], [label for _, label in images]
    return assign([None] * len(images), labels, contents, fractions, seed)


@given(images, fractions, st.integers(0, 5))
def test_every_image_has_one_split_and_duplicates_share_it(images: list, fractions: dict, seed: int) -> None:
    splits = cut(images, fractions, seed)
    assert len(splits) == len(images) and set(splits) <= {"train", "valid", "test"}
    of_content = defaultdict(set)
    for (content, _), split in zip(images, splits, strict=True):
        of_content[content].add(split)
    assert all(len(splits) == 1 for splits in of_content.values())
    assert "train" in splits
    if len(of_content) >= 3:
        assert set(splits) == {"train", "valid", "test"}


@given(images, fractions, st.randoms())
def test_order_does_not_matter(images: list, fractions: dict, shuffle: random.Random) -> None:
    splits = dict(zip((content for content, _ in images), cut(images, fractions), strict=True))
    shuffled = list(images)
    shuffle.shuffle(shuffled)
    assert dict(zip((content for content, _ in shuffled), cut(shuffled, fractions), strict=True)) == splits


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(3, 60), min_size=1), fractions)
def test_each_label_is_cut_by_the_fractions(sizes: dict[str, int], fractions: dict[str, float]) -> None:
    images = [(f"{label}{i}", label) for label, size in sizes.items() for i in range(size)]
    counts = Counter(zip((label for _, label in images), cut(images, fractions), strict=True))
    for label, size in sizes.items():
        got = {split: counts[label, split] for split in ("train", "valid", "test")}
        assert min(got.values()) >= 1
        for split, fraction in fractions.items():
            assert abs(got[split] - fraction * size) <= 1.5


def test_another_seed_is_another_cut() -> None:
    images = [(str(i), None) for i in range(100)]
    assert cut(images, seed=0) == cut(images, seed=0) != cut(images, seed=1)


def test_splits_of_the_source_are_kept_and_only_missing_ones_are_carved_out_of_train() -> None:
    given_splits = ["train"] * 40 + ["test"] * 10
    contents = [str(i) for i in range(50)]
    splits = assign(given_splits, ["a"] * 50, contents, {"valid": 0.1}, seed=0)
    assert Counter(splits[:40]) == {"train": 36, "valid": 4}
    assert splits[40:] == ["test"] * 10
    assert assign(given_splits, ["a"] * 50, contents, {}, seed=0) == given_splits


def test_an_added_image_moves_at_most_a_few_others() -> None:
    images = [(str(i), None) for i in range(1000)]
    before, after = cut(images), cut([*images, ("new", None)])
    assert sum(a != b for a, b in zip(before, after, strict=False)) <= 3


@pytest.mark.parametrize(
    ("labels", "size", "counts"),
    [
        (2, 50, {"train": 70, "valid": 10, "test": 20}),
        (30, 2, {"train": 42, "valid": 6, "test": 12}),  # too small to cut: cut together
        (1, 2, {"train": 2}),  # too few images for three splits
    ],
)
def test_known_sizes(labels: int, size: int, counts: dict[str, int]) -> None:
    assert Counter(cut([(f"{label}:{i}", str(label)) for label in range(labels) for i in range(size)])) == counts
