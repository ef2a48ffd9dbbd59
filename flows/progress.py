"""How far a training is, from its events: the share that is done, its speed, the time left."""

import datetime
from typing import Any

EVERY = 1.0  # seconds between two updates, at least: each one costs 43 ms


class Progress:
    """Given each event as it comes; returns what to show of it, or None where there is nothing to update."""

    def __init__(self) -> None:
        self._first: tuple[int | None, int, float] | None = (
            None  # attempt, epoch, when: the speed counts from there
        )
        self._shown = -EVERY

    def after(self, event: dict[str, Any], now: float) -> tuple[float, str] | None:
        """(per cent, description).

        Args:
            event: of `tasks.processes.events`.
            now: seconds of a clock that only goes forward.
        """
        epoch, epochs = event["epoch"], event["epochs"]
        if event["event"] == "kept":
            return 100.0, f"kept epoch {epoch} of {epochs}"
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
