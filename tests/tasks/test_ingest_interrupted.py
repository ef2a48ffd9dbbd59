"""An ingest that was interrupted goes on where it was, and ends with the bytes of one that was not."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.ingests import outputs, photo, photos
from helpers.project import PROJECT

from tasks import ingest, validate, workspace
from vae.config.errors import InputError
from vae.data import decode_cache, images, sources

COUNT = 100  # three batches of 32, and a rest
JOURNAL, PIXELS = workspace.DECODED / "journal.jsonl", workspace.DECODED / "pixels.bin"


@pytest.fixture
def here(place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos, two that can not be used among them, and a journal that is written after every batch."""
    folder = place(source="folder", path="photos", image_size=8, channels=3)
    root = photos(folder / "photos", COUNT - 2)
    (root / "a/broken.png").write_bytes(photo(1)[:500])
    (root / "a/.hidden").touch()
    monkeypatch.setattr(decode_cache, "SECONDS_BETWEEN_SYNCS", 0.0)
    return folder


@pytest.fixture
def whole(here: Path) -> list[bytes]:
    ingest.main(workers=2)
    found = outputs()
    shutil.rmtree("data")
    return found


def interrupt(after: int, error: OSError | None = None) -> BaseException:
    """An ingest that comes to its end after so many items, by Ctrl-C or by an error."""
    add = decode_cache.Decoded.add

    def adding(self: decode_cache.Decoded, *batch: Any) -> None:
        add(self, *batch)
        if len(self.examined) >= after:
            raise error or KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_cache.Decoded, "add", adding)
        with pytest.raises((InputError, KeyboardInterrupt)) as ended:
            ingest.main(workers=2)
    return ended.value


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_it_goes_on_with_the_same_bytes(here: Path, whole: list[bytes], batches: int) -> None:
    interrupt(min(32 * batches, COUNT))
    assert not any(path.exists() for path in (workspace.MANIFEST, workspace.images("train")))
    ingest.main(workers=3)
    assert outputs() == whole


def test_only_the_rest_is_decoded(
    here: Path, whole: list[bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    interrupt(32)
    interrupt(64)
    load = sources.File.__call__
    read: list[str] = []

    def reading(self: sources.File) -> Any:
        read.append(self.name)
        return load(self)

    monkeypatch.setattr(sources.File, "__call__", reading)
    ingest.main(workers=2)
    assert outputs() == whole
    assert len(read) == COUNT - 64 and "ingest: goes on after 64 items" in capsys.readouterr().out


def changed_time(first: Path) -> None:
    os.utime(first, ns=(1, 1))


def changed_content(first: Path) -> None:
    first.write_bytes(photo(1234))


def changed_content_and_nothing_else_that_a_copy_keeps(first: Path) -> None:
    status, content = first.stat(), bytearray(first.read_bytes())
    content[-100] ^= 255
    first.write_bytes(content)
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))


def removed(first: Path) -> None:
    first.unlink()


def added(first: Path) -> None:
    first.with_name("000-before").write_bytes(photo(4321))


@pytest.mark.parametrize(
    "change",
    [changed_time, changed_content, changed_content_and_nothing_else_that_a_copy_keeps, removed, added],
)
def test_from_a_file_that_changed_on_all_is_decoded_anew(here: Path, change: Callable[[Path], None]) -> None:
    interrupt(64)
    change(sorted(Path("photos/a").glob("0*"))[10])
    ingest.main(workers=2)
    found = outputs()
    shutil.rmtree("data")
    ingest.main(workers=2)
    assert found == outputs()


def torn_line() -> None:
    JOURNAL.write_bytes(JOURNAL.read_bytes()[:-20])


def no_end() -> None:
    JOURNAL.write_bytes(JOURNAL.read_bytes()[:-1])


def rubbish() -> None:
    lines = JOURNAL.read_bytes().splitlines(keepends=True)
    JOURNAL.write_bytes(b"".join([*lines[:20], b"\xff\x00{]\n", *lines[20:]]))


def other_values() -> None:
    lines = JOURNAL.read_bytes().splitlines(keepends=True)
    JOURNAL.write_bytes(b"".join([*lines[:20], b"[1, 2, 3, 4, 5, 6, 7, 8, 9]\n", *lines[20:]]))


def no_journal() -> None:
    JOURNAL.unlink()


def empty_journal() -> None:
    JOURNAL.write_bytes(b"")


def fewer_pixels() -> None:
    os.truncate(PIXELS, PIXELS.stat().st_size // 2)


def more_pixels() -> None:
    PIXELS.write_bytes(PIXELS.read_bytes() + b"half an image")


@pytest.mark.parametrize(
    "damage",
    [torn_line, no_end, rubbish, other_values, no_journal, empty_journal, fewer_pixels, more_pixels],
)
def test_what_an_interruption_left_half_written_is_decoded_anew(
    here: Path, whole: list[bytes], damage: Callable[[], None]
) -> None:
    interrupt(64)
    damage()
    interrupt(96)
    ingest.main(workers=2)
    assert outputs() == whole


@pytest.mark.parametrize("other", [{"image_size": 12}, {"channels": 1}])
def test_other_parameters_begin_anew(
    here: Path, place: Callable[..., Path], other: dict[str, Any], capsys: Any
) -> None:
    interrupt(64)
    place(source="folder", path="photos", **({"image_size": 8, "channels": 3} | other))
    ingest.main()
    assert "ingest: goes on" not in capsys.readouterr().out
    found = outputs()
    shutil.rmtree("data")
    ingest.main()
    assert found == outputs()


def test_other_splits_need_no_decoding(here: Path, place: Callable[..., Path], capsys: Any) -> None:
    interrupt(COUNT)
    place(source="folder", path="photos", image_size=8, channels=3, test_fraction=0.3)
    ingest.main()
    assert f"goes on after {COUNT} items" in capsys.readouterr().out
    found = outputs()
    shutil.rmtree("data")
    ingest.main()
    assert found == outputs()


def test_other_code_begins_anew(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    interrupt(64)
    monkeypatch.setattr("PIL.__version__", "0.0")
    ingest.main()
    assert "ingest: goes on" not in capsys.readouterr().out


def test_a_full_disk_keeps_what_is_decoded_and_says_so(here: Path, whole: list[bytes]) -> None:
    error = interrupt(64, OSError(errno.ENOSPC, "No space left on device"))
    assert "after the 64 items kept in data/.ingest" in str(error)
    ingest.main()
    assert outputs() == whole


def test_a_wrong_parameter_does_not_cost_the_decoding(
    here: Path, place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def nothing_for_valid(*of: Any) -> Any:
        raise InputError("leaves no image for valid")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="no image for valid"):
        patch.setattr(ingest, "_assign", nothing_for_valid)
        ingest.main()
    ingest.main()
    assert f"goes on after {COUNT} items" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_the_machine_could_not_do_is_tried_again(
    here: Path, whole: list[bytes], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sorted(path.name for path in Path("photos/a").iterdir() if path.name.startswith("0"))[5]
    prepare, fdopen = images.prepare, os.fdopen
    bad = Path("photos/a", name).read_bytes()

    def preparing(content: Any, how: Any) -> Any:
        with images._pillow_errors_as_refusals():
            if content == bad:
                raise error
        return prepare(content, how)

    def opening(descriptor: int, *more: Any, **named: Any) -> Any:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == name:
            os.close(descriptor)
            raise error
        return fdopen(descriptor, *more, **named)

    with monkeypatch.context() as patch:
        if isinstance(error, MemoryError):
            patch.setattr(images, "prepare", preparing)
        else:
            patch.setattr(os, "fdopen", opening)
        interrupt(64)
    ingest.main()
    assert outputs() == whole


def test_past_a_file_that_stays_unreadable_it_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def unreadable(self: sources.File) -> Any:
        if self.name.endswith("004"):
            raise images.UnusableNow("cannot be read: Permission denied")
        return load(self)

    load = sources.File.__call__
    monkeypatch.setattr(sources.File, "__call__", unreadable)
    ingest.main()
    whole = outputs()
    shutil.rmtree("data")
    interrupt(64)
    ingest.main()
    assert "ingest: goes on after 64 items" in capsys.readouterr().out and outputs() == whole


def test_a_kill_before_dvc_has_the_outputs_costs_no_decoding(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ingest.main()
    found = outputs()
    shutil.rmtree(workspace.IMAGES)  # as DVC does before it runs the stage again
    workspace.MANIFEST.unlink()
    ingest.main()
    assert f"ingest: goes on after {COUNT} items" in capsys.readouterr().out and outputs() == found
    validate.main()
    assert not workspace.DECODED.exists()


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_what_cannot_hold_is_not_kept(
    place: Callable[..., Path], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of an array, however long they take; and a short ingest."""
    monkeypatch.setattr(decode_cache, "SECONDS_BETWEEN_SYNCS", seconds)
    place(source="digits") if seconds == 0 else photos(
        place(source="folder", path="photos", image_size=8) / "photos", 40
    )
    ingest.main()
    assert not workspace.DECODED.exists()


def test_two_at_once_do_not_meet(here: Path, whole: list[bytes], capsys: Any) -> None:
    """The second waits for the first, which here never ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from tasks.processes.lock import hold\nfrom pathlib import Path\nimport time\n"
         "with hold(Path('.run/ingest.lock'), 'an ingest'):\n print('held', flush=True)\n time.sleep(60)"],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="in use by an ingest"):
        patch.setattr(ingest, "WAIT", 1)
        ingest.main()
    process.kill()
    process.communicate()
    ingest.main()
    assert outputs() == whole


def test_a_file_of_pixels_that_another_program_wrote_to_is_never_used(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = decode_cache.Decoded.add

    def adding(self: decode_cache.Decoded, *batch: Any) -> None:
        add(self, *batch)
        with self.pixels.open("ab") as file:
            file.write(b"other pixels")

    monkeypatch.setattr(decode_cache.Decoded, "add", adding)
    with pytest.raises(RuntimeError, match="not those of"):
        ingest.main()
    assert not workspace.MANIFEST.exists()


def test_an_interrupt_while_it_looks_for_what_changed_keeps_it(
    here: Path, whole: list[bytes], capsys: Any
) -> None:
    def interrupted(item: Any) -> None:
        raise KeyboardInterrupt

    interrupt(64)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(decode_cache, "stamp", interrupted)
        ingest.main()
    ingest.main()
    assert "goes on after 64 items" in capsys.readouterr().out and outputs() == whole


def test_a_killed_ingest_goes_on(here: Path, whole: list[bytes], capsys: Any) -> None:
    code = (
        "import time; from tasks import ingest; from vae.data import decode_cache\n"
        "decode_cache.SECONDS_BETWEEN_SYNCS = 0; add = decode_cache.Decoded.add\n"
        "def slow(self, *batch): add(self, *batch); print(len(self.examined), flush=True); time.sleep(30)\n"
        "decode_cache.Decoded.add = slow; ingest.main(workers=2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "32":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ingest.main(workers=2)
    assert "goes on after 32 items" in capsys.readouterr().out and outputs() == whole


def test_arrays_are_decoded_anew(
    place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    place(source="npy", path="x.npy", image_size=8)
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16), np.uint8))
    monkeypatch.setattr(decode_cache, "SECONDS_BETWEEN_SYNCS", 0.0)
    interrupt(64)
    ingest.main()
    assert "ingest: goes on" not in capsys.readouterr().out


def test_a_short_ingest_writes_no_journal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_cache, "SECONDS_BETWEEN_SYNCS", 1000.0)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ingest.main()
    assert synced == []
