"""The split of each image whose source does not assign one."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence


def assign(
    given: Sequence[str | None],
    labels: Sequence[str | None],
    contents: Sequence[str],
    fractions: Mapping[str, float],
    seed: int,
) -> list[str]:
    """A split for every image.

    Images with a given split keep it, except that the splits named in `fractions` are carved out of those
    given `train` or nothing. Byte-identical images (equal `contents`) among these go to one split, and count
    as one. The cut is made label by label, in the order of a hash of seed and content, so that it depends
    neither on file names nor on the order of the images, and an added image moves few others. A label with
    enough distinct images (one for each split, `train` included) has at least one in each.

    If the labels are too small to fill every split, the images are cut as if all had the same label.

    Args:
        given, labels, contents: one entry per image; a content is a hash of the image's bytes.
        fractions: the share of the distinct images that goes to each new split, e.g.
            `{"test": 0.1, "valid": 0.1}`; the rest is `train`.
        seed: another seed gives another cut.
    """
    pool = {i for i, split in enumerate(given) if split in (None, "train")}
    # Sorted backwards, so that the alphabetically first label counts where the same image has several.
    label_of = dict(sorted(((contents[i], labels[i] or "") for i in pool), reverse=True))
    carved = _carve(label_of, fractions, seed)
    if not set(fractions) <= set(carved.values()):
        carved = _carve(dict.fromkeys(label_of, ""), fractions, seed)
    return [carved[contents[i]] if i in pool else str(split) for i, split in enumerate(given)]


def _carve(label_of: Mapping[str, str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    by_label: dict[str, list[str]] = defaultdict(list)
    for content, label in label_of.items():
        by_label[label].append(content)
    split_of: dict[str, str] = {}
    for group in by_label.values():
        group.sort(key=lambda content: hashlib.sha256(f"{seed}:{content}".encode()).digest())
        start = 0
        for split, size in _sizes(len(group), fractions).items():
            split_of.update(dict.fromkeys(group[start : start + size], split))
            start += size
        split_of.update(dict.fromkeys(group[start:], "train"))
    return split_of


def _sizes(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """How many of `total` each split gets: its fraction, rounded, but at least one is left for each split after it."""
    least = 1 if total > len(fractions) else 0
    sizes: dict[str, int] = {}
    free = total - 1 - least * len(fractions)  # beyond the one of train and the least of each
    for split, fraction in fractions.items():
        extra = min(max(round(fraction * total) - least, 0), max(free, 0))
        sizes[split] = least + extra
        free -= extra
    return sizes
