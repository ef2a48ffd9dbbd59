"""Where images come from: each source gives a list of items, one for every image or file in it.

An item knows its name, its split and label where the source has them, and how to load itself. Nothing is
decoded here and no pixels are held; large arrays are memory-mapped.
"""

from pathlib import Path

from vae.config.errors import InputError
from vae.config.sections import Data
from vae.data import arrays, huggingface
from vae.data.folders import folder
from vae.data.item import Item


def find(data: Data) -> list[Item]:
    """The items of `data.source`, in an order that depends only on its content.

    Raises:
        InputError: `data.path` is missing, empty, or not what `data.source` expects.
    """
    path = Path(data.path).expanduser()
    match data.source:
        case "digits":
            items = arrays.digits()
        case "folder":
            items = folder.find(path)
        case "idx":
            items = arrays.idx(path, data.value_range)
        case "npy":
            items = arrays.npy(path, data.value_range)
        case "huggingface":
            items = huggingface.find(data.path)
    if not items:
        raise InputError(f"data.path = {data.path!r} holds no images; give a path that does")
    return items
