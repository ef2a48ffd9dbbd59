"""A folder of images: every file of the tree is an item, judged by its content and not by its extension.

The layout is

- split folders, when all folders are named train, valid (or val, validation) and test, in any case, or when
  train and at least one other of them are there; in each, class folders, or images directly (no label);
- else class folders, when there is any folder with a file in it; folders within a class folder belong to it;
- else a flat folder: no labels.

What does not fit is an item that refuses to load, so that it is quarantined and not dropped: files outside
the split or class folders, links that lead out of the folder or nowhere, links to folders (never followed,
hence no loops), and hidden or system files (`.git`, Thumbs.db and the like: their reason begins with `LITTER`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from vae.config.errors import InputError
from vae.data.item import SPLIT_NAMES, File, Item, Refused, expect_folder, storable

LITTER = "litter"
_LITTER_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}


def find(path: Path) -> list[Item]:
    """Image files in split folders, class folders or a flat folder; the module's docstring has the rules."""
    expect_folder(path, "folder")
    root = path.resolve()
    place = str(root)
    files = sorted(_files(root))
    proper = [parts for parts in files if not _is_litter(parts)]
    splits = _split_folders(sorted({parts[0] for parts in proper if len(parts) > 1}), path)
    depth = 1 if splits else 0  # how many leading folders name the split
    with_classes = {parts[:depth] for parts in proper if len(parts) > depth + 1}

    def item(parts: tuple[str, ...]) -> Item:
        top, inner = parts[:depth], parts[depth:]
        split = splits.get(parts[0]) if len(parts) > 1 else None
        label = inner[0] if len(inner) > 1 and (split or not splits) else None
        reason: str | None
        if _is_litter(parts):
            label = None
            reason = f"{LITTER}: a hidden or system file"
        elif splits and split is None:
            reason = f"outside the split folders ({', '.join(map(storable, splits))}): move it into one"
        elif label is None and top in with_classes:
            reason = "outside the class folders: move it into one"
        else:
            reason = _link_reason(root.joinpath(*parts), root)
        name = "/".join(parts)
        load = Refused(reason) if reason else File(place, name)
        return Item(storable(name), split, None if label is None else storable(label), load)

    return [item(parts) for parts in files]


def _files(root: Path) -> Iterator[tuple[str, ...]]:
    """Path parts below `root` of everything but folders; a link counts as itself and is not followed."""

    def unreadable(error: OSError) -> None:
        raise InputError(f"cannot read the folder {storable(str(error.filename))!r}: {error.strerror}")

    for place, folders, names in os.walk(root, onerror=unreadable):
        here = Path(place)
        above = here.relative_to(root).parts
        yield from ((*above, name) for name in names)
        yield from ((*above, name) for name in folders if (here / name).is_symlink())


def _is_litter(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part.lower() in _LITTER_NAMES for part in parts)


def _split_folders(folders: list[str], path: Path) -> dict[str, str]:
    """Folder → split; empty where these are class folders."""
    splits = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    found = set(splits.values())
    if not splits or not (len(splits) == len(folders) or ("train" in found and len(found) > 1)):
        return {}
    if "train" not in found:
        raise InputError(f"{str(path)!r} has {' and '.join(splits)} but no folder named train; add one")
    if len(found) < len(splits):
        raise InputError(f"{str(path)!r} has two folders for the same split among {', '.join(splits)}; merge them")
    return splits


def _link_reason(file: Path, root: Path) -> str | None:
    if not file.is_symlink():
        return None
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        return "a broken link"
    if not target.is_relative_to(root):
        return "a link that leads out of the folder: copy the file instead"
    return "a link to a folder: not followed" if target.is_dir() else None
