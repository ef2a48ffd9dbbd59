"""The addresses of servers that the user names: what they may be, checked before anything connects to them."""

import os
import re
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from vae.config.errors import InputError

# What MLflow can reach, and keeps runs in since its version 3.13; a database may name its driver: postgresql+psycopg2.
STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


def tracking_uri() -> str | None:
    """MLFLOW_TRACKING_URI; None where it is not set. Raises: InputError: no store can be there."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    scheme, separator, _ = uri.partition("://")
    is_store = scheme.partition("+")[0] in STORES and (scheme.startswith("sqlite") or _has_host(uri))
    if not separator or not (is_store or scheme in entry_points(group="mlflow.tracking_store").names):  # a plugin's
        raise InputError(
            f"MLFLOW_TRACKING_URI = {shown(uri)}: not the address of an MLflow store; expected http://HOST:PORT, "
            "sqlite:////PATH/mlflow.db or postgresql://…, or unset it: runs then go to this folder's own store"
        )
    return uri


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def shown(url: str) -> str:
    """Without a user's name and password."""
    return re.sub(r"//.*@", "//…@", url)


def same(one: str, other: str) -> bool:
    """Whether two addresses lead to the same server of this machine or another: localhost is 127.0.0.1."""
    return _plain(one) == _plain(other)


def _plain(url: str) -> str:
    return re.sub(r"^(https?://)localhost\b", r"\g<1>127.0.0.1", url.strip().rstrip("/"))
