"""The progress of a training as events: one JSON object per line, in the file that VAE_TRAIN_EVENTS names.

{"event": "epoch", "attempt": null, "epoch": 3, "epochs": 60, "seconds": 0.25, "images_per_second": 6800.0}
{"event": "kept", "epoch": 59, "epochs": 60}
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE = "VAE_TRAIN_EVENTS"


def emit(event: str, **values: Any) -> None:
    """Appends an event if a file is named; a training never fails because of it."""
    if path := os.environ.get(FILE):
        with suppress(OSError), Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")


class Follower:
    """Reads the events of a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path, self._read = path, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The events since the last call; a line that is still being written is left for the next one."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield json.loads(line)
