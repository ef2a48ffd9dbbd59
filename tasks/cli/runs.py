"""The commands of `vae` that look after runs; `tasks.cli.app` registers them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tasks.cli.console import LOOK, AsJson, print_json, say


def compare(
    first: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id or name, or a model as --model takes it.")
    ],
    second: Annotated[str, typer.Argument(metavar="RUN")],
    as_json: AsJson = False,
) -> None:
    """Two runs side by side: verdicts, metrics of the test split, and the parameters that differ."""
    from tasks.cli import run_lookup

    table = run_lookup.compare(run_lookup.find(first), run_lookup.find(second))
    if as_json:
        print_json(table.to_dict())
    else:
        typer.echo(str(table))


def report(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's id or name, or a model as --model takes it; without it, the last one."),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Copy it there.")] = None,
    show: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="In the browser; by default where a person watches."),
    ] = None,
) -> None:
    """The report of a run: opened where a person watches, or copied; its path is printed."""
    from tasks.cli import run_lookup

    file = run_lookup.report(run, to)
    typer.echo(file)
    if to is None and (sys.stdout.isatty() if show is None else show):
        typer.launch(str(file))


def promote(
    version: Annotated[str, typer.Argument(help="An alias, or the number of a version.")] = "candidate",
    force: Annotated[bool, typer.Option("--force", help="Whatever the gate says.")] = False,
    as_json: AsJson = False,
) -> None:
    """Makes a registered model the champion, if the gate lets it through."""
    from tasks.cli import run_lookup

    outcome = run_lookup.promote(version, force)
    say(outcome.sentence)
    if as_json:
        print_json(outcome.to_dict())
    raise typer.Exit(0 if outcome.champion == outcome.version else LOOK)


def rollback(as_json: AsJson = False) -> None:
    """Gives the alias `champion` back to the model that had it before."""
    from tasks.cli import run_lookup

    outcome = run_lookup.rollback()
    say(outcome.sentence)
    if as_json:
        print_json(outcome.to_dict())


def doctor(
    as_json: AsJson = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="put right what a killed DVC left half written")
    ] = False,
) -> None:
    """Checks installation, versions, GPU, servers, locks, disk, workspace; exit code 3 if something is to be done."""
    from tasks.cli import doctor

    for what in doctor.mend() if mend else []:
        say(what)
    checks = doctor.examine()
    if as_json:
        print_json({"healthy": doctor.healthy(checks), "checks": [check.to_dict() for check in checks]})
    else:
        for check in checks:
            typer.echo(str(check))
    raise typer.Exit(0 if doctor.healthy(checks) else LOOK)
