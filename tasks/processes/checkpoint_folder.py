"""The folder of a training's checkpoints, named by all that decides its bits: no training resumes another one.

Parameters, data and code are those that dvc.yaml lists for the stage; device, precision, threads, processor and
libraries are in `conditions.json` in the folder.
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
from vae.config.resolved import ResolvedParameters
from vae.features.network import file_of
from vae.training import checkpoint

CONDITIONS = "conditions.json"
WAIT = 15  # seconds; a trainer whose DVC was killed takes a moment to end

log = logging.getLogger(__name__)


def root() -> Path:
    return workspace.root() / ".checkpoints"


@contextmanager
def held(p: ResolvedParameters, conditions: Mapping[str, str]) -> Iterator[Path]:
    """The folder, for this process alone. Those of other, complete trainings are removed."""
    key = key_of(p)
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    place = root() / f"{key}-{digest[:8]}"
    checkpoint.remove_finished(root(), but=place)
    for other in sorted(root().glob(f"{key}-*/{CONDITIONS}")):
        if other.parent != place:
            log.warning(_made_otherwise(other, conditions))
    # Copies of the workspace share the checkpoints: two trainings of the same key would write into one folder.
    lock = workspace.root() / ".run" / f"{place.name}.lock"
    with hold(lock, "the same training", seconds=WAIT):
        try:
            workspace.write_json(place / CONDITIONS, conditions)
        except OSError as error:
            log.warning("%s; without checkpoints an interruption costs the whole training", error)
        yield place


@contextmanager
def of_pilot(p: Parameters, conditions: Mapping[str, str], name: str = "pilot") -> Iterator[Path]:
    """The checkpoint of a pilot, for this process alone, removed once the pilot has ended.

    The epochs do not change a pilot, and those of `train.budget` are measured anew after an interruption.
    """
    p = p.model_copy(update={"train": p.train.model_copy(update={"epochs": 0})})
    digest = hashlib.sha256(f"{key_of(p, 'preflight')} {json.dumps(conditions, sort_keys=True)}".encode())
    path = root() / f"{name}-{digest.hexdigest()[:16]}.pt"
    with hold(workspace.root() / ".run" / f"{path.stem}.lock", "the same pilot", seconds=WAIT):
        yield path
        for written in root().glob(f"{path.name}*"):
            written.unlink()


def key_of(p: Parameters, stage: str = "train") -> str:
    """Names a stage's work by the parameters, data and code that dvc.yaml lists for it."""
    # What was left to a rule follows the changes of a remedy.
    rules = (p.kl.follows_epochs, p.train.follows_batch) if isinstance(p, ResolvedParameters) else ()
    digest = hashlib.sha256(repr(rules).encode())
    listed = YAML(typ="safe").load(Path("dvc.yaml"))["stages"][stage]
    values = {key: functools.reduce(getattr, key.split("."), p) for key in listed["params"]}
    digest.update(json.dumps(values, sort_keys=True, default=lambda section: section.model_dump()).encode())
    inputs = [Path(dep) for dep in listed["deps"]]
    if p.train.initial_weights:
        inputs.append(Path(p.train.initial_weights))
    if p.objective.uses_features:  # wherever it is installed
        digest.update(workspace.sha256(file_of(p.objective.features)).encode())
    for path in inputs:
        for file in _files(path):
            digest.update(f"{file.as_posix()} {workspace.sha256(file)}\n".encode())
    return digest.hexdigest()[:16]


def _files(dependency: Path) -> list[Path]:
    """The file itself, or all files of a folder that DVC counts: those of Python's caches are left out.

    None where there is no such file: a stage that is run by hand may do without one.
    """
    if not dependency.is_dir():
        return [dependency] if dependency.exists() else []
    return sorted(f for f in dependency.rglob("*") if f.is_file() and "__pycache__" not in f.parts)


def _made_otherwise(noted: Path, here: Mapping[str, str]) -> str:
    """Why an interrupted training is not resumed: under other conditions its bits would match neither."""
    theirs = workspace.read_note(noted)
    differ = ", ".join(
        f"{name} {theirs.get(name)} (here {here.get(name)})"
        for name in sorted({*theirs, *here})
        if theirs.get(name) != here.get(name)
    )
    return (
        f"{noted.parent} holds an interrupted training of the same parameters, made with {differ}: this one "
        "starts from scratch; under the same conditions it would resume from there"
    )
