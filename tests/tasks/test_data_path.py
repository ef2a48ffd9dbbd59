from pathlib import Path

import pytest
from helpers.project import PROJECT

from tasks import data_path
from vae.config import parameters
from vae.config.errors import InputError
from vae.config.parameters import Data

DEFAULTS = PROJECT / "experiments" / "default.yaml"


def data(path: str) -> Data:
    return parameters.load(DEFAULTS).data.model_copy(update={"source": "folder", "path": path})


def test_a_folder_and_a_file_pass(tmp_path: Path) -> None:
    (tmp_path / "été photos" / "class a").mkdir(parents=True)
    (tmp_path / "images.npy").write_bytes(b"x")
    (tmp_path / "été photos" / "class a" / "link").symlink_to(tmp_path / "images.npy")
    data_path.check(data(str(tmp_path / "été photos")))
    data_path.check(data(str(tmp_path / "images.npy")))


def test_a_missing_path_is_told_as_written_and_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"data\.path = no such photos does not exist") as error:
        data_path.check(data("no such photos"))
    assert str(tmp_path / "no such photos") in str(error.value)


def test_the_home_folder_is_to_be_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    with pytest.raises(InputError, match=r"data\.path = ~/photos.*/home/somebody/photos"):
        data_path.check(data("~/photos"))


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "gone.jpg").symlink_to(tmp_path / "never was")
    with pytest.raises(InputError, match=r"1 link\(s\) that lead nowhere.*gone\.jpg"):
        data_path.check(data(str(tmp_path)))


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"loop"):
        data_path.check(data(str(tmp_path)))
    with pytest.raises(InputError, match=r"loop"):
        data_path.check(data(str(tmp_path / "loop")))


def test_a_path_that_no_system_takes_is_an_input_error() -> None:
    with pytest.raises(InputError):
        data_path.check(data("a" * 5000))
    with pytest.raises(InputError):
        data_path.check(data("a\0b"))


def test_a_path_that_digits_would_not_look_into_is_refused(tmp_path: Path) -> None:
    digits = data(str(tmp_path)).model_copy(update={"source": "digits"})
    with pytest.raises(InputError, match=r"is not read with data\.source = digits.*EXPERIMENT=leaves"):
        data_path.check(digits)


def test_a_source_without_a_path_of_its_own_is_told_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    with pytest.raises(InputError, match=r"data\.source = folder needs data\.path"):
        data_path.check(data("data/bundled"))
    data_path.check(data("data/bundled").model_copy(update={"source": "digits"}))
