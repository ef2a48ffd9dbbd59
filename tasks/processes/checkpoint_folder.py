"""Where the checkpoints of a training lie: a folder named by all that decides its bits.

Parameters, data and code by what dvc.yaml says that the stage depends on; device, precision, threads, processor and
libraries by `conditions.json` in the folder. So no training resumes from another one's state.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from tasks import workspace
from tasks.processes.lock import hold
from vae.config.parameters import Parameters
from vae.training import checkpoint

CONDITIONS = "conditions.json"
WAIT = 15  # seconds, for a trainer whose DVC was killed and that takes a moment to end

log = logging.getLogger(__name__)


def root() -> Path:
    return workspace.root() / ".checkpoints"


@contextmanager
def held(p: Parameters, conditions: Mapping[str, str]) -> Iterator[Path]:
    """The folder, for this process alone; those of complete trainings are removed, but for this one's."""
    key = key_of(p)
    place = root() / f"{key}-{_digest(conditions)[:8]}"
    checkpoint.remove_finished(root(), but=place)
    for other in sorted(root().glob(f"{key}-*/{CONDITIONS}")):
        if other.parent != place:
            log.warning(_made_otherwise(other, conditions))
    # Copies of the workspace share the checkpoints: two of the same training would write into one another's.
    lock = workspace.root() / ".run" / f"{place.name}.lock"
    with hold(lock, "the same training", seconds=WAIT):
        try:
            place.mkdir(parents=True, exist_ok=True)
            workspace.write_json(place / CONDITIONS, dict(conditions))
        except OSError as error:
            log.warning("%s; without checkpoints an interruption costs the whole training", error)
        yield place


def key_of(p: Parameters) -> str:
    """Names a training by what dvc.yaml says it depends on: parameters, data and code."""
    digest = hashlib.sha256()
    stage = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["train"]
    values = {key: functools.reduce(getattr, key.split("."), p) for key in stage["params"]}
    digest.update(json.dumps(values, sort_keys=True, default=lambda section: section.model_dump()).encode())
    inputs = [Path(dep) for dep in stage["deps"]]
    if p.train.initial_weights:
        inputs.append(Path(p.train.initial_weights))
    for path in inputs:
        for file in _files(path):
            digest.update(f"{file.as_posix()} {workspace.sha256(file)}\n".encode())
    return digest.hexdigest()[:16]


def _files(dependency: Path) -> list[Path]:
    """A file itself, or all files of a folder, as DVC counts them: without Python's caches."""
    if not dependency.is_dir():
        return [dependency]
    return sorted(f for f in dependency.rglob("*") if f.is_file() and "__pycache__" not in f.parts)


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _made_otherwise(noted: Path, here: Mapping[str, str]) -> str:
    """Why an interrupted training is not resumed: under other conditions its bits would be neither's."""
    try:
        theirs = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        theirs = {}
    differ = ", ".join(
        f"{name} {theirs.get(name)} (here {here.get(name)})"
        for name in sorted({*theirs, *here})
        if theirs.get(name) != here.get(name)
    )
    return (
        f"{noted.parent} holds an interrupted training of the same parameters, made with {differ}: this one "
        "starts anew; under the same conditions it would resume from there"
    )
