"""Named experiments and single values, written into `params.yaml`: the file holds the values of the last run.

An experiment starts from the defaults (`vae.config.sections`), whatever `params.yaml` holds. The user's own file is
kept aside, and a run without an overlay puts it back, unless `params.yaml` has been edited since.
"""

import difflib
import io
import json
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from tasks import workspace
from vae.config import loading
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.text import printable

EXPERIMENTS = Path("experiments")
DEFAULT = "default"  # the experiment that changes nothing


def apply(
    experiment: str | None, overrides: Mapping[str, Any] | None, check: Callable[[Parameters], None] = lambda p: None
) -> list[str]:
    """Writes `params.yaml`; returns one line for each value that changed.

    Args:
        experiment: a file of `experiments/`, without its ending, or `default`.
        overrides: `{"train.epochs": 2}`, or the same nested.
        check: looks at the parameters before they are written.

    Raises:
        InputError: an unknown experiment or parameter, a value that is not allowed, or what `check` raises;
            nothing is written then.
    """
    path = workspace.PARAMS
    current, own, base, values = _proposed(experiment, overrides)
    check(_parsed(base, values))
    text = lay_over(base, values)

    # The record goes first: killed in between, `params.yaml` is still the user's own.
    if experiment or overrides:
        workspace.write_json(_record(), {"before": base, "written": text})
    if text != current:
        workspace.write(path.resolve(), text)  # a link stays a link
    if not (experiment or overrides):
        _record().unlink(missing_ok=True)
    changes = [f"{workspace.PARAMS}: {change}" for change in _changes(current, text)]
    if own is not None and overrides and not experiment:
        changes.insert(0, "params.yaml: EXPERIMENT and SET of the last run no longer apply; repeat any to keep")
    return changes


def proposed(experiment: str | None, overrides: Mapping[str, Any] | None) -> Parameters:
    """What `apply` would write. Raises: InputError: as `apply`."""
    _, _, base, values = _proposed(experiment, overrides)
    return _parsed(base, values)


def _proposed(
    experiment: str | None, overrides: Mapping[str, Any] | None
) -> tuple[str, str | None, str, dict[str, Any]]:
    """The file as it is, the user's own one kept aside, the one to lay over, and the values to lay over it.

    What the file lacks, as one of an earlier version does, gets its default: DVC compares parameters one by one.
    """
    current = loading.read_text(workspace.PARAMS)
    own = _kept_aside(current)
    base = current if own is None else own
    values = defaults() | experiment_values(experiment) if experiment else _lacking(base)
    return current, own, base, values | flat(overrides or {})


def _lacking(text: str) -> dict[str, Any]:
    plain = loading.read_mapping(text, str(workspace.PARAMS))
    sections, written = {name for name, value in plain.items() if not isinstance(value, dict | None)}, flat(plain)
    missing = {name: value for name, value in defaults().items() if name not in written}
    return {name: value for name, value in missing.items() if name.partition(".")[0] not in sections}  # else refused


def _parsed(base: str, values: Mapping[str, Any]) -> Parameters:
    plain = loading.read_mapping(base, str(workspace.PARAMS))
    _set(plain, values)
    return loading.parse(plain, str(workspace.PARAMS))


def laid_over() -> list[str]:
    """What the last run's experiment and settings changed of the user's own file: `train.epochs: 60 → 2`."""
    current = loading.read_text(workspace.PARAMS)
    own = _kept_aside(current)
    return [] if own is None else _changes(own, current)


def parse_settings(text: str) -> dict[str, Any]:
    """`data.path=photos train.epochs=2` → values; quotes keep spaces together.

    The value of a text parameter is taken as it is, so that a folder may be called `2024`, `a #2` or `trip: rome`. Any
    other value is read as YAML.
    """
    values: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"SET = {text!r}: {error}; write name=value, with quotes around spaces") from None
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InputError(
                f"SET: {word!r} is not of the form name=value, such as train.epochs=2; "
                "put quotes around a value with spaces: data.path='my photos'"
            )
        as_it_is = _is_text(name) and not (value == "null" and "null" in _types(name))
        values[name] = value if as_it_is else loading.read_yaml(value, f"SET: {name} = {value[:200]!r}")
    return values


def as_settings(values: Mapping[str, Any]) -> str:
    """The text from which `parse_settings` reads these values."""
    return shlex.join(
        f"{name}={value if isinstance(value, str) and _is_text(name) else as_yaml(value)}"
        for name, value in values.items()
    )


def _is_text(name: str) -> bool:
    """Whether a parameter accepts text, and nothing else but null."""
    return "string" in (types := _types(name)) and types <= {"string", "null"}


def _types(name: str) -> set[str]:
    """The JSON types that a parameter accepts; none for an unknown one."""
    section, _, key = name.partition(".")
    model = Parameters.model_fields[section].annotation if section in Parameters.model_fields else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return set()
    schema = model.model_json_schema()["properties"].get(key, {})
    return {one.get("type") for one in schema.get("anyOf", [schema])}


def as_yaml(value: Any) -> str:
    """A value as YAML on one line: text as it is where that reads as text, everything else as JSON."""
    if isinstance(value, str) and value.isprintable():
        with suppress(InputError):
            if loading.read_yaml(value, "") == value:
                return value
    return json.dumps(value, ensure_ascii=False)


def defaults() -> dict[str, Any]:
    """Every parameter by its name, as YAML has it."""
    values = Parameters().model_dump(mode="json")
    height, width = values["data"]["image_size"]
    values["data"]["image_size"] = height if height == width else [height, width]
    return flat(values)


def experiment_values(name: str) -> dict[str, Any]:
    """What an experiment changes of the defaults. Raises: InputError: it does not exist, or is not YAML."""
    if name == DEFAULT:
        return {}
    known = {file.relative_to(EXPERIMENTS).with_suffix("").as_posix(): file for file in EXPERIMENTS.rglob("*.yaml")}
    if name not in known:
        close = difflib.get_close_matches(name[:200], known, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
        raise InputError(f"experiment {name[:200]!r} does not exist; {advice}")
    return flat(loading.read_mapping(loading.read_text(known[name]), str(known[name])))


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"kl": {"max_weight": 1}}` → `{"kl.max_weight": 1}`. A mapping further down is a value: a wish is one."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        section = str(key)  # of a harmful file it may be anything
        if isinstance(value, Mapping) and "." not in section:
            found |= {f"{section}.{name}": parameter for name, parameter in value.items()}
        else:
            found[section] = value
    return found


def lay_over(text: str, values: Mapping[str, Any]) -> str:
    """The YAML text with values replaced or added, comments and layout kept.

    Raises:
        InputError: the text is not a mapping, or a name is deeper than `section.name`; it is not checked otherwise.
    """
    loading.read_mapping(text, str(workspace.PARAMS))
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True
    # ruamel writes null as nothing at all, which looks like a mistake.
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    document = yaml.load(text) or {}
    _set(document, values)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _set(document: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section and document.get(section) is None:
            document[section] = {}
        place: Any = document[section] if section else document
        if not isinstance(place, dict) or "." in section:
            raise InputError(f"{printable(key[:200])} is not a parameter")
        if name in place and place[name] == value:
            continue  # keeps the way that it is written
        if isinstance(place.get(name), list) and isinstance(value, list):
            place[name][:] = value  # keeps its [flow, style]
        elif isinstance(value, dict):
            place[name] = CommentedMap(value)
            place[name].fa.set_flow_style()
        else:
            place[name] = value


def _changes(old: str, new: str) -> list[str]:
    before, after = (flat(loading.read_mapping(text, str(workspace.PARAMS))) for text in (old, new))
    return [
        f"{key}: {printable(as_yaml(before.get(key)))} → {printable(as_yaml(value))}"
        for key, value in after.items()
        if before.get(key) != value
    ]


def _record() -> Path:
    return workspace.root() / ".run" / "overlay.json"


def _kept_aside(current: str) -> str | None:
    """The user's own file, if `params.yaml` is still what an overlay wrote."""
    record = workspace.read_note(_record())
    return record.get("before") if record.get("written") == current else None
