"""The MLflow run of a training.

The store may be unreachable at any moment: the training continues, and the run is completed when the store answers
again, at the latest from the files when the model is evaluated.
"""

import datetime
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from tasks import overlay, workspace
from tasks.processes import run_notes
from tasks.tracking import lineage, store
from vae.config.parameters import Parameters
from vae.features.network import file_of

NAME = "mlflow.runName"
SILENCE = 60  # seconds without another try, where the store did not answer

_CONSEQUENCE = "the training continues; its run is completed when MLflow answers again"

Request: TypeAlias = Callable[[MlflowClient, str], object]  # with the id of the run


@contextmanager
def training_run(
    name: str | None, remembered: Path, tags: Mapping[str, str], parent: "TrainingRun | None" = None
) -> Iterator["TrainingRun"]:
    """A run that ends FINISHED, FAILED, or KILLED where a signal ended the training.

    Args:
        remembered: a file with the id of the run, in which an interrupted training resumes.
        parent: the run of the whole training, where this one is an attempt.
    """
    name = name or os.environ.get(lineage.EXPERIMENT_NAME)
    run = TrainingRun(remembered, {**tags, NAME: name} if name else tags, parent)
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
    """What is known of a training, and whether its run in the store lacks some of it.

    The run is unknown (no `run_id`), open, away (no `_client`, silent for a while) or ended. `send` moves between the
    first three; after `end` a note says what the store still lacks.

    Attributes:
        run_id: None where the store has never answered.
        behind: whether the store lacks some of the tags, parameters, inputs or history.
    """

    def __init__(self, remembered: Path, tags: Mapping[str, str], parent: "TrainingRun | None") -> None:
        self.remembered, self.tags, self.parent = remembered, dict(tags), parent
        self.run_id = remembered.read_text() if remembered.exists() else None
        self.parameters: dict[str, Any] = {}
        self.history: dict[int, Mapping[str, float]] = {}
        self.behind = False
        self._inputs: list[DatasetInput] = []  # not sent yet
        self._client: MlflowClient | None = None  # as long as the store answers
        self._silent_until = 0.0
        self._open, self._ended = ExitStack(), False
        self._note_name = uuid4().hex  # while the store has given it no id

    def log_inputs(self, p: Parameters, train_images: np.ndarray, valid_images: np.ndarray) -> None:
        """Parameters as the user wrote them (a budget's epochs filled in), the machine, and the data sets.

        `params.yaml` and `dvc.lock` are stored as they are, for `vae reproduce`.
        """
        self.parameters |= overlay.flat(p.model_dump())
        self.tags |= {**lineage.subject(p), **lineage.machine()}
        if self.run_id is None or self.tags.get("resumed") == "false":
            self.tags.setdefault(NAME, _name_of(p))
        if p.train.initial_weights:
            self.tags["initial_weights.sha256"] = workspace.sha256(Path(p.train.initial_weights))
        if p.objective.uses_features:
            self.tags["features.sha256"] = workspace.sha256(file_of(p.objective.features))
        for split, images in (("train", train_images), ("valid", valid_images)):
            digest = workspace.sha256(workspace.images(split))[:36]
            dataset = mlflow.data.from_numpy(  # type: ignore[attr-defined]  # created at import, unseen by mypy
                images, name=f"{p.data.source}-{split}", digest=digest
            )
            tag = InputTag("mlflow.data.context", split)
            self._inputs.append(DatasetInput(dataset._to_mlflow_entity(), [tag]))
        self.behind = True
        self.send()

    def log_history(self, history: list[dict[str, float]]) -> None:
        """Epochs that an interrupted training had no time to log."""
        self.history |= {int(row["epoch"]): row for row in history}
        self.behind = True
        self.send()

    def log_epoch(self, row: Mapping[str, float], timing: Mapping[str, float], grid: np.ndarray | None) -> None:
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

    def end(self, status: str) -> None:
        """Gives the run its status; where the store is away, leaves that to the next process that reaches it."""
        self.tags[store.ENDED] = status
        self.send(lambda client, run_id: store.end_run(client, run_id, status))
        self._open.close()
        self._ended = True
        if self.behind:
            self._leave_note()

    def send(self, request: Request = lambda client, run_id: None) -> None:
        """Makes a request, after all that the store lacks; falls behind where the store is away."""
        if time.monotonic() >= self._silent_until:
            with store.away(_CONSEQUENCE):
                self._catch_up_and(request)
                return
            self._client, self._silent_until = None, time.monotonic() + SILENCE
        self.behind = True
        if self._ended:
            self._leave_note()

    def _catch_up_and(self, request: Request) -> None:
        if self._client is None:
            client, experiment_id = store.connect()
            if not self._ended:
                self._begin(client, experiment_id)
            self._client = client
        if self.run_id is None:  # it ended before the store ever answered
            return
        if self.behind:
            store.set_tags(self._client, self.run_id, self.tags)
            self._send_inputs(self._client, self.run_id)
            store.backfill(self._client, self.run_id, self.parameters, self.history.values())
        request(self._client, self.run_id)
        self.behind = False

    def _send_inputs(self, client: MlflowClient, run_id: str) -> None:
        if self._inputs:
            for path in (workspace.PARAMS, workspace.LOCK):
                if path.exists():
                    client.log_artifact(run_id, str(path))
            client.log_inputs(run_id, self._inputs)
            self._inputs = []

    def _begin(self, client: MlflowClient, experiment_id: str) -> None:
        """Opens the run, that of the interrupted training where there is one, and notes that this process has it."""
        known = self.run_id is not None and store.exists(client, self.run_id)
        self.tags.setdefault("resumed", str(known).lower())
        if self.parent is not None:
            self.parent._catch_up_and(lambda client, run_id: None)  # it has an id from now on
            self.tags["mlflow.parentRunId"] = str(self.parent.run_id)
        if self.tags["resumed"] == "true":
            self.tags.pop(NAME, None)  # it has a name
        if known:
            client.update_run(str(self.run_id), status="RUNNING")
            store.set_tags(client, str(self.run_id), self.tags)
        else:
            self.run_id = client.create_run(experiment_id, tags=self.tags).info.run_id
        run_id = str(self.run_id)
        with suppress(OSError):  # a full or read-only disk: after an interruption a new run begins
            self.remembered.parent.mkdir(parents=True, exist_ok=True)
            self.remembered.write_text(run_id)
        self._open.close()  # from before the store was away
        with suppress(OSError):  # without a note, nobody ends the run if this process is killed
            self._open.enter_context(run_notes.noted(store.notes(), run_id, run_notes.this_process()))
        if self.parent is None:  # the system metrics of an attempt are those of the whole training
            monitor = SystemMetricsMonitor(run_id, resume_logging=known)
            monitor.start()
            self._open.callback(monitor.finish)

    def _leave_note(self) -> None:
        """A training without a run gets one only if it finished: otherwise its run would be empty.

        An attempt without a run gets none: the whole training, of which it would be a part, may have none either.
        """
        if self.run_id is not None or (self.tags[store.ENDED] == "FINISHED" and self.parent is None):
            store.leave_note(self.run_id or self._note_name, self.tags)


def _name_of(p: Parameters) -> str:
    """What is trained, and when, for a run that nobody named: `leaves-conv-64-20260131-120000`."""
    source = Path(p.data.path).stem if p.data.source in ("folder", "idx", "npy") else p.data.source
    source = re.sub(r"[^\w.-]+", "-", source)
    return f"{source}-{p.model.architecture}-{p.model.latent_dim}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
