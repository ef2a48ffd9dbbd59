"""The descriptions of runs and models on MLflow's pages, by the templates beside this file."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.tracking.markdown import plain
from vae.config.text import number
from vae.report.numbers import KEY_NUMBERS

LONGEST = 4900  # characters; the registry's column takes 5,000
_LONGEST_VALUE = 500


def render(page: str, **content: Any) -> str:
    """The Markdown of `run`, `model` (whatever its version) or `version`, cut to what the registry takes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "plain": lambda text: plain(str(text)[:_LONGEST_VALUE])}
    return environment.get_template(f"{page}.md.j2").render(key_numbers=KEY_NUMBERS, **content)[:LONGEST]
