"""Markdown for the pages of Prefect and MLflow: what it names stays text."""

import re
from urllib.parse import quote

from vae.config.text import printable


def plain(text: str) -> str:
    """Text as Markdown shows it, on one line: nothing in it is a link, a tag or the end of a cell."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def link(label: str, url: str) -> str:
    return f"[{plain(label)}]({quote(url, safe=_URL)})"


# The dot and the dash have a meaning only where a line begins.
_MARKDOWN = re.compile(r"([\\`*_\[\]()#+!|<>~&{}])")
_URL = ":/?#&=%@+,;~"  # as they are; brackets, spaces and quotes are not
