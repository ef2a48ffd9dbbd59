"""Runs as a person names them: found, compared, reported, promoted."""

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from tasks import workspace
from tasks.tracking import lookup, promotion, registry, store
from tasks.tracking.lookup import here, reason_of, version_of
from vae.config.errors import InputError
from vae.config.text import number
from vae.models.saved import WEIGHTS_FILE, weights_hash

_RUN_NAME = re.compile(r"[\w.=+-]+")  # as flows.runs makes them: leaves-epochs=2-20260131-120000


def find(name: str) -> Run:
    """A run by its id or name, or the run that made a model, which is named as for `models.load`.

    Raises:
        InputError: there is none.
    """
    client, experiment = store.connect()

    def newest(condition: str) -> Run | None:
        found = client.search_runs(
            [experiment], condition, order_by=["attributes.start_time DESC"], max_results=1
        )
        return found[0] if found else None

    try:
        if found := re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})(?:/.*)?", name):
            return client.get_run(found[1])
        may_be_a_name = _RUN_NAME.fullmatch(name) and not Path(name).expanduser().exists()
        if may_be_a_name and (run := _named(client, experiment, name)):
            return run
        if not lookup.in_mlflow(name):
            run = newest(f"tags.`{store.WEIGHTS}` = '{_weights_of(Path(name).expanduser())}'")
            if run is None:
                raise InputError(f"MLflow has no run of the weights in {name}")
            return run
        version = version_of(name)
        if run := registry.run_behind(client, version):
            return run
        raise InputError(f"{name}: the run of version {version.version} was deleted from MLflow")
    except MlflowException as error:
        raise InputError(f"{name}: {reason_of(error)}") from None


def _named(client: MlflowClient, experiment: str, name: str) -> Run | None:
    """The newest run of that name, with its verdict behind it or without."""
    like = f"attributes.run_name LIKE '{name}%'"
    found = client.search_runs([experiment], like, order_by=["attributes.start_time DESC"])
    names = ((run, str(run.info.run_name)) for run in found)
    return next(
        (
            run
            for run, its in names
            if name in (its, its.removesuffix(f"-{run.data.tags.get(store.VERDICT)}"))
        ),
        None,
    )


def _weights_of(folder: Path) -> str:
    if not (folder / WEIGHTS_FILE).exists():
        raise InputError(f"{folder} is no folder with a model: {WEIGHTS_FILE} is missing")
    return weights_hash(folder)


@dataclass(frozen=True)
class Comparison:
    """Two runs: their names, what is told of each, metrics of the test split, parameters that differ."""

    names: tuple[str, str]
    about: dict[str, tuple[str | None, str | None]]
    metrics: dict[str, tuple[float | None, float | None]]
    parameters: dict[str, tuple[str | None, str | None]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        def told(value: str | None) -> str:
            return value or "-"

        rows = [("", *self.names)]
        rows += [(name, told(one), told(other)) for name, (one, other) in self.about.items()]
        rows += [(f"test {name}", number(one), number(other)) for name, (one, other) in self.metrics.items()]
        rows += [(name, told(one), told(other)) for name, (one, other) in self.parameters.items()]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{name:<{first}}  {one:<{second}}  {other}".rstrip() for name, one, other in rows]
        if self.about["data"][0] != self.about["data"][1]:
            lines.append("(other data: numbers of two data sets tell nothing of which model is better)")
        return "\n".join(lines)


def compare(one: Run, other: Run) -> Comparison:
    def pairs(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        return {
            name: (first.get(name), second.get(name)) for name in (*first, *(second.keys() - first.keys()))
        }

    told = {
        "verdict": store.VERDICT,
        "data": "data.sha256",
        "commit": "git.commit",
        "weights": store.WEIGHTS,
    }
    tags = {name: [run.data.tags.get(tag) for run in (one, other)] for name, tag in told.items()}
    about = {
        name: (first, second) if name == "verdict" else (first and first[:12], second and second[:12])
        for name, (first, second) in tags.items()
    }
    parameters = pairs(one.data.params, other.data.params)
    return Comparison(
        names=(str(one.info.run_name), str(other.info.run_name)),
        about=about,
        metrics=dict(sorted(pairs(registry.test_metrics(one), registry.test_metrics(other)).items())),
        parameters={name: pair for name, pair in sorted(parameters.items()) if pair[0] != pair[1]},
    )


def report(name: str | None, to: Path | None) -> Path:
    """The report of a run, or the last one of the workspace, where it is or as a copy.

    Raises:
        InputError: there is none, or it can not be copied.
    """
    file = here(workspace.REPORT) if name is None else _downloaded(find(name))
    if not file.exists():
        raise InputError(f"{file} does not exist; `dvc repro` makes it")
    if to is None:
        return file
    try:
        return Path(shutil.copyfile(file, to))
    except OSError as error:
        raise InputError(f"cannot write {str(to)!r}: {error.strerror or error}") from None


def _downloaded(run: Run) -> Path:
    place = workspace.root() / ".run" / "reports" / run.info.run_id
    try:
        place.mkdir(parents=True, exist_ok=True)
        uri = f"runs:/{run.info.run_id}/report.html"
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(place)))
    except (MlflowException, OSError) as error:
        raise InputError(
            f"no report of run {run.info.run_name} is to be had ({reason_of(error)}): either its evaluate did not "
            "come to its end, or its artifacts are out of reach"
        ) from None


@dataclass(frozen=True)
class Outcome:
    """What became of a wish to change the champion: the version it was about, the champion now, and why."""

    version: str
    champion: str | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def promote(name: str, force: bool) -> Outcome:
    """Gives a registered version the alias `champion`, if the gate lets it through; the decision goes into its run."""
    client, _ = store.connect()
    with promotion.alone():
        version = version_of(name)
        wanted = str(version.version)
        found = registry.champion(client, version.name)
        champion = str(found.version) if found else None
        if champion == wanted:
            return Outcome(wanted, champion, f"version {wanted} is the champion already")
        decision = promotion.judge(client, version)
        if not force and not decision.passes:
            said = promotion.in_words(decision)
            promotion.record(client, version, decision, said, "by hand")
            return Outcome(wanted, champion, f"version {wanted} {said}; --force promotes it anyway")
        promotion.crown(client, version)
        why = (
            decision.reason
            if decision.passes
            else f"by force (by the gate it {promotion.in_words(decision)})"
        )
        before = f"; the champion before was version {champion}" if champion else ""
        promotion.record(client, version, decision, f"was promoted: {why}", "forced" if force else "by hand")
        return Outcome(wanted, wanted, f"version {wanted} is the champion: {why}{before}")


def rollback() -> Outcome:
    """Gives the alias `champion` back to the version that had it before.

    Raises:
        InputError: there is none.
    """
    client, _ = store.connect()
    name = lookup.registered_name()
    if not client.search_registered_models(f"name = '{name}'"):
        raise InputError(f"no model {name} is registered yet: a run of the pipeline registers one")
    with promotion.alone():
        now, champion = promotion.roll_back(client, name)
    rest = (
        "" if now is None else f"; version {now} is not promoted again, unless by `vae promote {now} --force`"
    )
    return Outcome(now or champion, champion, f"version {champion} is the champion again{rest}")
