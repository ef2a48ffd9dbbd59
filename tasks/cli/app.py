"""The command `vae`: what a person does with a trained model (here), and with the runs around it (`cli_runs`).

Heavy imports stand in the commands that need them, so that `vae --help` answers at once.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tasks.cli import runs
from tasks.cli.console import CODES, INPUT_ERROR, LOOK, AsJson, print_json, say
from vae.config.errors import InputError

if TYPE_CHECKING:
    from tasks.cli.apply import Reading
    from tasks.tracking.lookup import Named
    from vae.compute.devices import Compute


class Commands(TyperGroup):
    """What the user can put right ends in one line, whichever command it was."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            say(f"error: {error}")
            raise typer.Exit(INPUT_ERROR) from None
        except Exception as error:
            if not _store_is_away(error):
                raise
            say(f"error: {_one_line(error)}; `vae doctor` looks at the servers, `make up` starts them")
            raise typer.Exit(INPUT_ERROR) from None


def _store_is_away(error: Exception) -> bool:
    """Whether MLflow's store did not answer; files of this machine have their own messages."""
    if "mlflow" not in sys.modules:
        return False
    from tasks.tracking import store

    return not isinstance(error, OSError) and store.is_away(error)


def _one_line(error: Exception) -> str:
    from tasks.tracking.lookup import reason_of

    return f"MLflow does not answer: {reason_of(error)[:300]}"


app = typer.Typer(
    cls=Commands,
    name="vae",
    help="Use trained models: encode, reconstruct, sample, traverse, score, export; and look after runs.",
    epilog=CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Images = Annotated[
    Path, typer.Argument(help="A folder of images, one image, or a .npy file.", metavar="IMAGES")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A folder, an MLflow URI (models:/vae@candidate, runs:/ID), or an alias or version (candidate, 3).",
        show_default="models/vae",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, typer.Option(min=0)]


@app.command(epilog=CODES)
def encode(
    images: Images,
    output: Annotated[Path, typer.Argument(help="The parquet file to write.")] = Path("latents.parquet"),
    model: Model = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Images to a parquet file: path, label (class folder), mu and logvar of q(z|x), a list of numbers each."""
    from tasks.cli import apply

    named, compute = _model(model, device)
    source = apply.reading(images, named.saved)
    apply.encode(named.saved, source, output, compute)
    say(f"{output}: {source.read:,} images, mu and logvar of {named.saved.model.latent_dim} latents each")
    _end(named, source, {"output": str(output)}, as_json)


@app.command(epilog=CODES)
def reconstruct(
    images: Images,
    output: Annotated[Path, typer.Argument(help="The folder to write to.")] = Path("reconstructions"),
    model: Model = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="The image as the model saw it, left of its copy.")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Images encoded and decoded again (z at its mean): a PNG for each, of the model's image size."""
    from tasks.cli import apply

    named, compute = _model(model, device)
    source = apply.reading(images, named.saved)
    apply.reconstruct(named.saved, source, output, pairs, compute)
    say(f"{output}: {source.read:,} pictures")
    _end(named, source, {"output": str(output)}, as_json)


@app.command(epilog=CODES)
def score(
    images: Images,
    model: Model = None,
    to: Annotated[
        Path | None, typer.Option(help="A .csv or .parquet file; without it, standard output.")
    ] = None,
    percentile: Annotated[
        float,
        typer.Option(min=0, max=100, help="Unusual: above this percentile of the validation images' scores."),
    ] = 99,
    threshold: Annotated[
        float | None, typer.Option(help="Unusual: above this score in nats, instead.")
    ] = None,
    unseen: Annotated[
        bool,
        typer.Option(
            "--unseen", help="Leave out what data/manifest.parquet has in train or valid, told by content."
        ),
    ] = False,
    usual: Annotated[
        str | None, typer.Option(help="The class folder of usual images: the AUROC of all others against it.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """How unusual each image is: −ELBO in nats, the most unusual first. Repeats exactly: the noise follows
    from the image itself.

    The threshold is a percentile of the scores that the model's own validation images had when training ended;
    they are kept with the model.
    """
    from tasks.cli import apply
    from vae.config.text import printable
    from vae.inference import scoring

    if to is not None:
        apply.check_table_name(to)
    named, compute = _model(model, device)
    source = apply.reading(images, named.saved, apply.trained_on() if unseen else frozenset())
    if unseen and not apply.is_of_workspace(named.saved):
        say(
            "WARNING: --unseen goes by data/manifest.parquet, and this is not the model that was trained on it"
        )
    limit = threshold if threshold is not None else scoring.threshold(named.saved, percentile)
    table = apply.score(named.saved, source, limit, compute)
    aurocs = apply.aurocs(table, usual) if usual is not None else {}

    origin = "given" if threshold is not None else None
    if origin is None and limit is not None:
        origin = f"the {percentile:g}th percentile of the {named.saved.config.valid.images:,} validation images' scores"
    if limit is None:
        say(
            "no threshold: this model was saved before scores were kept with it; give --threshold, or train again"
        )
    else:
        say(
            f"{int(table['unusual'].sum()):,} of {len(table):,} images score above {limit:.6g} nats ({origin})"
        )
    for name, value in aurocs.items():
        say(f"AUROC {value:.3f}: {printable(name)} against {printable(usual)}")
    if missing := int(table["score"].isna().sum()):
        say(
            f"{missing:,} scores are no number: the model gives none for these images; it has probably diverged"
        )
    result: dict[str, Any] = {
        "threshold": limit,
        "threshold_from": origin,
        "percentile": percentile,
        "auroc": aurocs,
    }
    if to is not None:
        apply.write_table(table, to)
        result["output"] = str(to)
    elif as_json:
        result["scores"] = apply.records(table)
    else:
        table.to_csv(sys.stdout, index=False)
    _end(named, source, result, as_json)
    if missing:
        raise typer.Exit(LOOK)


@app.command(epilog=CODES)
def sample(
    output: Annotated[
        Path, typer.Argument(help="A .png with all of them, or a .npy of uint8 pictures.")
    ] = Path("samples.png"),
    model: Model = None,
    count: Annotated[int, typer.Option(min=1, max=10_000)] = 48,
    columns: Annotated[int, typer.Option(min=1, help="Of the .png.")] = 8,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """New pictures, from the prior, or from the prior that was fitted to the model's latents."""
    from tasks.cli import apply
    from vae.inference import generate

    named, compute = _model(model, device)
    drawn = generate.samples(named.saved, count, compute, seed)
    apply.write_pictures(drawn, min(columns, count), output)
    say(f"{output}: {count:,} samples")
    _end(named, None, {"output": str(output), "samples": count}, as_json)


@app.command(epilog=CODES)
def traverse(
    image: Annotated[Path, typer.Argument(help="The image to start from.")],
    output: Annotated[
        Path, typer.Argument(help="A .png with all of them, or a .npy of uint8 pictures.")
    ] = Path("traversals.png"),
    model: Model = None,
    latents: Annotated[
        str, typer.Option(help="Such as 3,5,7; without it, those that tell most of the image.")
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="How many of those.")] = 8,
    span: Annotated[float, typer.Option(min=0, help="From −SPAN to SPAN.")] = 3.0,
    steps: Annotated[int, typer.Option(min=2, max=99)] = 9,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """One latent at a time, a row each, from −3 to 3, the others staying at the image's own means."""
    import numpy as np

    from tasks.cli import apply
    from vae.inference import generate

    named, compute = _model(model, device)
    source = apply.reading(image, named.saved)
    pixels = next(source.batches())[1][0]
    chosen = apply.latents_of(named.saved, pixels, latents, top, compute)
    values = np.linspace(-span, span, steps)
    apply.write_pictures(generate.traversals(named.saved, pixels, chosen, values, compute), steps, output)
    say(f"{output}: latents {', '.join(map(str, chosen))}, from the top; from {-span:g} to {span:g}")
    _end(
        named, source, {"output": str(output), "latents": chosen.tolist(), "values": values.tolist()}, as_json
    )


@app.command(epilog=CODES)
def export(
    output: Annotated[Path, typer.Argument(help="The .onnx file to write.")] = Path("encoder.onnx"),
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """The encoder as ONNX: uint8 images (batch, height, width, channels) to mu and logvar. Held against PyTorch."""
    from vae import onnx

    named, _ = _model(model, "cpu")
    difference = onnx.export(named.saved, output)
    say(f"{output}: opset {onnx.OPSET}; onnxruntime and PyTorch differ by {difference:.2g} at most")
    _end(named, None, {"output": str(output), "opset": onnx.OPSET, "largest_difference": difference}, as_json)


for command in (runs.compare, runs.report, runs.promote, runs.rollback, runs.doctor):
    app.command(epilog=CODES)(command)


def _model(name: str | None, device: str) -> "tuple[Named, Compute]":
    from tasks.tracking import lookup
    from vae.compute import devices

    chosen = devices.named(device)
    named = lookup.load(name, chosen)
    return named, named.saved.compute(chosen)


def _end(named: "Named", source: "Reading | None", result: Mapping[str, Any], as_json: bool) -> None:
    """What was skipped, the JSON document, and the exit code."""
    document = {"model": named.describe(), **result}
    if source is not None:
        for path, reason in source.skipped:
            # repr: a file's name may hold line breaks or a terminal's commands
            say(f"skipped {path!r}: {reason}")
        if source.left_out:
            say(f"{source.left_out:,} images left out: the model was trained on them, or chosen by them")
        if source.litter:
            say(
                f"{len(source.litter):,} files of systems and programs passed over: {source.litter[0][0]!r}, …"
            )
        skipped = [{"path": path, "reason": reason} for path, reason in source.skipped]
        document |= {"images": source.read, "left_out": source.left_out, "skipped": skipped}
    if as_json:
        print_json(document)
    if source is not None and source.skipped:
        say(f"{len(source.skipped):,} of {len(source.items):,} files were skipped")
        raise typer.Exit(LOOK)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
