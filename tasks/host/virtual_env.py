"""The environment in `.venv`. It holds no absolute path of the workspace, so that this may be moved and copied.

`make` runs this file by its path, with any Python 3.11 or later: nothing is installed yet, so it imports the standard
library only.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTALLED_FROM = ("pyproject.toml", "constraints.txt")
BASE = "huggingface,onnx"  # the extras with which every command and every source of images works

# As `uv venv --relocatable` writes it: a script runs the Python beside it. Blanks and quotes in a path do no harm here;
# in a plain #! line they do.
_HEADER = b"""#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/python" "$0" "$@"
' '''
"""
# pip and `uv` write one of two: the second for a path with blanks or of more than 127 characters.
_OF_PIP = re.compile(rb"#!.*/\.venv/bin/python[\d.]*\n|#!/bin/sh\n'''exec' .*/\.venv/bin/python[\d.]*\b.*\n' '''\n")

# File → the line that names the folder, and what finds it.
_ACTIVATE = {
    "activate": (
        rb"^\s*(?:export )?VIRTUAL_ENV=.*$",
        b"""if [ -n "${BASH_VERSION:-}" ] ; then
    VIRTUAL_ENV="${BASH_SOURCE[0]}"
elif [ -n "${ZSH_VERSION:-}" ] ; then
    VIRTUAL_ENV="${(%):-%x}"
else # a shell that names no sourced file
    VIRTUAL_ENV=.venv/bin/activate
fi
VIRTUAL_ENV="$(CDPATH= cd -- "$(dirname -- "$VIRTUAL_ENV")/.." && pwd)\"""",
    ),
    "activate.fish": (rb"^set -gx VIRTUAL_ENV .*$", b"set -gx VIRTUAL_ENV (realpath (dirname (status -f))/..)"),
    "activate.csh": (rb"^setenv VIRTUAL_ENV .*$", b'setenv VIRTUAL_ENV "$cwd/.venv"'),  # no name of a sourced file
}

# Read by each Python of this environment when it starts. DVC keeps its cache of hashes outside the workspace, unless a
# setting names an absolute path: here the path is made anew each time, and no file holds it. A copy of the workspace in
# which this environment is active has its own.
_PTH = """{project}
import os, sys; os.environ.setdefault("DVC_SITE_CACHE_DIR", os.path.join(os.getcwd() if \
os.path.exists("tasks/workspace.py") else os.path.dirname(sys.prefix), ".run", "dvc"))
"""


def unusable(folder: Path) -> str | None:
    """Why no workspace can be in a folder of this name, in a sentence; None where one can."""
    name = str(folder)
    reasons = {
        ":": "a PATH cannot hold it",
        "?": "the address of a database cannot hold it",
        "%": "MLflow cannot be installed there",  # Alembic reads it as an interpolation
    }
    for character, reason in reasons.items():
        if character in name:
            return f"{name!r} contains {character!r}, and {reason}; rename the folder"
    if not name.isprintable():
        return f"{name!r} contains characters that cannot be printed; rename the folder"
    return None


def install(root: Path, extra: str = "") -> None:
    """Makes the environment; one that is installed from the same files already stays as it is.

    `.venv/ready` is written last and holds those files: a copy or a checkout changes their times and nothing else.

    Args:
        extra: what to add to it, such as dev; `.venv/ready-dev` is then the file that is written last.

    Raises:
        RuntimeError: there is an environment whose Python does not start; it is left as it is.
        subprocess.CalledProcessError: venv or pip failed, and has said why.
    """
    environment = root / ".venv"
    ready, python = environment / ("ready" if not extra else f"ready-{extra}"), environment / "bin" / "python"
    needed = b"".join((root / name).read_bytes() for name in INSTALLED_FROM)
    if not python.exists():  # also where it is a link to an interpreter that is gone
        if environment.is_symlink():
            raise RuntimeError(f".venv is a link to {environment.resolve()}, which holds no Python; remove the link")
        ready.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    elif not _runs(python, ""):
        raise RuntimeError(f"{python} does not start here; load the Python that it was made with, or delete .venv")
    has_pip = _runs(python, "import pip")  # not after `uv venv`, nor where the interpreter has another version now
    if has_pip and ready.is_file() and ready.read_bytes() == needed:
        ready.touch()
        return
    print(f"installing {extra or 'into .venv: about 2 GB, a minute or two'}", flush=True)
    ready.unlink(missing_ok=True)
    if not has_pip:
        subprocess.run([str(python), "-m", "ensurepip"], check=True)
    subprocess.run([str(python), "-I", "tasks/host/packages.py", extra or BASE], cwd=root, check=True)
    relocate(root)
    _replace(ready, needed, mode=0o644)


def _runs(python: Path, code: str) -> bool:
    try:
        return subprocess.run([str(python), "-I", "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def relocate(root: Path) -> None:
    """Takes the folder's path out of the environment's files.

    Written aside and renamed: a file may be a hard link to that of another workspace.
    """
    for path, text in absolute(root):
        _replace(path, text, path.stat().st_mode)


def absolute(root: Path) -> list[tuple[Path, bytes]]:
    """The environment's files that hold an absolute path, each with what it should hold.

    None of an environment that is a link: it lies elsewhere, and does not move with the workspace.
    """
    environment = root / ".venv"
    files = [] if environment.is_symlink() else [(path, path.read_bytes()) for path in _text_files(environment)]
    relative = [(path, text, _relocated(root, path, text)) for path, text in files]
    return [(path, new) for path, text, new in relative if new != text]


def _text_files(environment: Path) -> list[Path]:
    """The files that venv, pip and uv write the folder's path into."""
    found = [file for file in environment.glob("bin/*") if file.is_file() and not file.is_symlink()]
    scripts = [file for file in found if file.name in _ACTIVATE or _begins(file) == b"#!"]
    packages = "lib/python*/site-packages"
    return [
        *scripts,
        *environment.glob(f"{packages}/*editable*vae_train*.pth"),
        *environment.glob(f"{packages}/vae_train-*.dist-info/direct_url.json"),
    ]


def _begins(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(2)


def _relocated(root: Path, path: Path, text: bytes) -> bytes:
    if path.name in _ACTIVATE:
        line, finds = _ACTIVATE[path.name]
        done = b"BASH_SOURCE" in text or finds in text
        return text if done else re.sub(line, lambda _: finds, text, flags=re.M)
    if path.suffix == ".pth":
        return _PTH.format(project=os.path.relpath(root, path.parent)).encode()
    if path.name == "direct_url.json":  # read by pip alone, which takes no relative path
        return json.dumps({"dir_info": {"editable": True}, "url": root.as_uri()}).encode()
    return _OF_PIP.sub(lambda _: _HEADER, text, count=1) if _OF_PIP.match(text) else text


def _replace(path: Path, content: bytes, mode: int) -> None:
    number, aside = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(number, "wb") as file:
        file.write(content)
    Path(aside).chmod(mode)
    Path(aside).replace(path)


def main() -> None:
    if reason := unusable(ROOT):
        sys.exit(f"error: {reason}")
    try:
        install(ROOT, *sys.argv[1:])
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
