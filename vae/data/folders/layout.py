"""What the folders of a tree of images are taken for: splits, classes, annotations, or a level to pass through.

Names are taken apart into words at whatever is no letter and at capitals: seg_train, TrainImages, train2017.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from vae.config.errors import InputError
from vae.config.text import printable
from vae.data.item import SPLIT_NAMES, storable

Parts: TypeAlias = tuple[str, ...]  # of a path below data.path
Words: TypeAlias = tuple[str, ...]

# Words that name no class, only that there are images; and words for what describes images.
_GENERIC, _ANNOTATIONS = (
    set(some.split())
    for some in (
        "data dataset datasets file files folder image images img imgs input inputs jpeg jpegs jpg pic pics picture "
        "pictures photo photos png pngs sample samples set split",
        "annot annotation annotations bbox bboxes caption captions groundtruth gt label labels mask masks segmentation "
        "segmentations trimap trimaps truth",
    )
)
# As the whole name of a folder, these are hardly a class; "mask" and "label" may be.
_HARDLY_A_CLASS = {"annotations", "ground truth", "groundtruth", "gt", "labels", "masks", "segmentations", "trimaps"}

_OF_CLASSES = {"no", "with", "without"}  # with_mask

_MASK = re.compile(
    r"(?P<image>.+?)[ _.-]+(masks?|ground[ _-]?truth|seg|segmentation|trimap)([ _.-]?\d+)?", re.IGNORECASE
)


class Tree:
    """The files that claim to be images, by folder."""

    def __init__(self, root: Path, claims: Iterable[Parts]) -> None:
        self._root = root
        self._files: dict[Parts, set[str]] = defaultdict(set)
        for *folder, file in claims:
            self._files[tuple(folder)].add(file)
        self._below: dict[Parts, Counter[str]] = defaultdict(Counter)
        for place, files in self._files.items():
            for depth, name in enumerate(place):
                self._below[place[:depth]][name] += len(files)

    def directly(self, place: Parts) -> Set[str]:
        """The images in a folder, without those in its folders."""
        return self._files.get(place, frozenset())

    def below(self, place: Parts) -> Mapping[str, int]:
        """The folders in a folder, with the number of images in each and its folders."""
        return self._below.get(place, {})

    def places(self) -> list[Parts]:
        """All folders that hold folders."""
        return list(self._below)

    def within(self, place: Parts) -> Iterator[Parts]:
        """The images in a folder and its folders; the work is in proportion to them."""
        places = [place]
        while places:
            here = places.pop()
            yield from ((*here, name) for name in self.directly(here))
            places += [(*here, name) for name in self.below(here)]

    def stems(self, places: Iterable[Parts]) -> set[str]:
        return {stem_of(parts[-1]) for place in places for parts in self.within(place)}

    def repeats(self, place: Parts, name: str) -> bool:
        """Whether every image in the folder `name` lies beside it too: some archives hold their tree twice."""
        inner = (*place, name)
        twins = ((parts, place + parts[len(inner) :]) for parts in self.within(inner))
        return all(
            twin[-1] in self.directly(twin[:-1]) and self._size(twin) == self._size(parts) for parts, twin in twins
        )

    def _size(self, parts: Parts) -> int:
        file = self._root.joinpath(*parts)
        return (file.stat() if file.exists() else file.lstat()).st_size  # lstat for a broken link


class Place(NamedTuple):
    split: str | None = None
    label: str | None = None
    aside: str | None = None  # why the images here are skipped
    outside: str | None = None  # why they cannot be used, although they claim to be


@dataclass
class Layout:
    """What each folder of a tree is taken for.

    Attributes:
        base: the folder where the split folders, class folders or images lie.
        splits: split folder → the split, and the folder where its classes or images lie.
        aside: folders that are skipped, and what they are.
        warnings: what is ambiguous.
    """

    tree: Tree
    path: str
    base: Parts = ()
    splits: dict[Parts, tuple[str, Parts]] = field(default_factory=dict)
    aside: dict[Parts, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def classes(self, place: Parts) -> list[str]:
        return [name for name in self.tree.below(place) if (*place, name) not in self.aside]

    def put_aside(self, place: Parts, names: Collection[str], what: str = "annotations") -> None:
        self.aside |= {(*place, name): what for name in names}

    def place_of(self, folder: Parts) -> Place:
        """What an image directly in this folder is."""
        for depth in range(1, len(folder) + 1):
            if what := self.aside.get(folder[:depth]):
                return Place(aside=f"image in {shown(folder[:depth])}: {what}")
        split, base = None, self.base
        if self.splits:
            top = folder[: len(self.base) + 1]
            if top not in self.splits:
                names = ", ".join(storable(place[-1]) for place in self.splits)
                return Place(outside=f"outside the split folders ({names}): move it into one")
            split, base = self.splits[top]
        label = next(iter(folder[len(base) :]), None)
        if label is None and self.classes(base):
            return Place(split, outside="outside the class folders: move it into one")
        return Place(split, label)


def interpret(tree: Tree, path: str) -> Layout:
    """Raises: InputError: as `split_folders`."""
    layout = Layout(tree, path)
    for place in tree.places():
        annotations = {name for name in tree.below(place) if _is_annotation(name)}
        others = tree.below(place).keys() - annotations
        if annotations and others and all(map(_is_generic, others)):
            layout.put_aside(place, list(_surely_annotations(tree, place, annotations, others)))
    layout.base, splits = _settle(layout, (), lambda name: True, look_for_splits=True)
    for name, split in splits.items():
        # The split's own name once more, or "images".
        inner = partial(_continues, split)
        layout.splits[*layout.base, name] = (split, _settle(layout, (*layout.base, name), inner)[0])
    layout.warnings += _lost_class(layout)
    for name, count in tree.below(layout.base).items() if splits else ():
        place = (*layout.base, name)
        if place not in layout.splits and place not in layout.aside:
            layout.aside[place] = "neither a split nor annotations"
            layout.warnings.append(
                f"the folder {shown(place)!r} (images: {count:,}) is skipped, since it lies beside the split "
                f"folders {', '.join(map(storable, splits))}; if it belongs to a split, move it there"
            )
    return layout


def _surely_annotations(tree: Tree, place: Parts, names: Iterable[str], beside: Iterable[str]) -> Iterator[str]:
    """Those that are hardly a class, or in which each file has the name of an image beside it."""
    images: set[str] = set()
    for name in names:
        if not _is_hardly_a_class(name):
            images = images or tree.stems((*place, other) for other in beside)
            if not {masked_image(stem) or stem for stem in tree.stems([(*place, name)])} <= images:
                continue
        yield name


def _lost_class(layout: Layout) -> Iterator[str]:
    """A warning where the only class would be the folder that was entered, and not the folders in it."""
    entered = tuple(name for name in layout.base if not _is_generic(name))
    classes = layout.classes(layout.base)
    if entered and classes and not layout.splits:
        yield (
            f"the folders in {shown(layout.base)!r} are taken for classes: {_some(classes)}; "
            f"if {shown(entered[-1:])!r} is the class, put another class beside it, or its images directly into it"
        )


def _continues(split: str, name: str) -> bool:
    return _is_generic(name) or [SPLIT_NAMES[word] for word in words(name) if word in SPLIT_NAMES] == [split]


def _settle(
    layout: Layout, place: Parts, may_enter: Callable[[str], bool], look_for_splits: bool = False
) -> tuple[Parts, dict[str, str]]:
    """Where the splits, classes or images are: at `place`, or in the only folder there, and so on; and the splits."""
    tree = layout.tree
    while True:
        names = tree.below(place).keys()
        if len(names) > 1:
            twice = [name for name in names if tree.repeats(place, name)]
            layout.put_aside(place, twice, "the same files as beside it")
        plain = {name for name in layout.classes(place) if not _is_annotation(name)}
        splits: dict[str, str] = {}
        warnings: list[str] = []
        if look_for_splits:
            splits, warnings = split_folders(plain, shown((layout.path, *place)))
        if splits:
            layout.put_aside(place, set(layout.classes(place)) - plain)
        classes = layout.classes(place)
        if splits or len(classes) != 1 or tree.directly(place) or not may_enter(classes[0]):
            break
        inner = (*place, classes[0])
        if tree.directly(inner) and (tree.below(inner) or not _is_generic(classes[0])):
            break
        place = inner
    layout.warnings += warnings
    if not splits and len(classes) > 1:
        layout.warnings += _doubtful_classes(layout, place, classes)
    return place, splits


def _doubtful_classes(layout: Layout, place: Parts, classes: list[str]) -> Iterator[str]:
    for name in classes:
        taken = f"the folder {shown((*place, name))!r} is taken for a class"
        if _is_hardly_a_class(name):
            yield f"{taken}; if it annotates the images, move it elsewhere"
        elif _is_generic(name):
            yield f"{taken}; if it holds the classes, set data.path to it"
    below = [set(layout.classes((*place, name))) for name in classes]
    if len(common := set.intersection(*below)) > 1 and not any(
        layout.tree.directly((*place, name)) for name in classes
    ):
        yield (
            f"the folders {_some(classes)} are taken for classes, and all hold folders named {_some(common)}; if those "
            "are the classes, set data.path to one of the outer folders"
        )


def _some(names: Collection[str], most: int = 3) -> str:
    more = f", … and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown((name,)) for name in sorted(names)[:most]) + more


def shown(place: Parts) -> str:
    return printable("/".join(map(storable, place)))


def split_folders(names: Collection[str], path: str) -> tuple[dict[str, str], list[str]]:
    """Folder → split, empty where these are class folders; and warnings of what is ambiguous.

    Folders are splits where their names have one word for a split each, one of them for training, and are otherwise
    the same, apart from words such as "images" or "set": Training and Testing; seg_train and seg_test;
    training_set and test. So test_tube and train_station are classes.

    Args:
        names: of the folders with images that lie side by side.
        path: their place, for messages.

    Raises:
        InputError: the names are a split's and nothing else, but none is for training, or two are for one split.
    """
    exact: dict[Words, dict[str, str]] = defaultdict(dict)
    loose: dict[Words, dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        found = [word for word in words(name) if word in SPLIT_NAMES]
        if len(found) == 1:
            rest = tuple(word for word in words(name) if word != found[0])
            exact[rest][name] = SPLIT_NAMES[found[0]]
            loose[tuple(word for word in rest if word not in _GENERIC)][name] = SPLIT_NAMES[found[0]]
    whole = {rest: group for rest, group in exact.items() if _is_whole(group)}
    whole = whole or {rest: group for rest, group in loose.items() if _is_whole(group)}
    if () in whole or len(whole) == 1:
        rest, splits = ((), whole[()]) if () in whole else next(iter(whole.items()))
        # A lone pair such as bird_train and bird_test among classes is none; seg_pred belongs to seg_train.
        if _GENERIC.issuperset(rest) or all(set(rest) & set(words(name)) for name in names):
            return _one_each(splits, path)
    if whole:
        return {}, [_as_classes([name for group in whole.values() for name in group])]
    named = loose[()]
    if not named:
        return {}, []
    no_training = "train" not in named.values()
    if len(named) < len(names) or (no_training and not _are_plain(named)):
        return {}, [_as_classes(named) if len(named) > 1 else _lone(*next(iter(named.items())))]
    if no_training:
        raise InputError(
            f"{path!r} has {' and '.join(map(storable, named))} but no folder named train; add one, "
            "or give one of them as the path; if they are classes, rename one"
        )
    return _one_each(named, path)


def _is_whole(group: dict[str, str]) -> bool:
    return "train" in group.values() and len(set(group.values())) > 1


def _one_each(splits: dict[str, str], path: str) -> tuple[dict[str, str], list[str]]:
    if len(set(splits.values())) == len(splits):
        return splits, []
    if not _are_plain(splits):
        return {}, [_as_classes(splits)]
    names = ", ".join(map(storable, splits))
    raise InputError(f"{path!r} has two folders for the same split among {names}; merge or rename them")


def _are_plain(names: Iterable[str]) -> bool:
    """Whether they say nothing but the split: Test; not test_2."""
    return SPLIT_NAMES.keys() >= {name.lower() for name in names}


def _as_classes(names: Collection[str]) -> str:
    return f"{_some(names)} are taken for classes; if they are splits, make train/CLASS and test/CLASS of them"


def _lone(name: str, split: str) -> str:
    others = "valid or test" if split == "train" else "train"
    return (
        f"the folder {storable(name)!r} is taken for a class, since none named {others} lies beside it; if it is a "
        "split, arrange the others as splits too: train/CLASS, test/CLASS"
    )


def words(name: str) -> Words:
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))


def _is_generic(name: str) -> bool:
    """images, JPEGImages; not my_images."""
    return bool(words(name)) and _GENERIC.issuperset(words(name))


def _is_annotation(name: str) -> bool:
    """masks, ground_truth, train_labels; not no_mask."""
    return not _ANNOTATIONS.isdisjoint(words(name)) and _OF_CLASSES.isdisjoint(words(name))


def _is_hardly_a_class(name: str) -> bool:
    return " ".join(words(name)) in _HARDLY_A_CLASS


def stem_of(name: str) -> str:
    """Without what follows the last dot; by `Path.stem`, hundreds of thousands would take seconds."""
    return name.rpartition(".")[0] or name


def masked_image(stem: str) -> str | None:
    """The stem of the image that a file with this stem may be the mask of: x for x_mask, x-seg, x_mask_1."""
    found = _MASK.fullmatch(stem)
    return found["image"] if found else None
