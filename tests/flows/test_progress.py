"""The progress of a training, as its artifact shows it."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import progress
from tasks.processes import events


@pytest.fixture
def artifact(tmp_path: Path) -> progress.Artifact:
    return progress.Artifact(tmp_path / "events.jsonl", lambda warning: None)


def epoch(number: int, of: int = 60, attempt: int | None = None) -> dict[str, Any]:
    speed = {"seconds": 2.0, "images_per_second": 5594.2}
    return {"event": "epoch", "attempt": attempt, "epoch": number, "epochs": of, **speed}


def test_it_has_attempt_epochs_speed_and_the_time_left(artifact: progress.Artifact) -> None:
    assert artifact.after(epoch(2), 12.0) == (200 / 60, "epoch 2 of 60, 5,594 images/s, 0:01:56 left")
    again = artifact.after(epoch(2, attempt=1), 103.0)
    assert again == (200 / 60, "attempt 1: epoch 2 of 60, 5,594 images/s, 0:01:56 left")
    kept = {"event": "kept", "epoch": 58, "epochs": 60}
    assert artifact.after(kept, 129.0) == (100.0, "kept epoch 58 of the 60 trained")


def test_it_is_updated_once_a_second_at_most_and_always_at_the_end(artifact: progress.Artifact) -> None:
    updates = [artifact.after(epoch(number, of=1000), number * 0.01) for number in range(1, 1001)]
    shown = [update for update in updates if update is not None]
    assert len(shown) <= 10 / progress.EVERY + 1
    assert shown[-1][0] == 100.0


def test_a_server_that_goes_away_is_mentioned_once_and_gets_the_end_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(events.FILE, str(tmp_path / "events.jsonl"))
    monkeypatch.setattr(progress, "EVERY", 0.0)
    shown: list[float] = []
    warnings: list[str] = []

    def show(self: progress.Artifact, share: float, description: str) -> None:
        if 25 < share < 100:
            raise httpx.ConnectError("refused")
        shown.append(share)

    monkeypatch.setattr(progress.Artifact, "_show", show)
    artifact = progress.Artifact(tmp_path / "events.jsonl", warnings.append)
    for number in range(1, 5):
        events.emit(**epoch(number, of=4))
        artifact.update()
    events.emit("kept", epoch=4, epochs=4)
    artifact.update()
    assert shown == [25.0, 100.0] and len(warnings) == 1
