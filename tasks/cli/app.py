"""The command `vae`: its subcommands for trained models are here, those for runs in `tasks.cli.runs`.

Heavy imports are in the commands that need them, so that `vae --help` answers at once.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from tasks import PROJECT
from tasks.cli import runs
from tasks.cli.console import CODES, LOOK, AsJson, print_json, say
from tasks.processes import entry
from tasks.processes.entry import INPUT_ERROR
from vae.config.errors import InputError

if TYPE_CHECKING:
    from tasks.cli.reading import Reading
    from vae.compute.devices import Compute
    from vae.models.saved import Saved


class Commands(TyperGroup):
    """Whatever the command, an error that the user can fix is one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            _check_working_folder()
            return super().invoke(ctx)
        except Exception as error:
            message = entry.user_error(error) or _store_error(error)
            if message is None:
                raise
            say(f"error: {message}")
            raise typer.Exit(INPUT_ERROR) from None


def _check_working_folder() -> None:
    """Raises: InputError: it is in another workspace than this program: in a copy, where the original's is active."""
    here = Path.cwd()
    for folder in () if "DVC_ROOT" in os.environ else (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "tasks" / "workspace.py").is_file():
            if not folder.samefile(PROJECT) and not (folder / ".git").is_file():  # a worktree shares this environment
                raise InputError(
                    f"this `vae` belongs to {PROJECT}, and the working folder to {folder}: "
                    "`make setup` and `source .venv/bin/activate` there, then repeat"
                )
            return


def _store_error(error: Exception) -> str | None:
    """The message where MLflow's store did not answer. An OSError is about the files of this machine."""
    if "mlflow" not in sys.modules or isinstance(error, OSError):
        return None
    from tasks.tracking import store  # now that MLflow is loaded anyway

    advice = "`vae doctor` checks the servers, `make up` starts them"
    return f"MLflow does not answer: {store.reason_of(error)}; {advice}" if store.is_away(error) else None


app = typer.Typer(
    cls=Commands,
    name="vae",
    help="Use trained models (encode, reconstruct, sample, traverse, score, export) and manage runs.",
    epilog=CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Images = Annotated[Path, typer.Argument(help="A folder of images, one image, or a .npy file.", metavar="IMAGES")]
Pictures = Annotated[Path, typer.Argument(help="A .png with all of them, or a .npy of uint8 pictures.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A folder, MLflow URI (runs:/ID), alias or version.", show_default="models/vae"),
]
Priors = Literal["fitted", "standard"]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
FullSize = Annotated[
    bool, typer.Option("--full-size", help="Each image in its own size, in tiles; of a model with maps of latents.")
]


def encode(
    images: Images,
    output: Annotated[
        Path | None,
        typer.Argument(
            help="The .parquet file to write, or .npy for maps; or the folder.",
            show_default="latents.parquet or latents",
        ),
    ] = None,
    model: Model = None,
    full_size: FullSize = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Encode images to a parquet file: path, label (class folder), and the lists mu and logvar of q(z|x).

    A name that ends in .npy writes maps of latents: float32 (images, 2, channels, height, width), mu and logvar, with
    path and label in NAME.npy.csv beside it. With --full-size the output is a folder: a map of its own for each image,
    float32 (2, channels, height, width), in PATH.npy.
    """
    from tasks.cli import apply, reading

    output = output or Path("latents" if full_size else "latents.parquet")
    if not full_size:
        apply.check_output(output, images, ".parquet", ".npy")
    elif output.suffix in (".parquet", ".npy"):
        raise InputError(f"{str(output)!r}: with --full-size the output is a folder; leave {output.suffix} out")
    saved, compute, origin = _model(model, device)
    source = reading.reading(images, saved, own_size=full_size)
    (apply.encode_in_own_size if full_size else apply.encode)(saved, source, output, compute)
    each = "in its own size" if full_size else f"of {saved.model.latent_dim} latents each"
    if output.suffix == ".npy" and saved.model.latent_map is not None:
        each = f"as maps of {'×'.join(map(str, saved.model.latent_map))} (channels, height, width)"
    say(f"{output}: {source.read:,} images, mu and logvar {each}")
    _end(origin, source, {"output": str(output)}, as_json)


def reconstruct(
    images: Images,
    output: Annotated[Path, typer.Argument(help="The folder to write to.")] = Path("reconstructions"),
    model: Model = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Put the model's input to the left of each.")] = False,
    full_size: FullSize = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Encode and decode images (z at its mean): one PNG each, at the model's image size."""
    from tasks.cli import apply, reading

    saved, compute, origin = _model(model, device)
    source = reading.reading(images, saved, own_size=full_size)
    apply.reconstruct(saved, source, output, pairs, compute)
    say(f"{output}: {source.read:,} pictures")
    _end(origin, source, {"output": str(output)}, as_json)


def score(
    images: Images,
    model: Model = None,
    to: Annotated[Path | None, typer.Option(help="A .csv or .parquet file; without it, standard output.")] = None,
    percentile: Annotated[float, typer.Option(min=0, max=100, help="Unusual: above this validation percentile.")] = 99,
    threshold: Annotated[float | None, typer.Option(help="Unusual: above this score in nats, instead.")] = None,
    unseen: Annotated[bool, typer.Option("--unseen", help="Leave out what the model was trained on.")] = False,
    usual: Annotated[str | None, typer.Option(help="Print the AUROC of each other class against this.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score how unusual each image is: −ELBO in nats, the most unusual first. Repeated scores are identical.

    The threshold is a percentile of the scores of the model's own validation images, stored with the model.
    """
    from tasks.cli import apply, reading
    from vae.config.text import printable

    if to is not None:
        apply.check_suffix(to, ".parquet", ".csv")
    saved, compute, origin = _model(model, device)
    source = reading.reading(images, saved, reading.trained_on(saved) if unseen else frozenset())
    limit, basis = (threshold, "given") if threshold is not None else apply.kept_threshold(saved, percentile)
    table = apply.score(saved, source, limit, compute)
    aurocs = apply.aurocs(table, usual) if usual is not None else {}
    for line in apply.findings(table, limit, basis):
        say(line)
    for name, value in aurocs.items():
        say(f"AUROC {value:.3f}: {printable(name)} against {printable(usual)}")
    result: dict[str, Any] = {"threshold": limit, "threshold_from": basis, "auroc": aurocs}
    if to is not None:
        apply.write_table(table, to)
        result["output"] = str(to)
    elif as_json:
        result["scores"] = apply.records(table)
    else:
        table.to_csv(sys.stdout, index=False)
    _end(origin, source, {**result, "percentile": percentile}, as_json)
    if table["score"].isna().any():
        raise typer.Exit(LOOK)


def sample(
    output: Pictures = Path("samples.png"),
    model: Model = None,
    count: Annotated[int, typer.Option(min=1, max=10_000)] = 48,
    prior: Annotated[
        Priors, typer.Option(help="fitted: to the model's latents, after training; standard: N(0, I).")
    ] = "fitted",
    columns: Annotated[int, typer.Option(min=1, help="Pictures per row of the .png.")] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw new pictures from the prior fitted to the model's latents, or from N(0, I)."""
    from tasks.cli import apply
    from vae.inference import generate
    from vae.priors.standard import STANDARD, StandardNormal

    apply.check_suffix(output, ".png", ".npy")
    saved, compute, origin = _model(model, device)
    chosen = saved.prior if prior == "fitted" else StandardNormal(saved.model.latent_dim)
    drawn = generate.samples(saved, chosen, count, compute, seed)
    apply.write_pictures(drawn, min(columns, count), output)
    name = saved.config.prior.name if prior == "fitted" else STANDARD
    say(f"{output}: {count:,} samples from {name}")
    _end(origin, None, {"output": str(output), "samples": count, "prior": name}, as_json)


def traverse(
    image: Annotated[Path, typer.Argument(help="The image to start from.")],
    output: Pictures = Path("traversals.png"),
    model: Model = None,
    latents: Annotated[str, typer.Option(help="Such as 3,5,7; by default the most informative (highest KL).")] = "",
    top: Annotated[int, typer.Option(min=1, help="How many of the most informative.")] = 8,
    span: Annotated[float, typer.Option(min=0, help="Values from −SPAN to SPAN.")] = 3.0,
    steps: Annotated[int, typer.Option(min=2, max=99)] = 9,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Vary one latent at a time, one row each, with the others at the image's own means."""
    import numpy as np

    from tasks.cli import apply, reading
    from vae.inference import generate

    apply.check_output(output, image, ".png", ".npy")
    saved, compute, origin = _model(model, device)
    source = reading.reading(image, saved)
    pixels = next(source.batches())[1][0]
    chosen = apply.latents_of(saved, pixels, latents, top, compute)
    values = np.linspace(-span, span, steps)
    apply.write_pictures(generate.traversals(saved, pixels, chosen, values, compute), steps, output)
    varied = f"{saved.config.model.unit}s {', '.join(map(str, chosen))}"
    say(f"{output}: {varied}, from top to bottom; from {-span:g} to {span:g}")
    result = {"output": str(output), "latents": chosen.tolist(), "values": values.tolist()}
    _end(origin, source, result, as_json)


def export(
    output: Annotated[
        Path | None,
        typer.Argument(help="The .onnx file to write, or the folder.", show_default="encoder.onnx or autoencoder"),
    ] = None,
    model: Model = None,
    form: Annotated[Literal["onnx", "diffusers"], typer.Option("--format", help="Format of the export.")] = "onnx",
    as_json: AsJson = False,
) -> None:
    """Export the encoder to ONNX: uint8 images (batch, height, width, channels) to mu and logvar.

    Or, with --format diffusers, a model of architecture autoencoder_kl to a folder that AutoencoderKL.from_pretrained
    of diffusers loads.
    """
    from vae import diffusers, onnx

    saved, _, origin = _model(model, "cpu")
    if form == "diffusers":
        folder = output or Path("autoencoder")
        diffusers.export(saved, folder)
        factor = diffusers.scaling_factor(saved)
        say(f"{folder}: AutoencoderKL of diffusers, scaling factor {factor:g}")
        _end(origin, None, {"output": str(folder), "scaling_factor": factor}, as_json)
        return
    output = output or Path("encoder.onnx")
    difference = onnx.export(saved, output)
    say(f"{output}: opset {onnx.OPSET}; onnxruntime and PyTorch differ by at most {difference:.2g}")
    result = {"output": str(output), "opset": onnx.OPSET, "largest_difference": difference}
    _end(origin, None, result, as_json)


for command in (encode, reconstruct, score, sample, traverse, export, *runs.COMMANDS):
    app.command(epilog=CODES)(command)


def _model(name: str | None, device: str) -> "tuple[Saved, Compute, dict[str, str]]":
    """The model, how to compute with it, and where it is from."""
    from tasks.cli import named_model
    from vae.compute import devices

    chosen = devices.named(device)
    saved, place = named_model.load(name, chosen)
    return saved, saved.compute(chosen), {"place": place, "weights_sha256": saved.sha256}


def _end(origin: Mapping[str, str], source: "Reading | None", result: Mapping[str, Any], as_json: bool) -> None:
    """What was skipped, the JSON document, and the exit code."""
    document = {"model": origin, **result}
    if source is not None:
        for line in source.summary():
            say(line)
        skipped = [{"path": path, "reason": reason} for path, reason in source.skipped]
        document |= {"images": source.read, "left_out": source.left_out, "skipped": skipped}
    if as_json:
        print_json(document)
    if source is not None and source.skipped:
        say(f"{len(source.skipped):,} of {source.images:,} files were skipped")
        raise typer.Exit(LOOK)


def main() -> None:
    entry.log_to("stderr")
    app()


if __name__ == "__main__":
    main()
