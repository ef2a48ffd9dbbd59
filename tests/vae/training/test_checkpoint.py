import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from vae.training import checkpoint

CPU = torch.device("cpu")


def state(epoch: int) -> dict:
    weights = torch.arange(3000, dtype=torch.float32) + epoch
    return {
        "model": {"weight": weights.reshape(1, 30, 10, 10).contiguous(memory_format=torch.channels_last)},
        "optimiser": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 1e-3, "params": [0]}],
        },
        "average": None,
        "history": [{"epoch": 1, "valid/kl": 2.5}, {"epoch": epoch, "valid/kl": float("nan")}],
        "kept_epoch": epoch,
    }


def epoch_of(path: Path) -> int | None:
    found, _ = checkpoint.load(path, CPU)
    return None if found is None else found["kept_epoch"]


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
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    for epoch in (1, 2, 3):
        checkpoint.save(path, state(epoch))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.pt", "state.pt.previous"]
    assert epoch_of(path) == 3 and epoch_of(tmp_path / "state.pt.previous") == 2
    path.unlink()  # as if the machine had stopped between the two renames
    assert checkpoint.load(path, CPU)[0]["kept_epoch"] == 2


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, state(1))
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        checkpoint.save(path, {"weights": torch.zeros(1000), "unsaveable": lambda: None})
    assert epoch_of(path) == 1
    checkpoint.save(path, state(2))
    assert epoch_of(path) == 2


@pytest.mark.parametrize("tenths", range(10))
def test_a_truncated_one_is_passed_over_with_a_message(tmp_path: Path, tenths: int) -> None:
    path = tmp_path / "state.pt"
    for epoch in (1, 2):
        checkpoint.save(path, state(epoch))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * tenths // 10])
    found, problems = checkpoint.load(path, CPU)
    assert found is not None and found["kept_epoch"] == 1
    assert len(problems) == 1 and "\n" not in problems[0]
    assert problems[0].startswith("checkpoint state.pt is damaged and passed over")


def test_a_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, state(1))
    checkpoint.save(path, state(2))
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["kept_epoch"] == 2  # torch does not notice
    found, problems = checkpoint.load(path, CPU)
    assert found is not None and found["kept_epoch"] == 1
    assert "checksum" in problems[0]


def test_both_damaged_is_none_at_all(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"")
    (tmp_path / "state.pt.previous").write_bytes(b"PK\x03\x04 no archive")
    found, problems = checkpoint.load(path, CPU)
    assert found is None and len(problems) == 2
    assert "state.pt.previous" in problems[1]


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.witness,))


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


def test_a_finished_training_is_removed_later_and_no_other(tmp_path: Path) -> None:
    for name in ("finished", "interrupted", "mine"):
        checkpoint.save(tmp_path / name / "attempt-0" / "state.pt", state(1))
    checkpoint.finish(tmp_path / "finished")
    checkpoint.finish(tmp_path / "mine")
    checkpoint.remove_finished(tmp_path, but=tmp_path / "mine")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["interrupted", "mine"]
    checkpoint.remove_finished(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["interrupted"]
    checkpoint.remove_finished(tmp_path / "absent")


def test_a_damaged_one_is_out_of_the_way(tmp_path: Path) -> None:
    """Kept, it would become the previous one at the next save, and a kill between its renames would lose both."""
    path = tmp_path / "state.pt"
    for epoch in (1, 2):
        checkpoint.save(path, state(epoch))
    path.write_bytes(b"torn")
    assert epoch_of(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt.previous"]


def test_one_that_can_not_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, state(1))
    path.rename(tmp_path / "elsewhere")
    path.mkdir()  # reading it is an error of the system, as of a disk that fails for a moment
    with pytest.raises(OSError, match="directory"):
        checkpoint.load(path, CPU)
    assert path.exists()


def test_a_full_disk_is_told_as_one_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, state(1))
    for size in (
        1,
        1 << 20,
    ):  # what fits into a buffer fails when it is flushed, what does not when it is written
        (tmp_path / "state.pt.new").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left on device"):
            checkpoint.save(path, {"kept_epoch": 2, "weights": torch.zeros(size)})
        assert epoch_of(path) == 1 and [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    checkpoint.save(path, state(3))
    assert epoch_of(path) == 3


def test_a_training_whose_checkpoints_could_not_be_written_ends_well(tmp_path: Path) -> None:
    checkpoint.finish(tmp_path / "never made")
    checkpoint.remove_finished(tmp_path)
