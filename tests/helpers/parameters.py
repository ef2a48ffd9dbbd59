"""Parameters by their full names, as `kl.max_weight`."""

from collections.abc import Mapping
from typing import Any

from helpers.project import PROJECT

from tasks import overlay
from vae.config import loading
from vae.config.parameters import Parameters

Changes = dict[str, Any]  # of parameters, by their full names


def parse(changes: Mapping[str, Any]) -> Parameters:
    """The defaults with these changes."""
    return loading.parse(nested(changes))


def default_file() -> str:
    """params.yaml with its default values; the project's own may have been edited."""
    return overlay.lay_over((PROJECT / "params.yaml").read_text(encoding="utf-8"), overlay.defaults())


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"seed": 1, "kl.cycles": 2} → {"seed": 1, "kl": {"cycles": 2}}"""
    sections: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[key] = value
    return sections
