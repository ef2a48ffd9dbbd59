"""The progress of a training as a Prefect artifact: the share that is done, its speed, the time left."""

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.processes.events import Follower

EVERY = 1.0  # seconds between two updates, at least: each one costs 43 ms


class Artifact:
    """Follows the events of a training. Its first epoch makes the artifact, so that a cached training has none.

    While Prefect's server does not answer, `warn` is called once, and only the last event tries again.
    """

    def __init__(self, events: Path, warn: Callable[[str], None]) -> None:
        self.follower, self.progress, self.warn = Follower(events), Progress(), warn
        self.id: UUID | None = None
        self.answers = True

    def update(self) -> None:
        for event in self.follower.new():
            now = self.progress.after(event, time.monotonic())
            if now is None or not (self.answers or event["event"] == "kept"):
                continue
            try:
                self._show(*now)
                self.answers = True
            except httpx.TransportError:
                if self.answers:
                    self.warn(
                        "Prefect's server does not answer; the training continues, its progress is not shown"
                    )
                self.answers = False

    def _show(self, share: float, description: str) -> None:
        if self.id is None:
            made = create_progress_artifact(share, key="training", description=description)
            self.id = cast(UUID, made)
        else:
            update_progress_artifact(self.id, share, description)


class Progress:
    """What to show after each event; None where there is nothing to update."""

    def __init__(self) -> None:
        # Attempt, epoch and time that the speed is counted from.
        self._first: tuple[int | None, int, float] | None = None
        self._shown = -EVERY

    def after(self, event: dict[str, Any], now: float) -> tuple[float, str] | None:
        """(per cent, description).

        Args:
            event: of `tasks.processes.events`.
            now: seconds of a monotonic clock.
        """
        epoch, epochs = event["epoch"], event["epochs"]
        if event["event"] == "kept":
            return 100.0, f"kept epoch {epoch} of the {epochs} trained"
        attempt = event["attempt"]
        if self._first is None or self._first[0] != attempt:
            self._first = (attempt, epoch, now)
        if now - self._shown < EVERY and epoch < epochs:
            return None
        self._shown = now
        _, first, began = self._first
        which = "" if attempt is None else f"attempt {attempt}: "
        words = [f"{which}epoch {epoch} of {epochs}", f"{event['images_per_second']:,.0f} images/s"]
        if first < epoch < epochs:
            words.append(f"{clock((now - began) / (epoch - first) * (epochs - epoch))} left")
        return 100 * epoch / epochs, ", ".join(words)


def clock(seconds: float) -> str:
    """0:07, 12:30, 3:05:00."""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:") else text
