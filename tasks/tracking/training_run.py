"""The MLflow run of a training, told as it goes: by its id, and never through MLflow's active run.

The store may be away at any moment: the training goes on, and the run is completed when it answers again, at the
latest from the files when the model is evaluated.
"""

import datetime
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from tasks import workspace
from tasks.processes import run_notes
from tasks.tracking import lineage, store
from vae.config.parameters import Parameters

INITIAL_WEIGHTS = "initial_weights.sha256"
SILENCE = 60  # seconds without another try, where the store did not answer

_GOES_ON = "the training goes on; the run is completed when it answers again"


@contextmanager
def training_run(
    name: str | None, remembered: Path, tags: Mapping[str, str], parent: "TrainingRun | None" = None
) -> Iterator["TrainingRun"]:
    """A run that ends FINISHED, FAILED, or KILLED where a signal ended the training.

    Args:
        remembered: a file with the id of the run, which an interrupted training goes on with.
        parent: the run of the whole training, where this one is an attempt.
    """
    run = TrainingRun(name or os.environ.get(lineage.EXPERIMENT_NAME), remembered, tags, parent)
    status = "FAILED"
    try:
        run.send()
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.end(status)


class TrainingRun:
    """What is told of a training, and what the store lacks of it.

    Attributes:
        run_id: None where the store has never answered.
        behind: whether the store lacks something of tags, parameters or history.
    """

    def __init__(
        self, name: str | None, remembered: Path, tags: Mapping[str, str], parent: "TrainingRun | None"
    ) -> None:
        self.name, self.remembered, self.tags, self.parent = name, remembered, dict(tags), parent
        self.run_id = remembered.read_text() if remembered.exists() else None
        self._is_new = self.run_id is None
        self.parameters: dict[str, Any] = {}
        self.history: dict[int, Mapping[str, float]] = {}
        self.behind = False
        self._client: MlflowClient | None = None  # as long as the store answers
        self._silent_until = 0.0
        self._open, self._ended = ExitStack(), False

    def log_inputs(self, p: Parameters, train_images: np.ndarray, valid_images: np.ndarray) -> None:
        """Parameters as the user wrote them, the machine, and the data sets by name and digest.

        `params.yaml` and `dvc.lock` go in as they stand, so that `vae reproduce` can put them back.
        """
        self.parameters |= store.flat_parameters(p)
        self.tags |= {**lineage.subject(p), **lineage.machine()}
        if self.name is None and self._is_new:
            self.tags["mlflow.runName"] = _name_of(p)
        if p.train.initial_weights:
            self.tags[INITIAL_WEIGHTS] = workspace.sha256(Path(p.train.initial_weights))
        datasets = [
            DatasetInput(
                mlflow.data.from_numpy(  # type: ignore[attr-defined]  # made at import, unseen by mypy
                    images,
                    name=f"{p.data.source}-{split}",
                    digest=workspace.sha256(workspace.images(split))[:36],
                )._to_mlflow_entity(),
                [InputTag("mlflow.data.context", split)],
            )
            for split, images in (("train", train_images), ("valid", valid_images))
        ]
        self.behind = True

        def inputs(client: MlflowClient, run_id: str) -> None:
            for path in (workspace.PARAMS, lineage.LOCK):
                if path.exists():
                    client.log_artifact(run_id, str(path))
            client.log_inputs(run_id, datasets)

        self.send(inputs)

    def log_history(self, history: list[dict[str, float]]) -> None:
        """Epochs that an interrupted training had no time to log."""
        self.history |= {int(row["epoch"]): row for row in history}
        self.behind = True
        self.send()

    def log_epoch(
        self, row: Mapping[str, float], timing: Mapping[str, float], grid: np.ndarray | None
    ) -> None:
        """The history's row, the timing, and a grid of reconstructions (H, W, 3) uint8 as a step image."""
        metrics = {**row, **timing}

        def epoch(client: MlflowClient, run_id: str) -> None:
            client.log_batch(run_id, store.metrics_of(metrics))
            if grid is not None:
                client.log_image(run_id, grid, key="reconstructions", step=int(row["epoch"]))

        self.send(epoch)
        self.history[int(row["epoch"])] = metrics

    def tag(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags
        self.send(lambda client, run_id: store.set_tags(client, run_id, tags))

    def send(self, what: Callable[[MlflowClient, str], object] = lambda client, run_id: None) -> None:
        """Tells the store something, after what it missed before; not while it is silent."""
        if time.monotonic() < self._silent_until:
            self.behind = True
            return
        told = False
        with store.away(_GOES_ON):
            self._tell(what)
            told = True
        if not told:
            self.behind, self._client = True, None
            self._silent_until = time.monotonic() + SILENCE

    def end(self, status: str) -> None:
        """Gives the run its status. Where the store is away, a note keeps it, with the tags, for the next process."""
        self.tags[store.ENDED] = status
        self.behind = True
        self.send(lambda client, run_id: client.set_terminated(run_id, status))
        self._open.close()
        self._ended = True
        if self.behind and self.run_id is not None:
            note = store.notes() / f"{self.run_id}.json"
            with suppress(OSError):
                note.write_text(json.dumps({"status": status, "tags": self.tags}), encoding="utf-8")

    def _tell(self, what: Callable[[MlflowClient, str], object]) -> None:
        if self._client is None:
            self._client, experiment_id = store.connect()
            if not self._ended:
                self._begin(self._client, experiment_id)
        if self.run_id is None:  # it ended before the store ever answered
            return
        if self.behind:
            store.set_tags(self._client, self.run_id, self.tags)
            store.backfill(self._client, self.run_id, self.parameters, self.history.values())
        what(self._client, self.run_id)
        self.behind = False

    def _begin(self, client: MlflowClient, experiment_id: str) -> None:
        """Opens the run, the one before the interruption where there is one, and leaves notes of it."""
        known = self.run_id is not None and store.exists(client, self.run_id)
        self.tags.setdefault("resumed", str(known).lower())
        if self.parent is not None and self.parent.run_id is not None:
            self.tags["mlflow.parentRunId"] = self.parent.run_id
        if known:
            client.update_run(str(self.run_id), status="RUNNING")
            store.set_tags(client, str(self.run_id), self.tags)
        else:
            self.run_id = client.create_run(experiment_id, run_name=self.name, tags=self.tags).info.run_id
        run_id = str(self.run_id)
        with suppress(OSError):  # a full or read-only disk: an interruption begins a new run then
            self.remembered.parent.mkdir(parents=True, exist_ok=True)
            self.remembered.write_text(run_id)
        self._open.close()  # of the time before the store was away
        self._open.enter_context(run_notes.noted(store.notes(), run_id, {"pid": os.getpid()}))
        if self.parent is None:  # an attempt's system metrics are those of the training around it
            monitor = SystemMetricsMonitor(run_id, resume_logging=known)
            monitor.start()
            self._open.callback(monitor.finish)


def _name_of(p: Parameters) -> str:
    """What is trained, and when, of a run that nobody named: `leaves-conv-64-20260131-120000`."""
    source = Path(p.data.path).stem if p.data.source in ("folder", "idx", "npy") else p.data.source
    source = re.sub(r"[^\w.-]+", "-", source)
    return f"{source}-{p.model.architecture}-{p.model.latent_dim}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
