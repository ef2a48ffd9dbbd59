"""How the commands of `vae` talk: data go to standard output, talk to standard error."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

INPUT_ERROR, LOOK = 2, 3
CODES = (
    "Exit codes: 0 all done · 1 a fault of this program · 2 something to put right first, told in one line · "
    "3 done, but look: files were skipped, the gate refused, the doctor found something · 130 interrupted."
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def say(text: str) -> None:
    typer.echo(text, err=True)


def print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2, allow_nan=False))
