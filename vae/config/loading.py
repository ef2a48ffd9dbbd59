"""Reads parameters from YAML and checks them; an error says what to change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML, YAMLError

from vae.config.errors import InputError
from vae.config.parameters import Parameters

P = TypeVar("P", bound=Parameters)

MOST_COMPLAINTS = 20


def load(path: Path = Path("params.yaml")) -> Parameters:
    """Reads and checks a parameter file.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or holds a value that is not allowed.
    """
    return parse(read_mapping(read_text(path), str(path)), str(path))


def read_text(path: Path) -> str:
    """Raises: InputError: the file is missing or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run this from the project's folder") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from None


def read_yaml(text: str, origin: str) -> Any:
    """Plain data: mappings, lists and scalars. Tags that name types are refused.

    Raises:
        InputError: naming `origin`: it is not YAML.
    """
    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError, LookupError) as error:  # ValueError: 2024-13-45; LookupError: !!bool foo
        raise InputError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def read_mapping(text: str, origin: str) -> dict[str, Any]:
    """An empty text is an empty mapping. Raises: InputError: it is not YAML, or not a mapping."""
    values = read_yaml(text, origin)
    if not isinstance(values, dict | None):
        raise InputError(f"{origin} holds {type(values).__name__} where a mapping of sections is expected")
    return values or {}


def parse(values: Mapping[str, Any], origin: str = "params.yaml") -> Parameters:
    """Plain values, as read from YAML, as `Parameters`; see `checked`."""
    return checked(Parameters, values, origin)


def checked(model: type[P], values: Mapping[str, Any], origin: str) -> P:
    """A missing value takes its default.

    Raises:
        InputError: in a line for each key that is unknown or out of range, with its value.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"{origin}: {_describe(e)}" for e in _merge(error.errors())]
        if len(lines) > MOST_COMPLAINTS:
            lines[MOST_COMPLAINTS:] = [f"{origin}: and {len(lines) - MOST_COMPLAINTS:,} more"]
        raise InputError("\n".join(lines)) from None


def _merge(errors: list[Any]) -> list[Any]:
    """Joins the errors of one key: a union reports each of its branches."""
    merged: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        key = tuple(part for depth, part in enumerate(error["loc"]) if depth < 2 or isinstance(part, int))
        if key in merged:
            merged[key]["msg"] += f"; or: {error['msg']}"
        else:
            merged[key] = {**error, "loc": key}
    return list(merged.values())


def _describe(error: Any) -> str:
    parts = (str(part) for part in error["loc"])
    name = _short(".".join(part if part.isprintable() else ascii(part) for part in parts))
    match error["type"]:
        case "extra_forbidden":
            section = error["loc"][0] if len(error["loc"]) > 1 else None
            model = Parameters.model_fields[section].annotation if section else Parameters
            known = ", ".join(model.model_fields)  # type: ignore[union-attr]  # every section is a model
            return f"{name} is not a parameter; known here: {known}"
        case "value_error":
            return f"{name}: {error['ctx']['error']}" if name else str(error["ctx"]["error"])
    message = error["msg"][0].lower() + error["msg"][1:]
    quotes = "; put quotes around it in YAML" if error["type"] == "string_type" and error["input"] is not None else ""
    return f"{name} = {_shown(error['input'])}: {_without(message, 'input ', 'Input ', 'Value error, ')}{quotes}"


def _without(message: str, *words: str) -> str:
    for word in words:
        message = message.replace(word, "")
    return message


def _shown(value: Any) -> str:
    try:
        return _short(repr(value))
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
