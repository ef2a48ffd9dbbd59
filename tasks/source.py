"""A look at the image source before DVC sees it, because what DVC says of a missing one helps nobody."""

import os
from pathlib import Path

from vae.errors import InputError
from vae.parameters import Data

BUNDLED = "data/bundled"  # what data.path is where nothing of it is read


def check(data: Data) -> None:
    """Raises: InputError: the path is missing, unreadable, or holds a link that leads nowhere."""
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
    if path.is_dir():
        broken = [entry for entry in path.rglob("*") if entry.is_symlink() and not entry.exists()]
        if broken:
            raise InputError(
                f"data.path = {data.path} holds {len(broken)} link(s) that lead nowhere, such as {broken[0]}; "
                "remove them, because DVC can not track them"
            )
