"""Setup by uv under whatever pip is configured with, and by pip where uv cannot be had.

Tried on a whole environment, with further indexes on disk, a folder of wheels with another build of a pinned version,
and a certificate: uv installs the versions and the build that pip does, and `pip check` is clean.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import PROJECT

from tasks.host import packages

CACHE = Path("cache")


def test_uv_installs_from_where_pip_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX_URL", "https://of.another.project")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/of/the/company.pem")
    given = {
        "index-url": "https://me:secret@index/simple",
        "extra-index-url": "\nhttps://a/simple\nfile:///b/simple",
        "find-links": "/wheels /more",
        "disable-pip-version-check": "1",
    }
    environment = packages.for_uv(given, CACHE)
    assert environment["UV_DEFAULT_INDEX"] == "https://me:secret@index/simple"
    assert environment["UV_INDEX"] == "https://a/simple file:///b/simple"
    assert environment["UV_FIND_LINKS"] == "/wheels,/more"
    assert environment["SSL_CERT_FILE"] == "/of/the/company.pem"
    assert packages.for_uv({"cert": "/its/own.pem"}, CACHE)["SSL_CERT_FILE"] == "/its/own.pem"
    assert "UV_INDEX_URL" not in environment and environment["UV_CACHE_DIR"] == str(CACHE)


def test_a_setting_that_uv_does_not_know_is_left_to_pip() -> None:
    with pytest.raises(packages.Unusable, match="sets require-hashes, which it does not know"):
        packages.for_uv({"require-hashes": "true"}, CACHE)


def test_pips_configuration_is_that_of_its_files_and_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://a\nproxy = http://p\n[install]\nindex-url = https://b\n[list]\nx = 1\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_PROXY", "http://q")
    found = packages._pip_configuration()
    assert packages.for_uv(found, CACHE)["ALL_PROXY"] == "http://q"
    assert (found["index-url"], found["proxy"], "x" in found) == ("https://b", "http://q", False)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """One with a stand-in for pip, which writes down what it is asked for, and one for uv."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / ".venv")], check=True)
    (site,) = (tmp_path / ".venv").glob("lib/python*/site-packages")
    (site / "pip").mkdir()
    (site / "pip" / "__main__.py").write_text("import sys; print(*sys.argv[1:], file=open('by_pip', 'a'))")
    return tmp_path


def installed(folder: Path, uv: str) -> str:
    """What is printed where the program uv is a shell script."""
    (folder / "by_pip").write_text("")
    program = folder / ".venv/bin/uv"
    program.write_text(f"#!/bin/sh\n{uv}\n")
    program.chmod(0o755)
    command = [str(folder / ".venv/bin/python"), "-I", str(PROJECT / "tasks/host/packages.py"), "one,two"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_pip_installs_where_uv_fails(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = installed(environment, 'mkdir "$UV_CACHE_DIR"; echo "$VIRTUAL_ENV $*" > by_uv')
    what = "--editable .[one,two] --constraint constraints.txt"
    assert said == "" and (environment / "by_uv").read_text().startswith(f"{environment / '.venv'} pip install ")
    assert what in (environment / "by_uv").read_text() and what not in (environment / "by_pip").read_text()
    assert not (environment / ".venv/uv-cache").exists()

    # Beside an option of the same name, uv would not read a variable.
    monkeypatch.setattr(packages, "_pip_configuration", lambda: {"constraint": "a.txt\nb.txt"})
    monkeypatch.setattr(packages.sys, "executable", str(environment / ".venv/bin/python"))
    monkeypatch.setattr(packages, "PIP", ("true",))
    monkeypatch.chdir(environment)
    packages.install("one,two")
    assert (environment / "by_uv").read_text().endswith(f"{what} --constraint a.txt --constraint b.txt\n")

    assert (
        installed(environment, "exit 7")
        == "uv is not used: it failed with exit code 7; pip installs, which takes longer\n"
    )
    assert f"install --quiet {what}" in (environment / "by_pip").read_text()
