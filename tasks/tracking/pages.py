"""What MLflow's pages tell of a run and of a model, in Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from tasks.tracking.markdown import plain
from vae.config.resolved import ResolvedParameters
from vae.config.text import number
from vae.models.saved import Saved
from vae.report.numbers import KEY_NUMBERS

LONGEST = 4900  # characters; the registry's column ends at 5,000
THUMBNAIL = "plots/reconstructions_median.png"
Metrics = Mapping[str, float | None]


def of_run(run_id: str, monitor: Mapping[str, Any], test: Metrics, promotion: str | None, model: str) -> str:
    """Verdict, picture, the few numbers, what to do; model: its URI.

    MLflow's page shows the first lines and hides the others behind a button, so what matters stands there. It drops
    pictures that are written into the text (`data:`), so this one is fetched from the run's artifacts.
    """
    picture = f"get-artifact?run_uuid={run_id}&path={THUMBNAIL.replace('/', '%2F')}"
    parts = [
        f"{_verdict(monitor)} {_few(test)}",
        f"![originals above, reconstructions below]({picture})",
        _table(test),
        "\n".join(
            f"- {plain(line)}" for line in (*_list(monitor, "reasons"), *_list(monitor, "recommendations"))
        ),
        f"This model {plain(promotion)}." if promotion else "",
        f"`report.html` among the artifacts tells all of it. The model is `{model}`.",
    ]
    return _fitted(parts)


def of_name(name: str) -> str:
    """Of a registered model, whatever its versions."""
    return _fitted(
        [
            "A variational autoencoder for each version, registered by the pipeline when it had evaluated it.",
            "- `candidate`: the model of the latest run, whatever its verdict.\n"
            "- `champion`: the best so far. `vae promote` moves it, or with `promote.mode: enabled` each evaluation, "
            "if the gate agrees; `vae rollback` moves it back.",
            f'`mlflow.pyfunc.load_model("models:/{name}@champion")` takes images of any size, and gives latents, '
            "reconstructions or scores.",
        ]
    )


def of_version(
    name: str,
    version: str,
    saved: Saved,
    p: ResolvedParameters,
    monitor: Mapping[str, Any],
    test: Metrics,
    data_sha256: str,
    promotion: str | None,
) -> str:
    """The card of a model: what it was trained on, how good it is, how to use it, and what it is not for."""
    channels, height, width = saved.config.image_shape
    kind = "in colour" if channels == 3 else "in grey"
    trained = (
        f"{number(saved.config.train.get('images'))} images of {height}×{width} pixels {kind} from `{p.data.source}` "
        f"({plain(p.data.path)}); data {data_sha256[:12]}, weights {saved.sha256[:12]}"
    )
    uri = f"models:/{name}/{version}"
    parts = [
        _verdict(monitor),  # first, since a list of versions shows the first line
        f"## What {plain(name)} version {version} is",
        f"- trained on {trained}\n"
        f"- a {plain(p.model.architecture)} network with {p.model.latent_dim} latents, "
        f"{saved.likelihood.kind} likelihood, KL weight {number(p.kl.max_weight)}; "
        f"epoch {saved.config.kept_epoch} was kept" + (f"\n- {plain(promotion)}" if promotion else ""),
        f"## How good: {number(test.get('images'))} test images",
        _table(test),
        "## How to use it",
        "\n".join(
            (
                "```python",
                "import mlflow",
                f'model = mlflow.pyfunc.load_model("{uri}")',
                "latents = model.predict(images)  # uint8 (N, H, W, C) of any size, or base64 files",
                'copies = model.predict(images, params={"task": "reconstruct"})',
                'scores = model.predict(images, params={"task": "score"})  # how unusual each image is',
                "```",
            )
        ),
        f"On the command line `vae encode PHOTOS latents.parquet --model {uri}`; over HTTP "
        f"`mlflow models serve -m {uri} --env-manager local`.",
        "## Its limits",
        "\n".join(f"- {line}" for line in _limits(saved, monitor)),
    ]
    return _fitted(parts)


def _limits(saved: Saved, monitor: Mapping[str, Any]) -> Iterator[str]:
    _, height, width = saved.config.image_shape
    if monitor.get("verdict") != "healthy":
        yield "It is not healthy: latents, samples and scores may mean nothing."
    for line in _list(monitor, "warnings"):
        yield plain(line)
    yield f"Every image is resized to {height}×{width} pixels: what is finer than that is lost."
    yield "It knows images like those it was trained on. Of others it gives latents and scores too, without a word."
    yield (
        "A score is an indication: an image of quite another kind can score as usual (Nalisnick 2019). "
        "Measure on labelled examples first."
    )
    yield "Its ELBO compares with that of models of the same data and likelihood only."


def _verdict(monitor: Mapping[str, Any]) -> str:
    return f"**{plain(str(monitor.get('verdict', 'unknown')))}** {plain(str(monitor.get('summary', '')))}".strip()


def _few(test: Metrics) -> str:
    return (
        f"Test ELBO {number(test.get('elbo'))} nats per image, KL {number(test.get('kl'))}, "
        f"{number(test.get('active_units'))} active units."
    )


def _table(test: Metrics) -> str:
    rows = [f"| {n.label} | {number(test[n.key])} |" for n in KEY_NUMBERS if test.get(n.key) is not None]
    return "\n".join(["| on the test split | |", "| --- | --- |", *rows])


def _list(monitor: Mapping[str, Any], name: str) -> list[str]:
    return [str(line) for line in monitor.get(name) or []]


def _fitted(parts: list[str]) -> str:
    """The parts as paragraphs, the last ones left out where they would be too long together."""
    parts = [part if len(part) < LONGEST // 2 else part[: LONGEST // 2] + " …" for part in parts]
    while sum(len(part) + 2 for part in parts) > LONGEST:
        parts = parts[:-1]
    return "\n\n".join(filter(None, parts)) + "\n"
