"""Installs this project and its pinned packages: by uv, which takes a third of pip's time, else by pip.

`python -I tasks/host/packages.py EXTRAS`, with the Python of the environment to fill. Nothing is installed yet, so this
imports the standard library only.

Both take the machine's pip configuration (pip.conf and PIP_*): pip lists it, and uv gets it by its own names. uv reads
no configuration of its own, downloads no Python, and keeps its cache in the environment until it is done.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

PIP = (sys.executable, "-m", "pip")
PINS = "constraints.txt"

# Settings of pip that choose what is installed and from where → uv's variable for each.
_OF_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "ALL_PROXY",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
# Those that make no difference to uv. With any other setting but `constraint`, pip installs.
_IRRELEVANT = (
    "cache-dir config-file no-cache-dir disable-pip-version-check no-python-version-warning root-user-action "
    "require-virtualenv quiet verbose log no-color no-input progress-bar retries resume-retries prefer-binary "
    "use-feature no-warn-script-location no-warn-conflicts break-system-packages"
)
_SEPARATORS = {"UV_FIND_LINKS": ","}  # what separates the values of a variable, where it is not a blank


class Unusable(Exception):
    """uv cannot install here; the message is a phrase that says why."""


def install(extras: str) -> None:
    """The project, editable, with these extras, comma-separated.

    Raises:
        subprocess.CalledProcessError: pip failed as well, and has said why.
    """
    what = ["--editable", f".[{extras}]", "--constraint", PINS]
    try:
        _by_uv(what, compiled=extras == "dev" or "PYTHONDONTWRITEBYTECODE" in os.environ)
    except Unusable as reason:
        print(f"uv is not used: {reason}; pip installs, which takes longer", flush=True)
        subprocess.run([*PIP, "install", "--quiet", *what], check=True)


def _by_uv(what: list[str], compiled: bool) -> None:
    """compiled: all modules now, where Python may not keep them when it first loads them: the tests do not let it."""
    cache = Path(sys.prefix) / "uv-cache"  # beside the packages, which are hard links into it: no byte is copied
    configuration = _pip_configuration()
    environment = for_uv(configuration, cache)
    # As an option: beside one, uv does not read UV_CONSTRAINT.
    pins = [word for file in configuration.get("constraint", "").split() for word in ("--constraint", file)]
    uv = [*PIP, "install", "--quiet", "--only-binary", ":all:", "--constraint", PINS, "uv"]
    if subprocess.run(uv, check=False).returncode != 0:
        raise Unusable("pip finds no wheel of it for this machine")
    how = ["--quiet", "--compile-bytecode"] if compiled else ["--quiet"]
    command = [str(Path(sys.executable).with_name("uv")), "pip", "install", *how, *what, *pins]
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    except OSError as error:
        raise Unusable(f"it does not start ({error})") from None
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    if code != 0:
        raise Unusable(f"it failed with exit code {code}")


def for_uv(configuration: dict[str, str], cache: Path) -> dict[str, str]:
    """The environment in which uv installs as pip would with this configuration. Raises: Unusable."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    bundle = own.get("REQUESTS_CA_BUNDLE") or own.get("CURL_CA_BUNDLE")  # pip reads both
    given = {"SSL_CERT_FILE": bundle} if bundle else {}
    for name, value in configuration.items():
        if variable := _OF_UV.get(name):
            given[variable] = _SEPARATORS.get(variable, " ").join(value.split())
        elif name not in (*_IRRELEVANT.split(), "constraint"):
            raise Unusable(f"pip's configuration sets {name}, which it does not know")
    return {
        **own,
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # of all indexes, as pip does
        "UV_LINK_MODE": "hardlink",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_SYSTEM_CERTS": "true",
        **given,
        "UV_CACHE_DIR": str(cache),
        "VIRTUAL_ENV": sys.prefix,
    }


def _pip_configuration() -> dict[str, str]:
    """Setting → value, of those that `pip install` reads here. Raises: Unusable."""
    done = subprocess.run([*PIP, "config", "list"], stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise Unusable("pip cannot read its configuration")
    listed = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    # Such as `global.index-url='https://…'`; the later sections count more.
    return {
        key.removeprefix(f"{section}."): ast.literal_eval(value)
        for section in ("global", "install", ":env:")
        for key, value in listed.items()
        if key.startswith(f"{section}.")
    }


if __name__ == "__main__":
    try:
        install(sys.argv[1])
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit(130)
