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
    """Follows the events of a training. Its first epoch makes the artifact, so that a cached training has none."""

    def __init__(self, events: Path, warn: Callable[[str], None]) -> None:
        self.follower, self.warn = Follower(events), warn
        self.id: UUID | None = None
        self.answers = True
        self._shown = -EVERY

    def update(self) -> None:
        """While Prefect's server does not answer, it warns once, and only the last event tries again."""
        for event in self.follower.new():
            now = self.after(event, time.monotonic())
            if now is None or not (self.answers or event["event"] == "kept"):
                continue
            try:
                self._show(*now)
                self.answers = True
            except httpx.TransportError:
                if self.answers:
                    self.warn("Prefect's server does not answer; the training continues, its progress is not shown")
                self.answers = False

    def _show(self, share: float, description: str) -> None:
        if self.id is None:
            self.id = cast(UUID, create_progress_artifact(share, key="training", description=description))
        else:
            update_progress_artifact(self.id, share, description)

    def after(self, event: dict[str, Any], now: float) -> tuple[float, str] | None:
        """What to show after an event, (per cent, description); None where there is nothing to update.

        Args:
            event: of `tasks.processes.events`.
            now: seconds of a monotonic clock.
        """
        epoch, epochs = event["epoch"], event["epochs"]
        if event["event"] == "kept":
            return 100.0, f"kept epoch {epoch} of the {epochs} trained"
        if now - self._shown < EVERY and epoch < epochs:
            return None
        self._shown = now
        which = "" if event["attempt"] is None else f"attempt {event['attempt']}: "
        left = datetime.timedelta(seconds=round(event["seconds"] * (epochs - epoch)))
        speed = f"{event['images_per_second']:,.0f} images/s"
        return 100 * epoch / epochs, f"{which}epoch {epoch} of {epochs}, {speed}, {left} left"
