"""How far a training is, read from the lines that it prints: the share that is done, its speed, the time left."""

import datetime
import re

EVERY = 1.0  # seconds between two updates, at least: each one costs 43 ms
_EPOCH = re.compile(
    r"^(?P<attempt>attempt \d+: )?epoch (?P<epoch>\d+)/(?P<epochs>\d+)  .*?(?P<speed>[\d,]+ images/s)?$"
)


class Progress:
    """Told each line as it comes; says what to show of it, or None where there is nothing to update."""

    def __init__(self) -> None:
        self._first: tuple[str, int, float] | None = None  # attempt, epoch, when: the speed counts from there
        self._shown = -EVERY

    def after(self, line: str, now: float) -> tuple[float, str] | None:
        """(per cent, description).

        Args:
            now: seconds of a clock that only goes forward.
        """
        if line.startswith("kept epoch"):
            return 100.0, line
        found = _EPOCH.match(line)
        if found is None:
            return None
        attempt, epoch, epochs = found["attempt"] or "", int(found["epoch"]), int(found["epochs"])
        if self._first is None or self._first[0] != attempt:
            self._first = (attempt, epoch, now)
        if now - self._shown < EVERY and epoch < epochs:
            return None
        self._shown = now
        _, first, began = self._first
        words = [f"{attempt}epoch {epoch} of {epochs}", found["speed"]]
        if first < epoch < epochs:
            words.append(f"{clock((now - began) / (epoch - first) * (epochs - epoch))} left")
        return 100 * epoch / epochs, ", ".join(filter(None, words))


def clock(seconds: float) -> str:
    """0:07, 12:30, 3:05:00."""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:") else text
