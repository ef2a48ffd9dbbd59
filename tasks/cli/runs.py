"""The commands of `vae` about runs; `tasks.cli.app` registers them.

Heavy imports are in the commands that need them, so that `vae --help` answers at once.
"""

import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.cli.console import LOOK, AsJson, print_json, say, table

if TYPE_CHECKING:
    from tasks.tracking.promotion import Outcome

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id or name, or a model as for --model.")]


def compare(first: RunName, second: RunName, as_json: AsJson = False) -> None:
    """Compare two runs: verdicts, metrics of the test split, and the parameters that differ."""
    from tasks.cli import comparison, named_run

    found = comparison.compare(named_run.find(first), named_run.find(second))
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(comparison.lines(found)))


def report(
    run: Annotated[str | None, typer.Argument(help="As for `vae compare`; by default the latest run.")] = None,
    to: Annotated[Path | None, typer.Option(help="Copy the report to this file.")] = None,
    show: Annotated[bool | None, typer.Option("--open/--no-open", help="Open it; the default in a terminal.")] = None,
) -> None:
    """Open the report of a run, or copy it; print its path."""
    from tasks.cli import named_run

    file = named_run.report(run, to)
    typer.echo(file)
    if to is None and (sys.stdout.isatty() if show is None else show):
        typer.launch(str(file))


def promote(
    version: Annotated[str, typer.Argument(help="An alias, or the number of a version.")] = "candidate",
    force: Annotated[bool, typer.Option("--force", help="Promote even if the gate rejects it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a registered model the champion, if the gate accepts it."""
    from tasks.cli import named_model
    from tasks.tracking import promotion, registry, store

    client, _ = store.connect()
    found = registry.version_at(named_model.uri_of(version))
    outcome = promotion.consider(client, found, "forced" if force else "by hand")
    promoted = outcome.champion == outcome.version
    advice = "" if promoted else "; --force promotes it anyway"
    _show(replace(outcome, sentence=f"version {outcome.version} {outcome.sentence}{advice}"), as_json)
    raise typer.Exit(0 if promoted else LOOK)


def rollback(as_json: AsJson = False) -> None:
    """Give the alias `champion` back to the previous champion."""
    from tasks.cli import named_model
    from tasks.tracking import promotion

    _show(promotion.roll_back(named_model.registered_name()), as_json)


def _show(outcome: "Outcome", as_json: bool) -> None:
    say(outcome.sentence)
    if as_json:
        print_json(asdict(outcome))


def reproduce(
    run: RunName,
    ingest: Annotated[bool, typer.Option("--ingest", help="Read the source again, even if DVC has the data.")] = False,
) -> None:
    """Repeat a run outside the workspace and compare the results bit for bit.

    Exit code 1 means that data, weights, history or metrics differ, 2 that the run cannot be repeated.
    """
    from tasks.cli import reproduce

    # The worktree is removed however this ends, even if a shell's & has set SIGINT to be ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    raise typer.Exit(reproduce.reproduce(run, ingest))


def trace(
    anything: Annotated[
        str | None,
        typer.Argument(metavar="ANY", help="A run, flow run, commit, DVC experiment or hash of the train stage."),
    ] = None,
) -> None:
    """Show where a model came from: its MLflow run, commit, train stage and flow run, from any one of them.

    Without a name: the model in this workspace.
    """
    from tasks.cli import trace
    from tasks.tracking import store

    for run in [store.run_here()] if anything is None else trace.find(anything):
        typer.echo("\n".join(table(*store.described(run))) + "\n")


def doctor(
    as_json: AsJson = False,
    mend: Annotated[bool, typer.Option("--mend", help="Repair files that a killed DVC left half written.")] = False,
) -> None:
    """Check versions, GPU, disk, stages, locks and servers; exit code 3 if there is a problem."""
    from tasks.cli import doctor

    for line in doctor.mend() if mend else []:
        say(line)
    checks = doctor.examine()
    healthy = all(check["state"] != "problem" for check in checks)
    if as_json:
        print_json({"healthy": healthy, "checks": checks})
    else:
        typer.echo("\n".join(table(*((check["state"], check["name"], check["text"]) for check in checks))))
    raise typer.Exit(0 if healthy else LOOK)


COMMANDS = (compare, report, promote, rollback, reproduce, trace, doctor)
