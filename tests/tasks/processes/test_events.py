"""Events of a training as they come, and no trouble without a file for them."""

from pathlib import Path

import pytest

from tasks.processes import events


def test_events_are_followed_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv(events.FILE, str(file))
    follower = events.Follower(file)
    assert list(follower.new()) == [], "there is no file yet"
    events.emit("epoch", epoch=1, attempt=None)
    events.emit("epoch", epoch=2, attempt=None)
    with file.open("a") as half:
        half.write('{"event": "kept"')
    assert [event["epoch"] for event in follower.new()] == [1, 2]
    with file.open("a") as rest:
        rest.write(', "epoch": 2}\n')
    assert list(follower.new()) == [{"event": "kept", "epoch": 2}]
    assert list(follower.new()) == []


@pytest.mark.parametrize("file", [None, "/no/such/folder/events.jsonl"])
def test_a_training_does_not_depend_on_them(file: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(events.FILE, raising=False)
    if file:
        monkeypatch.setenv(events.FILE, file)
    events.emit("epoch", epoch=1)
