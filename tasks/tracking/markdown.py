"""Markdown for the pages of Prefect and MLflow, with names escaped."""

import re
from urllib.parse import quote

from vae.config.text import printable

# A dot or a dash has a meaning only at the start of a line.
_MARKDOWN = re.compile(r"([\\`*_\[\]()#+!|<>~&{}])")
_URL = ":/?#&=%@+,;~"  # kept as they are; brackets, spaces and quotes are not


def plain(text: str) -> str:
    """The text on one line, escaped: nothing in it is a link, a tag or the end of a cell."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def link(label: str, url: str) -> str:
    return f"[{plain(label)}]({quote(url, safe=_URL)})"
