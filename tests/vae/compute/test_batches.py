import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.compute.batches import epoch_order, full_batches, in_order, open_images, resident, to_pixels
from vae.config.errors import InputError

CPU = torch.device("cpu")


def images(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 5, 4, channels), dtype=np.uint8)


def test_pixels_are_in_0_to_1_with_channels_first() -> None:
    given = images(2)
    given[0, 1, 2] = (0, 255, 51)
    for x in (to_pixels(given, CPU), to_pixels(torch.from_numpy(given), CPU)):
        assert x.shape == (2, 3, 5, 4) and x.dtype == torch.float32
        torch.testing.assert_close(x[0, :, 1, 2], torch.tensor([0.0, 1.0, 0.2]))
        assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_in_order_gives_every_image_once(batch_size: int) -> None:
    given = images(7)
    batches = list(in_order(given, batch_size, CPU))
    assert all(len(x) == batch_size for x in batches[:-1]) and 1 <= len(batches[-1]) <= batch_size
    assert torch.equal(torch.cat(batches), to_pixels(given, CPU))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_full_batches_are_the_same_from_memory_and_read_ahead(batch_size: int) -> None:
    given, order = images(7), epoch_order(0, 0, 7)
    indexed = list(full_batches(torch.from_numpy(given), order, batch_size, CPU))
    read_ahead = list(full_batches(given, order, batch_size, CPU))
    assert len(indexed) == len(read_ahead) == 7 // batch_size
    for one, other, chosen in zip(indexed, read_ahead, order.split(batch_size), strict=False):
        assert torch.equal(one, other) and torch.equal(one, torch.from_numpy(given)[chosen])


def test_reading_ahead_is_one_batch_ahead_and_tells_what_went_wrong() -> None:
    asked: list[int] = []

    class Slow(np.ndarray):
        def __getitem__(self, chosen: object) -> np.ndarray:
            asked.append(len(asked))
            if len(asked) == 4:
                raise OSError("the disk is gone")
            return super().__getitem__(chosen)

    batches = full_batches(images(10).view(Slow), torch.arange(10), 2, CPU)
    next(batches)
    assert len(asked) <= 2
    next(batches)
    next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_images_are_resident_in_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given = images(7)
    for memory, fits in ((math.inf, True), (2 * given.nbytes + 1, True), (2 * given.nbytes, False)):
        monkeypatch.setattr("vae.limits.memory", lambda memory=memory: memory)
        found = resident(given, CPU)
        assert isinstance(found, torch.Tensor) if fits else found is given


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(1, 200))
def test_an_epoch_is_a_permutation_of_its_own(seed: int, epoch: int, count: int) -> None:
    order = epoch_order(seed, epoch, count)
    assert sorted(order.tolist()) == list(range(count))
    torch.rand(3)  # nothing that was drawn elsewhere matters
    assert torch.equal(order, epoch_order(seed, epoch, count))
    for other in ((seed + 1, epoch), (seed, epoch + 1)):
        assert count < 50 or not torch.equal(order, epoch_order(*other, count))


def test_images_are_mapped_not_read_and_the_file_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "train.npy"
    np.save(path, images(4))
    content = path.read_bytes()
    opened = open_images(path)
    assert isinstance(opened, np.memmap)
    opened[0] = 0
    assert path.read_bytes() == content
    np.testing.assert_array_equal(opened[1:], images(4)[1:])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((4, 5, 5, 1)), "float64"),
        (np.zeros((4, 5, 5), np.uint8), r"\(4, 5, 5\)"),
        (np.array([{}], dtype=object), "not a NumPy array"),
        (b"", "not a NumPy array"),
        (b"\x93NUMPY\x01\x00", "not a NumPy array"),
        (None, "does not exist; `dvc repro ingest` makes it"),
    ],
)
def test_anything_but_images_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "train.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(InputError, match=rf"train\.npy.*{words}"):
        open_images(path)
