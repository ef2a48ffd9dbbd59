"""The output of the commands of `vae`: data on standard output, messages on standard error."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

LOOK = 3  # exit code
CODES = (
    "Exit codes: 0 success · 1 internal error · 2 user error (see message) · 3 completed with warnings: files were "
    "skipped, the gate rejected the model, the doctor found a problem · 130 interrupted."
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]


def say(text: str) -> None:
    typer.echo(text, err=True)


def print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def table(*rows: Sequence[str]) -> list[str]:
    """One line per row, with its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
