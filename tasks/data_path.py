"""A check of `data.path` before DVC reads it: DVC's own errors do not help, and it would read a pipe forever."""

import os
from pathlib import Path

from tasks import workspace
from vae.config.constants import SPLITS
from vae.config.errors import InputError
from vae.config.sections import Data
from vae.data.item import storable

BUNDLED = "data/bundled"  # the value of data.path for data.source = digits, which does not read it

# What a run writes. DVC deletes its outputs before their stage runs, photos among them.
_WRITTEN = (
    workspace.IMAGES, workspace.MANIFEST, workspace.DECODED, workspace.MODEL, workspace.REPORTS,
    *map(Path, (".checkpoints", ".dvc", ".git", ".prefect", ".run", "mlruns")),
)  # fmt: skip


def check(data: Data) -> None:
    """Raises: InputError: the path is missing or unreadable, or DVC would delete it, fail on it or read it forever."""
    path = Path(data.path)
    _check_images()
    bundled = path.absolute() == Path(BUNDLED).absolute()
    if data.source == "digits" and not bundled:
        raise InputError(
            f"data.path = {data.path} has no effect with data.source = digits, which are bundled; add "
            "data.source=folder (or idx, npy, huggingface), or an experiment such as EXPERIMENT=photos"
        )
    if data.source != "digits" and bundled:
        raise InputError(
            f"data.source = {data.source} needs data.path: {BUNDLED} holds no images; "
            'add data.path=/path/to/images, for example in SET="data.path=/path/to/images"'
        )
    if data.path == "~" or data.path.startswith("~/"):
        raise InputError(f"data.path = {data.path}: write it in full: {path.expanduser()}")
    try:
        exists = path.exists()
    except OSError as error:  # the name is too long, or a folder above it may not be entered
        raise InputError(f"data.path = {data.path[:200]} cannot be read: {error.strerror}") from None
    if not exists:
        raise InputError(f"data.path = {data.path} does not exist (looked for {path.absolute()})")
    if not os.access(path, os.R_OK):
        raise InputError(f"data.path = {data.path} cannot be read; check its permissions")
    _check_apart(data.path)
    for what, found in _untrackable(path).items():
        if found:
            raise InputError(
                f"data.path = {data.path} holds {len(found)} {what}, such as {storable(str(found[0]))!r}; "
                "remove or rename them, because DVC cannot track them"
            )


def _check_images() -> None:
    """Raises: InputError: the folder that ingest writes holds files of somebody else's."""
    own = {workspace.images(split).name for split in SPLITS}
    entries = sorted(workspace.IMAGES.iterdir()) if workspace.IMAGES.is_dir() else []
    if others := [one for one in entries if one.name not in own and not one.name.startswith(".")]:
        raise InputError(
            f"{workspace.IMAGES} holds {len(others)} file(s) or folder(s) that are not the pipeline's, such as "
            f"{storable(str(others[0]))!r}; a run would delete them: move them to a folder of their own, such as "
            "data/photos, and set data.path to that"
        )


def _check_apart(data_path: str) -> None:
    """Raises: InputError: a run would change the data, or would write among them."""
    path = Path(data_path).resolve()
    for written in _WRITTEN:
        place = written.resolve()
        if path.is_relative_to(place):
            how = f"is {written}" if path == place else f"lies inside {written}"
        elif place.is_relative_to(path):
            how = f"contains {written}"
        else:
            continue
        raise InputError(
            f"data.path = {data_path} {how}, which a run writes; "
            "move the images to a folder of their own, such as data/photos, and set data.path to that"
        )


def _untrackable(path: Path) -> dict[str, list[Path]]:
    """DVC stops at the first and the last, cannot record the second, and reads the third without end."""
    entries = [path, *path.rglob("*")] if path.is_dir() else [path]
    special = [entry for entry in entries if not (entry.is_file() or entry.is_dir())]
    return {
        "broken link(s)": [entry for entry in special if not entry.exists()],
        "name(s) that are not UTF-8": [entry for entry in entries if storable(str(entry)) != str(entry)],
        "pipe(s), socket(s) or device(s)": [entry for entry in special if entry.exists()],
        ".dvcignore file(s)": [entry for entry in entries if entry.name == ".dvcignore"],
    }
