"""A folder of images: what each folder and file in it is taken for.

A file claims to be an image by its suffix or by its first bytes: one that cannot be read is a bad image, whatever its
content. So does a file without a suffix, unless it is text. Whatever else lies there is skipped: companions of
images (captions, labels, tables), containers of images that are not read here (archives, arrays, videos), and hidden
or system files. It is listed all the same, with a reason that begins with `COMPANION` or `LITTER`. Masks of images
are companions as well: x_mask.png beside x.jpg, and folders such as `masks` beside `images` or beside split folders.

The layout of the images is

- split folders (`layout.split_folders`); in each, class folders, or images directly (no label). Other folders beside
  them are skipped, with a warning;
- else class folders, when there is any folder with an image in it; folders within a class folder belong to it;
- else a flat folder: no labels.

A folder that lies alone and holds folders only is entered first, as an archive's extra level is, and so is one whose
name says no more than "images". A folder that repeats what lies beside it, file by file, is skipped.

What does not fit is an item that refuses to load, so that it is quarantined and not dropped: images outside the split
or class folders, and links that lead nowhere or out of the folder, except to a file of a content-addressed store. A
link to a folder is never followed, hence no loops; where that would lose images, it is an error.
"""

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vae.config.constants import COMPANION, LITTER, SKIPPED, SPLITS
from vae.config.errors import InputError
from vae.config.text import printable
from vae.data import images
from vae.data.folders import file_kinds
from vae.data.folders.layout import Layout, Parts, Tree, interpret, masked_image, shown, stem_of
from vae.data.item import SPLIT_NAMES, File, Item, Refused, expect_folder, storable

log = logging.getLogger(__name__)

# The end of a path in a content-addressed store: the file's MD5, taken apart after two digits.
_STORED = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}\Z")
SHOWN = 5  # classes or kinds of files that a line names
MOST_LINKED = 10_000  # files of a linked folder that are counted
_LITTER_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}
_HIDDEN = f"{LITTER}hidden or system file"
_MASK = "mask: of the image beside it"
_FOLDER_LINK = f"{COMPANION}folder link: not followed"


class TooManyFiles(InputError):
    pass


@dataclass(frozen=True)
class Folder:
    items: list[Item]
    lines: list[str]  # what the folders were taken for, and what was skipped
    warnings: list[str]


def find(path: Path) -> list[Item]:
    """An item for each file; what the folders were taken for is logged.

    Raises:
        InputError: as `read`.
    """
    found = read(path)
    for line in found.lines:
        log.info("%s", line)
    for warning in found.warnings:
        log.warning("%s", warning)
    return found.items


def read(path: Path, most: int | None = None) -> Folder:
    """Nothing is decoded; of files without an image's suffix, the first bytes are read.

    Raises:
        InputError: there are files but no images among them, the split folders are incomplete, a link to a folder
            would lose its images.
        TooManyFiles: there are more than `most`.
    """
    expect_folder(path, "folder")
    root = path.resolve()
    files = dict(sorted(islice(_files(root), None if most is None else most + 1)))
    if most is not None and len(files) > most:
        raise TooManyFiles(f"{storable(str(path))!r} holds more than {most:,} files")
    refusals = {parts: _refusal(root, parts, is_link) for parts, is_link in files.items()}
    links = _linked_folders(path, root, refusals)
    claims = [parts for parts in files if not _skipped(refusals[parts])]
    if files and not claims:
        found = _kinds(refusals.values(), most=len(files))
        raise InputError("; ".join([f"{storable(str(path))!r} holds no images, only {found}", *_to_do(refusals)]))
    layout = interpret(Tree(root, claims), str(path))
    items = _items(root, refusals, layout)
    left_out = _left_out(refusals.values())
    warnings = [*layout.warnings, *left_out, *_without_images(layout, files), *links, *_to_do(refusals)]
    return Folder(items, [*_lines(layout, items, refusals)], warnings)


def _items(root: Path, refusals: dict[Parts, str | None], layout: Layout) -> list[Item]:
    """In the order of the files; `refusals` learns of those that lie in the wrong place."""
    places = {folder: layout.place_of(folder) for folder in {parts[:-1] for parts in refusals}}
    masks = _masks(parts for parts, refusal in refusals.items() if not _skipped(refusal))
    items = []
    for parts, refusal in refusals.items():
        place = places[parts[:-1]]
        if not _skipped(refusal):
            aside = place.aside or masks.get(parts)
            refusal = refusals[parts] = f"{COMPANION}{aside}" if aside else place.outside or refusal
        split, label = (None, None) if _skipped(refusal) else (place.split, place.label)
        name = "/".join(parts)
        load = Refused(refusal) if refusal else File(str(root), name)
        items.append(Item(storable(name), split, None if label is None else storable(label), load))
    return items


def _masks(claims: Iterable[Parts]) -> dict[Parts, str]:
    """The masks of images beside them, and what they are."""
    stems = {(*parts[:-1], stem_of(parts[-1])): parts for parts in claims}
    found = {stem: masked_image(stem[-1]) for stem in stems}
    return {stems[stem]: _MASK for stem, image in found.items() if image and (*stem[:-1], image) in stems}


def _left_out(refusals: Iterable[str | None]) -> Iterator[str]:
    """A warning of images that are annotations only by their names and places."""
    if some := [why for why in refusals if why and why.endswith((f": {_MASK}", ": annotations"))]:
        yield f"skipped as annotations: {_kinds(some, SHOWN)}; if they are images to train on, rename them"


def _without_images(layout: Layout, files: Iterable[Parts]) -> Iterator[str]:
    """Warnings of folders that look like splits and hold no images."""
    depth = len(layout.base)
    names = {parts[depth] for parts in files if len(parts) > depth + 1 and parts[:depth] == layout.base}
    for name in sorted(names - layout.tree.below(layout.base).keys() if layout.splits else ()):
        if split := SPLIT_NAMES.get(name.lower()):
            place = shown((*layout.base, name))
            yield f"the folder {place!r} holds no images, so it is not taken for the {split} split"


def _skipped(refusal: str | None) -> bool:
    return refusal is not None and refusal.startswith(SKIPPED)


# Files


def _files(root: Path) -> Iterator[tuple[Parts, bool]]:
    """Path parts below `root` of everything but folders; and whether it is a link, which is not followed."""
    folders: list[Parts] = [()]
    while folders:
        above = folders.pop()
        try:
            with os.scandir(root.joinpath(*above)) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((*above, entry.name))
                    else:
                        yield (*above, entry.name), entry.is_symlink()
        except OSError as error:
            raise InputError(f"cannot read the folder {storable(str(error.filename))!r}: {error.strerror}") from None


def _refusal(root: Path, parts: Parts, is_link: bool) -> str | None:
    """Why this file is no image to load, by its name, its kind and its first bytes; None for one that is."""
    if any(part.startswith(".") or part.lower() in _LITTER_NAMES for part in parts):
        return _HIDDEN
    suffix, kind = file_kinds.suffix(parts[-1]), file_kinds.by_name(parts[-1])
    is_other = bool(suffix) and suffix not in images.SUFFIXES and not (kind and kind.is_picture)
    reason = _link_reason(root.joinpath(*parts), root) if is_link else None
    if reason and (reason == _FOLDER_LINK or not is_other):
        return reason
    # From here on, `reason` is that of a link to no image; it is not looked into.
    if suffix in images.SUFFIXES:
        return None
    if kind in (None, file_kinds.UNREAD, file_kinds.HEIC) and not reason:  # raw files begin as a TIFF does
        head = _head(root.joinpath(*parts))
        if head is None or images.begins_like_one(head):
            return None
        kind = file_kinds.by_content(head) or kind
        if kind is None and not suffix and not file_kinds.is_text(head):
            return None
    if kind:
        return f"{'' if kind.is_picture else COMPANION}{kind.name}: {kind.way_out}"
    return f"{COMPANION}{suffix or 'text'} file"


def _head(file: Path) -> bytes | None:
    """None where it cannot be read, or is no regular file: opening a pipe would wait for a writer."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(descriptor, file_kinds.HEAD) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        finally:
            os.close(descriptor)
    except OSError:
        return None


# Links


def _link_reason(file: Path, root: Path) -> str | None:
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        return "a broken link"
    if target.is_dir():
        return _FOLDER_LINK
    if target.is_relative_to(root) or (_STORED.search(str(target)) and target.is_file()):
        return None
    return "a link that leads out of the folder: copy the file instead"


def _linked_folders(path: Path, root: Path, refusals: Mapping[Parts, str | None]) -> list[str]:
    """Warnings of links to folders.

    Raises:
        InputError: images would be lost, since they are read nowhere else.
    """
    links = {shown(parts): root.joinpath(*parts).resolve() for parts, why in refusals.items() if why == _FOLDER_LINK}
    lost = {}
    inside = []
    for link, target in links.items():
        below = target.relative_to(root).parts if target.is_relative_to(root) else None
        if below is not None and not any(part.startswith(".") for part in below):
            inside.append(f"the link {link!r} is not followed; the images in {shown(below) or '.'!r} are read there")
        elif count := _count_images(target):
            lost[link] = f"{storable(str(target))!r}; links to folders are not followed, so its {count} images"
    if lost:
        link, what = next(iter(lost.items()))
        more = f" and those of {len(lost) - 1:,} more links" if len(lost) > 1 else ""
        raise InputError(
            f"{link!r} in {storable(str(path))!r} is a link to the folder {what}{more} would be missing: "
            "put a copy of the folder in its place, or remove the link"
        )
    return inside


def _count_images(folder: Path) -> str:
    """How many files there are images by their suffix, or have none; empty for none. Links are not followed."""
    entries = islice((name for _, _, names in os.walk(folder) for name in names), MOST_LINKED)
    names = [name for name in entries if not name.startswith(".")]
    count = sum(file_kinds.suffix(name) in (images.SUFFIXES | {""}) for name in names)
    return f"{count:,}{' or more' if len(names) == MOST_LINKED else ''}" if count else ""


# What is said


def _lines(layout: Layout, items: Sequence[Item], refusals: Mapping[Parts, str | None]) -> Iterator[str]:
    used = [item for item, refusal in zip(items, refusals.values(), strict=True) if not _skipped(refusal)]
    labels = Counter(item.label for item in used if item.label is not None)
    said = [f"entered {shown(layout.base)}"] if layout.base else []
    for place, (split, _) in sorted(layout.splits.items(), key=lambda entry: SPLITS.index(entry[1][0])):
        here = [item for item in used if item.split == split]
        said.append(f"{shown(place[-1:])} → {split} ({_count(len(here), 'image')}, {_classes(here)})")
    if not layout.splits:
        said.append(f"no split folders, {_classes(used)}")
    yield f"folders: {', '.join(said)}"
    if labels:
        some = ", ".join(f"{printable(label)[:40]} ({labels[label]:,})" for label in sorted(labels)[:SHOWN])
        more = f", … and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else ""
        only = " only; another class would be a folder beside it" if len(labels) == 1 else ""
        yield f"classes: {some}{more}{only}"
    if any(map(_skipped, refusals.values())):
        yield f"skipped: {_kinds(refusals.values(), SHOWN)}"


def _classes(items: Iterable[Item]) -> str:
    count = len({item.label for item in items} - {None})
    return _count(count, "class") if count else "no classes"


def _kinds(refusals: Iterable[str | None], most: int | None = None) -> str:
    """What is skipped, with its number, the commonest first."""
    reasons = (refusal.partition(": ")[2] for refusal in refusals if refusal and refusal.startswith(SKIPPED))
    counts = Counter(reason.rpartition(": ")[0] or reason for reason in reasons)  # a folder's name may hold ": "
    some = [_count(count, kind) for kind, count in counts.most_common(most)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(most))
    return ", ".join([*some, *([_count(rest, "other file")] if rest else [])])


def _count(number: int, noun: str) -> str:
    head, preposition, rest = noun.partition(" in ")
    ending = "" if number == 1 else "es" if head.endswith("s") else "s"
    return f"{number:,} {head}{ending}{preposition}{rest}"


def _to_do(refusals: Mapping[Parts, str | None]) -> Iterator[str]:
    """The way out for files that may hold images but are not read here."""
    found: dict[file_kinds.Kind, list[Parts]] = {}
    for parts, refusal in refusals.items():
        if refusal is not None and (kind := _CONTAINERS.get(refusal)):
            found.setdefault(kind, []).append(parts)
    for kind, files in found.items():
        yield f"skipped {_count(len(files), kind.name)}, such as {shown(files[0])!r}: {kind.way_out}"


_CONTAINERS = {f"{COMPANION}{kind.name}: {kind.way_out}": kind for kind in file_kinds.KINDS if not kind.is_picture}
