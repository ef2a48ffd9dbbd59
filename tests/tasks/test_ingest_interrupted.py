"""An ingest that was interrupted resumes where it was, and ends with the bytes of one that was not."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers.ingests import ENVIRONMENT, outputs, photo, photos

from tasks import ingest, validate, workspace
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.data import decode_cache, images
from vae.data.decode_cache import DecodeCache
from vae.data.item import File, Item, Refused

COUNT, CHUNK = 50, 16  # files: three chunks, and a rest


@pytest.fixture
def here(place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos, two unusable files among them."""
    folder = place(source="folder", path="photos", image_size=8, channels=3, max_bad_fraction=0.5)
    root = photos(folder / "photos", COUNT - 2)
    (root / "a/broken.png").write_bytes(photo(1)[:500])
    (root / "a/.hidden").touch()
    monkeypatch.setattr(decode_cache, "CHUNK_ITEMS", CHUNK)
    return folder


@pytest.fixture
def whole(here: Path) -> list[bytes]:
    return undisturbed()


def undisturbed() -> list[bytes]:
    shutil.rmtree("data", ignore_errors=True)
    ingest.main(workers=2)
    found = outputs()
    shutil.rmtree("data")
    return found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    load, names = File.__call__, []

    def loading(self: File) -> Any:
        names.append(self.name)
        return load(self)

    monkeypatch.setattr(File, "__call__", loading)
    return names


def interrupt(after: int, error: BaseException | None = None) -> None:
    """An ingest that ends after so many chunks, by Ctrl-C or by an error."""
    decode, chunks = DecodeCache.decode, itertools.count()

    def decoding(self: DecodeCache, items: Sequence[Item]) -> Any:
        if next(chunks) == after:
            raise error or KeyboardInterrupt
        return decode(self, items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeCache, "decode", decoding)
        with pytest.raises(type(error) if error else KeyboardInterrupt):
            ingest.main(workers=1)


def kept() -> list[Path]:
    return sorted(workspace.DECODED.rglob("*.zip"))


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_only_the_rest_is_decoded_and_the_bytes_are_the_same(
    here: Path, whole: list[bytes], chunks: int, read: list[str]
) -> None:
    interrupt(chunks)
    assert not any(path.exists() for path in (workspace.MANIFEST, workspace.images("train")))
    read.clear()
    ingest.main(workers=3)
    assert outputs() == whole and len(read) == COUNT - CHUNK * chunks


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def flip_a_byte_and_keep_the_time(file: Path) -> None:
    status = file.stat()
    flip_a_byte(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "time": lambda file: os.utime(file, ns=(1, 1)),
    "content": lambda file: file.write_bytes(photo(1234)),
    "content alone": flip_a_byte_and_keep_the_time,
    "removed": Path.unlink,
    "added": lambda file: file.with_name("000-before").write_bytes(photo(4321)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_noticed(here: Path, change: Callable[[Path], Any]) -> None:
    interrupt(2)
    change(sorted(Path("photos/a").glob("0*"))[3])
    ingest.main(workers=2)
    assert outputs() == undisturbed()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "shorter": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a byte": flip_a_byte,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "empty": lambda file: file.write_bytes(b""),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_chunk_is_decoded_again(here: Path, whole: list[bytes], damage: Callable[[Path], Any]) -> None:
    interrupt(2)
    damage(kept()[0])
    ingest.main(workers=2)
    assert outputs() == whole


def test_a_chunk_that_is_damaged_later_is_never_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assign = ingest._assign
    monkeypatch.setattr(ingest, "_assign", lambda *of: (flip_a_byte(kept()[0]), assign(*of))[1])
    with pytest.raises(Exception, match="CRC"):
        ingest.main()
    assert not workspace.MANIFEST.exists()


@pytest.mark.parametrize("other", [{"image_size": 12}, {"channels": 1}, {}])
def test_with_other_pixels_to_make_it_begins_anew(
    here: Path, place: Callable[..., Path], other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(2)
    before = kept()
    if not other:
        monkeypatch.setattr("PIL.__version__", "0.0")
    place(source="folder", path="photos", **({"image_size": 8, "channels": 3} | other))
    ingest.main()
    assert not set(before) & set(kept()) and outputs() == undisturbed()


def test_other_splits_need_no_decoding(here: Path, place: Callable[..., Path], read: list[str]) -> None:
    ingest.main()
    read.clear()
    place(source="folder", path="photos", image_size=8, channels=3, test_fraction=0.3)
    ingest.main()
    assert read == [] and outputs() == undisturbed()


def test_an_error_does_not_cost_the_decoding(
    here: Path, whole: list[bytes], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, and parameters that leave a split empty."""
    interrupt(3, OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch, pytest.raises(InputError):
        patch.setattr(ingest, "_assign", mock.Mock(side_effect=InputError("no image for valid")))
        ingest.main()
    assert len(set(read)) == len(read) == COUNT - 1
    ingest.main()
    assert outputs() == whole and len(read) == COUNT - 1


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_the_machine_could_not_do_is_tried_again(
    here: Path, whole: list[bytes], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it fails at one image alone."""
    module, name = (images.Image, "open") if isinstance(error, MemoryError) else (os, "fdopen")
    calls, working = itertools.count(), getattr(module, name)

    def failing(*of: Any, **named: Any) -> Any:
        if next(calls) == 5:
            raise error
        return working(*of, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        ingest.main(workers=1)
    assert outputs() != whole and len(kept()) == 3  # all chunks but that one
    ingest.main()
    assert outputs() == whole


def test_a_kill_before_dvc_has_the_outputs_costs_no_decoding(here: Path, read: list[str]) -> None:
    ingest.main()
    found = outputs()
    shutil.rmtree(workspace.IMAGES)  # as DVC does before it runs the stage again
    workspace.MANIFEST.unlink()
    read.clear()
    ingest.main()
    assert read == [] and outputs() == found
    validate.main()
    assert not workspace.DECODED.exists()


def test_rows_of_an_array_are_not_kept(place: Callable[..., Path]) -> None:
    place()
    interrupt(3)
    assert kept() == [] and not ingest.PARTIAL.exists()
    ingest.main()
    assert kept() == []


@contextmanager
def child(code: str) -> Iterator[None]:
    """Another process, once it has printed a line; it is killed at the end."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield
        process.kill()


def test_two_at_once_do_not_meet(here: Path, whole: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, which here never ends."""
    code = """
import pathlib, time, tasks.processes.lock
with tasks.processes.lock.hold(pathlib.Path(".run/ingest.lock"), "an ingest"):
    print("ready", flush=True)
    time.sleep(60)
"""
    monkeypatch.setattr(ingest, "WAIT", 1)
    with child(code), pytest.raises(InputError, match="an ingest"):
        ingest.main()
    ingest.main()
    assert outputs() == whole


def test_a_killed_ingest_resumes(here: Path, whole: list[bytes], read: list[str]) -> None:
    code = f"""
import time
from tasks import ingest
from vae.data import decode_cache
decode_cache.CHUNK_ITEMS, decode = {CHUNK}, decode_cache.DecodeCache.decode
def decode_one(*chunk):
    decode(*chunk)
    print("ready", flush=True)
    time.sleep(60)
decode_cache.DecodeCache.decode = decode_one
ingest.main(workers=1)
"""
    with child(code):
        pass
    ingest.main()
    assert outputs() == whole and len(read) == COUNT - CHUNK


def test_once_stopped_nothing_is_decoded(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path / "kept", tmp_path, Preprocessing(8, 8, 1))
    cache.stop.set()
    with pytest.raises(CancelledError):
        cache.decode([Item("x", None, None, Refused("never asked"))])
