"""YAML that a person wrote, or somebody sent, read as plain data whatever stands in it."""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vae.config.errors import InputError

MAX_CHARACTERS = 100_000
MAX_DEPTH = 20


def read(text: str, origin: str) -> Any:
    """Mappings, lists and scalars, as YAML 1.2 has them; None of an empty text.

    Anchors are refused: nine lines of them unfold to a billion values. So are tags, which name types, and what
    is nested deeper than any parameter is, on which YAML's C library ends the process.

    Raises:
        InputError: naming `origin`: it is no YAML, or one of these.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"{origin} is too large: {len(text):,} characters, at most {MAX_CHARACTERS:,} are read"
        )
    try:
        if fault := _fault(text):
            raise InputError(f"{origin} is not plain YAML: {fault}")
        return YAML(typ="safe").load(text)
    except (
        YAMLError,
        ValueError,
    ) as error:  # ValueError: 2024-13-45 looks like a date, 5,000 digits like a number
        raise InputError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def _fault(text: str) -> str | None:
    """Looks at the events of the parser, before anything is made of them."""
    depth = 0
    for event in YAML(typ="safe").parse(text):
        depth += type(event).__name__.endswith(("SequenceStartEvent", "MappingStartEvent"))
        depth -= type(event).__name__.endswith(("SequenceEndEvent", "MappingEndEvent"))
        where = f"line {event.start_mark.line + 1}"
        if depth > MAX_DEPTH:
            return f"{where} is nested more than {MAX_DEPTH} deep"
        if getattr(event, "anchor", None) is not None:
            return f"{where} has the anchor or alias {event.anchor!r}; write the value out"
        if getattr(event, "tag", None) is not None:
            return f"{where} has the tag {event.tag!r}; write the value without it"
    return None
