import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.project import PROJECT

from tasks import data_path
from vae.config.errors import InputError
from vae.config.sections import Data


def check(path: Path | str, source: Any = "folder") -> None:
    data_path.check(Data().model_copy(update={"source": source, "path": str(path)}))


def test_a_folder_and_a_file_pass(tmp_path: Path) -> None:
    (tmp_path / "été photos" / "class a").mkdir(parents=True)
    (tmp_path / "images.npy").write_bytes(b"x")
    (tmp_path / "été photos" / "class a" / "link").symlink_to(tmp_path / "images.npy")
    check(tmp_path / "été photos")
    check(tmp_path / "images.npy")


def test_a_path_is_named_as_written_and_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    with pytest.raises(InputError, match=rf"data\.path = no photos does not exist.*{tmp_path}/no photos"):
        check("no photos")
    with pytest.raises(InputError, match=r"data\.path = ~/photos.*/home/somebody/photos"):
        check("~/photos")


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "broken link": (lambda path: path.symlink_to("never was"), r"broken link\(s\)"),
    "loop": (lambda path: path.symlink_to(path), r"broken link\(s\)"),
    "pipe": (os.mkfifo, r"pipe\(s\), socket\(s\) or device\(s\)"),
    "device": (lambda path: path.symlink_to("/dev/zero"), r"pipe\(s\), socket\(s\) or device\(s\)"),
    "socket": (lambda path: socket.socket(socket.AF_UNIX).bind(path.name), r"pipe\(s\), socket"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make", "what"), SPECIAL.values(), ids=SPECIAL)
def test_what_dvc_would_stop_at_or_read_for_ever_is_named(
    tmp_path: Path, make: Callable[[Path], Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    monkeypatch.chdir(photos)  # a socket's path may have 100 characters
    make(photos / "x.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"1 {what}.*, such as '.*x\.png'"):
        check(photos)


def test_a_name_that_dvc_cannot_record_is_named(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    with pytest.raises(InputError, match=r"1 name\(s\) that are not UTF-8, such as '.*caf\\\\xe9\.png'"):
        check(tmp_path)


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "loop"])
def test_a_path_that_no_system_takes_is_an_input_error(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"data\.path = "):
        check(path)


def test_a_path_that_does_not_fit_the_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    check("data/bundled", "digits")
    with pytest.raises(InputError, match=r"has no effect with data\.source = digits.*EXPERIMENT=photos"):
        check(tmp_path, "digits")
    with pytest.raises(InputError, match=r"data\.source = folder needs data\.path"):
        check("data/bundled")
