"""A video's frames as data: ingest splits them at random, and validation warns of it."""

from pathlib import Path

import numpy as np
import pytest
from helpers.validations import validated

from benchmarks.case_images import faces

RULE = "sequence_across_splits"


def test_a_random_split_of_a_video_is_a_warning_and_one_in_time_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frames, size = faces(600), [28, 20]
    np.save("video.npy", frames)
    found = validated("video.npy", source="npy", image_size=size)[RULE]
    assert (found["severity"], found["count"]) == ("warning", 1)
    assert found["examples"][0]["value"].startswith("neighbouring files differ by 0.0")
    assert "named train, valid and test" in found["what_to_do"]
    Path("by-time").mkdir()
    for split, part in (("train", frames[:400]), ("valid", frames[400:500]), ("test", frames[500:])):
        np.save(f"by-time/{split}.npy", part)
    assert RULE not in validated("by-time", source="npy", image_size=size)
    assert RULE not in validated("data", source="digits")
