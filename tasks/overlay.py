"""Named experiments and single values, laid over `params.yaml`: what ran is what stands there.

An experiment starts from `experiments/default.yaml`, never from what happened to stand in `params.yaml`.
The file before is kept aside, and a run without an overlay puts it back, unless a person has edited
`params.yaml` since.
"""

import difflib
import io
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks import workspace
from vae.config import parameters, plain_yaml
from vae.config.errors import InputError
from vae.config.parameters import Parameters

EXPERIMENTS = Path("experiments")
DEFAULT = "default"
LONGEST_TEXT = 4096  # of one value: a path, at most


def apply(
    experiment: str | None,
    overrides: Mapping[str, Any] | None,
    check: Callable[[Parameters], None] = lambda p: None,
) -> list[str]:
    """Writes `params.yaml`; returns what changed, a line for each value.

    Args:
        experiment: a file of `experiments/`, without its ending.
        overrides: `{"train.epochs": 2}`, or the same nested.
        check: looks at the parameters before they are written.

    Raises:
        InputError: an unknown experiment or parameter, a value that is not allowed, or what `check` raises;
            nothing is written then.
    """
    path = workspace.PARAMS
    standing = _text(path) if path.exists() else ""
    before = _kept_aside(standing)
    if not experiment and not overrides:
        text = before if before is not None else standing
    else:
        base = _text(EXPERIMENTS / f"{DEFAULT}.yaml") if experiment else before or standing
        values = flat(_experiment(experiment)) if experiment else {}
        text = lay_over(base, {**values, **flat(overrides or {})})
    check(parameters.parse(mapping(text, "params.yaml"), "params.yaml"))

    if text != standing:
        path.write_text(text, encoding="utf-8")
    if experiment or overrides:
        _keep_aside(before if before is not None else standing, written=text)
    else:
        _record().unlink(missing_ok=True)
    changes = _changes(standing, text)
    if before is not None and overrides and not experiment:
        changes.insert(
            0, "params.yaml: EXPERIMENT and SET of the run before are off again; repeat what is to stay"
        )
    return changes


def parse_settings(text: str) -> dict[str, Any]:
    """`data.path=photos train.epochs=2` → values, each read as YAML reads it; quotes keep spaces together."""
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
                "a value with spaces wants quotes: data.path='my photos'"
            )
        values[name] = plain_yaml.read(value, f"SET: {name} = {value[:200]!r}")
    return values


def _experiment(name: str) -> dict[str, Any]:
    known = {
        file.relative_to(EXPERIMENTS).with_suffix("").as_posix(): file for file in EXPERIMENTS.rglob("*.yaml")
    }
    if name not in known:
        close = difflib.get_close_matches(name[:200], known, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
        raise InputError(f"experiment {name[:200]!r} does not exist; {advice}")
    return mapping(_text(known[name]), str(known[name]))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8: {error}") from None


def mapping(text: str, origin: str) -> dict[str, Any]:
    """Raises: InputError: no YAML, or no mapping."""
    values = plain_yaml.read(text, origin)
    if not isinstance(values, dict | None):
        raise InputError(f"{origin} holds {type(values).__name__} where a mapping of sections is expected")
    return values or {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"kl": {"max_weight": 1}}` → `{"kl.max_weight": 1}`.

    Raises: InputError: nested deeper than any parameter is.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key.count(".") > plain_yaml.MAX_DEPTH:
            raise InputError(f"{key[:200]} is not a parameter; params.yaml names them all")
        found |= flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return found


def lay_over(text: str, values: Mapping[str, Any]) -> str:
    """The YAML text with values replaced, comments and layout kept."""
    mapping(text, "params.yaml")
    yaml = _yaml()
    try:
        document = yaml.load(text) or {}
    except (YAMLError, ValueError, AttributeError) as error:  # the C library, which read it, forgives more
        raise InputError(f"params.yaml is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise InputError("params.yaml is read in two ways; write it anew: make run EXPERIMENT=default")
    for key, value in values.items():
        *sections, name = key.split(".")
        place: Any = document
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or name not in place:
            like = difflib.get_close_matches(key[:200], flat(document), 1)
            hint = f"did you mean {like[0]}?" if like else "params.yaml names them all"
            raise InputError(f"{_one_line(key)} is not a parameter; {hint}")
        _check_plain(key, value)
        if isinstance(place[name], list) and isinstance(value, list):
            place[name][:] = value  # keeps its [flow, style]
        else:
            place[name] = value
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _changes(old: str, new: str) -> list[str]:
    try:
        before = flat(mapping(old, "params.yaml"))
    except InputError as error:
        return [f"{error}; it is written anew"]
    after = flat(mapping(new, "params.yaml"))
    return [
        f"params.yaml: {key}: {before.get(key)} → {after.get(key)}"
        for key in after
        if before.get(key) != after[key]
    ]


def _record() -> Path:
    return workspace.root() / ".run" / "overlay.json"


def _keep_aside(before: str, written: str) -> None:
    _record().parent.mkdir(parents=True, exist_ok=True)
    _record().write_text(json.dumps({"before": before, "written": written}), encoding="utf-8")


def _kept_aside(standing: str) -> str | None:
    """The person's own file, where what stands in `params.yaml` is still what an overlay wrote."""
    try:
        record = json.loads(_record().read_text(encoding="utf-8"))
        return record["before"] if record["written"] == standing else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_plain(key: str, value: Any) -> None:
    """Raises: InputError: no parameter is such a thing, and writing it as YAML could take for ever."""
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, list | tuple | dict | set):
            raise InputError(f"{key} is nested; one value, or a list of values, is expected")
        if isinstance(part, str) and len(part) > LONGEST_TEXT:
            raise InputError(f"{key} has {len(part):,} characters; at most {LONGEST_TEXT:,} are taken")
        if isinstance(part, int) and part.bit_length() > 1024:
            raise InputError(
                f"{key} is a number of {part.bit_length():,} bits, more than any parameter takes"
            )


def _one_line(text: str) -> str:
    return text[:200] if text[:200].isprintable() else ascii(text[:200])


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    # ruamel writes null as nothing at all, which reads like a slip.
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml
