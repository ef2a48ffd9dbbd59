"""A look at the image source before DVC sees it, because what DVC says of a missing one helps nobody."""

import os
from pathlib import Path

from vae.config.errors import InputError
from vae.config.parameters import Data
from vae.data.item import storable

BUNDLED = "data/bundled"  # what data.path is where nothing of it is read


def check(data: Data) -> None:
    """Raises: InputError: the path is missing, unreadable, or holds what DVC stops at or would read for ever."""
    path = Path(data.path)
    bundled = path.absolute() == Path(BUNDLED).absolute()
    if data.source == "digits" and not bundled:
        raise InputError(
            f"data.path = {data.path} is not read with data.source = digits, which are bundled; add data.source=folder "
            "(or idx, npy, huggingface), or an experiment such as EXPERIMENT=leaves"
        )
    if data.source != "digits" and bundled:
        raise InputError(
            f"data.source = {data.source} needs data.path: no images lie in {BUNDLED}; "
            'add data.path=/path/to/images, for example in SET="data.path=/path/to/images"'
        )
    if data.path == "~" or data.path.startswith("~/"):
        raise InputError(f"data.path = {data.path}: write the home folder out: {path.expanduser()}")
    try:
        exists = path.exists()
    except OSError as error:  # a name that is too long, a folder above it that is closed to us
        raise InputError(f"data.path = {data.path[:200]} can not be read: {error.strerror}") from None
    if not exists:
        raise InputError(f"data.path = {data.path} does not exist (looked for {path.absolute()})")
    if not os.access(path, os.R_OK):
        raise InputError(f"data.path = {data.path} can not be read; check its permissions")
    for what, found in _untrackable(path).items():
        if found:
            raise InputError(
                f"data.path = {data.path} holds {len(found)} {what}, such as {storable(str(found[0]))!r}; "
                "remove or rename them, because DVC can not track them"
            )


def _untrackable(path: Path) -> dict[str, list[Path]]:
    """DVC stops at the first, can not write down the second, and reads from the third without end."""
    entries = [path, *path.rglob("*")] if path.is_dir() else [path]
    neither = [entry for entry in entries if not (entry.is_file() or entry.is_dir())]
    return {
        "link(s) that lead nowhere": [entry for entry in neither if not entry.exists()],
        "name(s) that are no UTF-8": [entry for entry in entries if storable(str(entry)) != str(entry)],
        "pipe(s), socket(s) or device(s)": [entry for entry in neither if entry.exists()],
    }
