import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.models import Malicious

from vae.training import checkpoint

CPU = torch.device("cpu")


def state(epoch: int) -> dict:
    weights = torch.arange(3000, dtype=torch.float32) + epoch
    return {
        "model": {"weight": weights.reshape(1, 30, 10, 10).contiguous(memory_format=torch.channels_last)},
        "optimiser": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}],
        "average": None,
        "history": [{"epoch": 1, "valid/kl": 2.5}, {"epoch": epoch, "valid/kl": float("nan")}],
        "kept_epoch": epoch,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where epoch 2 is saved, and epoch 1 before it."""
    path = tmp_path / "state.pt"
    for epoch in (1, 2):
        checkpoint.save(path, state(epoch))
    return path


def epoch_of(path: Path) -> int | None:
    found, _ = checkpoint.load(path, CPU)
    return None if found is None else found["kept_epoch"]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "state.pt"
    assert checkpoint.load(path, CPU) == (None, [])
    checkpoint.save(path, state(4))
    found, problems = checkpoint.load(path, CPU)
    assert found is not None and problems == []
    weights, expected = found["model"]["weight"], state(4)["model"]["weight"]
    assert torch.equal(weights, expected) and weights.stride() == expected.stride()
    assert found["optimiser"] == state(4)["optimiser"] and found["average"] is None
    assert repr(found["history"]) == repr(state(4)["history"])  # NaN is not equal to itself
    assert names(path.parent) == ["state.pt"]


def test_the_one_before_is_kept(path: Path) -> None:
    checkpoint.save(path, state(3))
    assert names(path.parent) == ["state.pt", "state.pt.previous"]
    assert epoch_of(path) == 3 and epoch_of(path.with_name("state.pt.previous")) == 2
    path.unlink()  # as if the machine had stopped between the two renames
    assert epoch_of(path) == 2


def flipped_in_the_weights(content: bytes) -> bytes:
    """One bit, which torch does not notice."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    damaged = bytearray(content)
    damaged[largest.header_offset + largest.file_size // 2] ^= 1
    assert torch.load(io.BytesIO(damaged), weights_only=True)["kept_epoch"] == 2
    return bytes(damaged)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", ""),
        (lambda content: b"PK\x03\x04 no archive", ""),
        (lambda content: content[: len(content) // 2], ""),
        (lambda content: content[:-1], ""),
        (flipped_in_the_weights, "checksum"),
    ],
)
def test_a_damaged_one_is_skipped_and_removed(path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    """Kept, it would become the previous one at the next save, and a kill between its renames would lose both."""
    path.write_bytes(damage(path.read_bytes()))
    found, (problem,) = checkpoint.load(path, CPU)
    assert found is not None and found["kept_epoch"] == 1
    assert problem.startswith("checkpoint state.pt is damaged and skipped: ") and "\n" not in problem
    assert words in problem
    assert names(path.parent) == ["state.pt.previous"]
    path.with_name("state.pt.previous").write_bytes(b"")
    found, (problem,) = checkpoint.load(path, CPU)
    assert found is None and "state.pt.previous" in problem


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_does_not_run(tmp_path: Path, archive: bool) -> None:
    path, witness = tmp_path / "state.pt", tmp_path / "it ran"
    if archive:
        torch.save({"model": Malicious(witness)}, path)
        torch.load(path, weights_only=False)
        assert witness.exists()  # so the file does what it is meant to
        witness.unlink()
    else:
        path.write_bytes(pickle.dumps(Malicious(witness)))
    found, problems = checkpoint.load(path, CPU)
    assert found is None and len(problems) == 1
    assert not witness.exists()


def test_one_that_cannot_be_read_is_not_taken_for_damaged(path: Path) -> None:
    path.unlink()
    path.mkdir()  # reading it is an error of the system, as of a disk that fails for a moment
    with pytest.raises(OSError, match="directory"):
        checkpoint.load(path, CPU)
    assert path.exists()


def test_a_write_that_fails_leaves_the_old_one(path: Path) -> None:
    # what fits into a buffer fails when it is flushed, what does not when it is written
    for size in (1, 1 << 20):
        path.with_name("state.pt.new").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left on device"):
            checkpoint.save(path, {"kept_epoch": 3, "weights": torch.zeros(size)})
    assert names(path.parent) == ["state.pt", "state.pt.previous"]
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        checkpoint.save(path, {"weights": torch.zeros(1000), "unsaveable": lambda: None})
    assert epoch_of(path) == 2
    checkpoint.save(path, state(3))
    assert epoch_of(path) == 3


def test_a_finished_training_is_removed_later_and_no_other(tmp_path: Path) -> None:
    for name in ("finished", "interrupted", "mine"):
        checkpoint.save(tmp_path / name / "attempt-0" / "state.pt", state(1))
    for name in ("finished", "mine", "never made"):
        checkpoint.finish(tmp_path / name)
    checkpoint.remove_finished(tmp_path, but=tmp_path / "mine")
    assert names(tmp_path) == ["interrupted", "mine"]
    checkpoint.remove_finished(tmp_path)
    assert names(tmp_path) == ["interrupted"]
    checkpoint.remove_finished(tmp_path / "absent")
