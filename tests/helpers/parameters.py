"""Parameters by their full names, as `kl.max_weight`."""

from collections.abc import Mapping
from typing import Any

from vae.config import loading
from vae.config.parameters import Parameters

Changes = dict[str, Any]  # of parameters, by their full names


def parse(changes: Mapping[str, Any]) -> Parameters:
    """The defaults with these changes."""
    return loading.parse(nested(changes))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"seed": 1, "kl.cycles": 2} → {"seed": 1, "kl": {"cycles": 2}}"""
    sections: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[key] = value
    return sections
