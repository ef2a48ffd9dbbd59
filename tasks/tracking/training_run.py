"""The MLflow run of a training: told as it goes, by its id and never through MLflow's active run.

The store may be away at any moment: the training goes on, and what was missed is sent as soon as it answers, at
the latest by the next run that reaches it (tasks.unsent).
"""

import datetime
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, Run
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from tasks import workspace
from tasks.processes import run_notes
from tasks.tracking import lineage, outbox, store
from tasks.tracking.registry import VERDICT, WEIGHTS
from vae.config.parameters import Parameters

INITIAL_WEIGHTS = "initial_weights.sha256"
SILENCE = 60  # seconds without another try, where the store did not answer

_GOES_ON = "the training goes on; what it missed is sent when it answers again"


@dataclass
class _Open:
    """A training that is told of.

    Attributes:
        remembered: a file with the id of the run, which an interrupted training goes on with.
        connection: a client and the id of the experiment, as long as the store answers.
        begun: whether the store has its run.
        silent_until: until then the store, which did not answer, is not asked again.
    """

    record: outbox.Record
    remembered: Path
    nested: bool
    connection: tuple[MlflowClient, str] | None = None
    begun: bool = False
    silent_until: float = 0.0
    stack: ExitStack = field(default_factory=ExitStack)


_open: list[_Open] = []  # the innermost last


@contextmanager
def training_run(
    name: str | None, remembered: Path, tags: Mapping[str, str], nested: bool = False
) -> Iterator[Run | None]:
    """A run that ends FINISHED, FAILED, or KILLED where a signal ended the training; None where MLflow is away.

    Args:
        remembered: a file with the id of the run, which an interrupted training goes on with.
        nested: within the run that is open: an attempt of a training that may be remedied.
    """
    name = name or os.environ.get(lineage.EXPERIMENT_NAME)
    resume = remembered.read_text() if remembered.exists() else None
    record = outbox.Record(name, dict(tags), store.uri(), resume)
    opened = _Open(record, remembered, nested)
    _open.append(opened)
    with opened.stack:
        try:
            run: list[Run] = []
            _tell(lambda client, run_id: run.append(client.get_run(run_id)))
            yield run[0] if run else None
            record.status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            record.status = "KILLED"
            raise
        except BaseException:
            record.status = "FAILED"
            raise
        finally:
            _open.remove(opened)
            _end(opened)


def _begin(client: MlflowClient, experiment_id: str, opened: _Open) -> None:
    """Opens the run, the one before the interruption where there is one, and leaves notes of it."""
    record = opened.record
    known = record.run_id is not None and outbox.exists(client, record.run_id)
    record.tags["resumed"] = str(known).lower()
    if opened.nested and len(_open) > 1 and (parent := _open[-2].record.run_id):
        record.tags["mlflow.parentRunId"] = parent
    if known:
        client.update_run(str(record.run_id), status="RUNNING")
        for tag, value in record.tags.items():
            client.set_tag(str(record.run_id), tag, value)
    else:
        record.run_id = client.create_run(experiment_id, run_name=record.name, tags=record.tags).info.run_id
    run_id = str(record.run_id)
    opened.begun = True  # before the notes: entered twice, the second would wait for the first for ever
    opened.stack.enter_context(run_notes.noted(store.running(), run_id, {"pid": os.getpid()}))
    with suppress(
        OSError
    ):  # a full or read-only disk is not MLflow's fault; an interruption begins a new run then
        opened.remembered.parent.mkdir(parents=True, exist_ok=True)
        opened.remembered.write_text(run_id)
    if not opened.nested:  # an attempt's system metrics are those of the training around it
        monitor = SystemMetricsMonitor(run_id, resume_logging=known)
        monitor.start()
        opened.stack.callback(monitor.finish)


def _tell(what: Callable[[MlflowClient, str], object]) -> None:
    """Tells the store something of the open training, after what it missed before; not while it is silent."""
    opened = _open[-1]
    record = opened.record
    if time.monotonic() < opened.silent_until:
        record.behind = True
        return
    told = False
    with store.away(_GOES_ON):
        client, experiment_id = opened.connection = opened.connection or store.connect()
        if not opened.begun:
            _begin(client, experiment_id, opened)
        if record.behind:
            outbox.send(client, experiment_id, record)
            print("MLflow answers again: what it missed is sent", flush=True)
        what(client, str(record.run_id))
        told = True
    if not told:
        record.behind, opened.connection = True, None
        opened.silent_until = time.monotonic() + SILENCE


def _end(opened: _Open) -> None:
    """Closes the run. What is to be told stands in a file first: whoever is interrupted here loses nothing."""
    record = opened.record
    record.tags["ended"] = record.status
    try:
        kept = outbox.keep(record)
    except OSError as error:
        print(
            f"warning: {error}; if MLflow does not answer now, the end of this run stays untold", flush=True
        )
        kept = None
    if time.monotonic() >= opened.silent_until:
        with store.away(_GOES_ON):
            client, experiment_id = opened.connection or store.connect(send_kept=False)
            outbox.send(client, experiment_id, record)
            if kept is not None:
                kept.unlink()
            return
    if kept is not None:
        print(
            f"WARNING: MLflow does not answer: {kept} holds what it missed, and the next run sends it",
            flush=True,
        )


def log_inputs(p: Parameters, train_images: np.ndarray, valid_images: np.ndarray) -> None:
    """Parameters as the user wrote them, the machine, and the data sets by name and digest: what a run lacks of them.

    `params.yaml` and `dvc.lock` go in as they stand, so that `tasks.cli.reproduce` can put them back.
    """
    record = _open[-1].record
    nameless, record.name = record.name is None, record.name or _name_of(p)
    record.parameters |= {
        f"{section}.{key}": value
        for section, values in p.model_dump().items()
        if isinstance(values, dict)
        for key, value in values.items()
    } | {"seed": p.seed}
    record.tags |= {**lineage.subject(p), **lineage.machine()}
    if p.train.initial_weights:
        record.tags[INITIAL_WEIGHTS] = workspace.sha256(Path(p.train.initial_weights))
    datasets = [
        DatasetInput(
            mlflow.data.from_numpy(  # type: ignore[attr-defined]  # made at import, unseen by mypy
                images, name=f"{p.data.source}-{split}", digest=workspace.sha256(workspace.images(split))[:36]
            )._to_mlflow_entity(),
            [InputTag("mlflow.data.context", split)],
        )
        for split, images in (("train", train_images), ("valid", valid_images))
    ]

    def tell(client: MlflowClient, run_id: str) -> None:
        if nameless and record.tags.get("resumed") == "false":
            client.update_run(run_id, name=record.name)
        outbox.send(client, "", record)
        for path in (workspace.PARAMS, lineage.LOCK):
            if path.exists():
                client.log_artifact(run_id, str(path))
        client.log_inputs(run_id, datasets)

    _tell(tell)


def _name_of(p: Parameters) -> str:
    """What is trained, and when, of a run that nobody named: `leaves-conv-64-20260131-120000`."""
    source = Path(p.data.path).stem if p.data.source in ("folder", "idx", "npy") else p.data.source
    source = re.sub(r"[^\w.-]+", "-", source)
    return f"{source}-{p.model.architecture}-{p.model.latent_dim}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def log_missing(history: list[dict[str, float]]) -> None:
    """Epochs that an interrupted training had no time to log."""
    record = _open[-1].record
    record.history |= {int(row["epoch"]): row for row in history}
    _tell(lambda client, run_id: outbox.send(client, "", record))


def log_epoch(row: Mapping[str, float], timing: Mapping[str, float], grid: np.ndarray | None) -> None:
    """The history's row, the timing, and a grid of reconstructions (H, W, 3) uint8 as a step image."""
    step = int(row["epoch"])
    metrics = {name: value for name, value in {**row, **timing}.items() if name != "epoch"}

    def tell(client: MlflowClient, run_id: str) -> None:
        client.log_batch(run_id, outbox.metrics_of(step, metrics))
        if grid is not None:
            client.log_image(run_id, grid, key="reconstructions", step=step)

    _tell(tell)
    _open[-1].record.history[step] = {"epoch": step, **metrics}


def log_remedy(verdict: str, changes: str, attempts: int) -> None:
    """How the kept attempt ended and what it changed, into the run of the training."""
    _tag({VERDICT: verdict, "remedy": changes, "attempts": str(attempts)})


def log_weights(sha256: str, kept_epoch: int, stopped: str | None) -> None:
    _tag({WEIGHTS: sha256, "kept_epoch": str(kept_epoch), "stopped": stopped or "no"})


def log_attempt(run_id: str | None, verdict: str, reasons: list[str], changes: list[str]) -> None:
    """What an attempt changed of the parameters and how it ended, into the run of that attempt."""
    if run_id is None:
        return
    tags = {VERDICT: verdict, "reasons": "; ".join(reasons), "changes": "; ".join(changes) or "none"}
    with store.away("the verdict of an attempt is not in its run"):
        for name, value in tags.items():
            MlflowClient().set_tag(run_id, name, value)


def _tag(tags: dict[str, str]) -> None:
    _open[-1].record.tags |= tags

    def tell(client: MlflowClient, run_id: str) -> None:
        for name, value in tags.items():
            client.set_tag(run_id, name, value)

    _tell(tell)
