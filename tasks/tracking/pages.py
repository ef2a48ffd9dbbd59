"""The descriptions of runs and models on MLflow's pages, in Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from tasks.tracking.markdown import plain
from vae.config.resolved import ResolvedParameters
from vae.config.text import number
from vae.models.saved import Saved
from vae.report.numbers import KEY_NUMBERS

LONGEST = 4900  # characters; the registry's column takes 5,000
THUMBNAIL = "plots/reconstructions_median.png"
Metrics = Mapping[str, float | None]

_USE = """```python
import mlflow
model = mlflow.pyfunc.load_model("{uri}")
latents = model.predict(images)  # uint8 (N, H, W, C) of any size, or base64 files
copies = model.predict(images, params={{"task": "reconstruct"}})
scores = model.predict(images, params={{"task": "score"}})  # how unusual each image is
```

On the command line `vae encode PHOTOS latents.parquet --model {uri}`; over HTTP \
`mlflow models serve -m {uri} --env-manager local`."""


def of_run(run_id: str, monitor: Mapping[str, Any], test: Metrics, promotion: str | None, model: str) -> str:
    """Verdict, picture, key numbers, and what to do; model: its URI.

    MLflow's page shows the first lines and hides the rest behind a button, so what matters comes first. It drops
    pictures that are embedded in the text (`data:`), so this one is fetched from the run's artifacts.
    """
    picture = f"get-artifact?run_uuid={run_id}&path={THUMBNAIL.replace('/', '%2F')}"
    headline = (
        f"Test ELBO {number(test.get('elbo'))} nats per image, KL {number(test.get('kl'))}, "
        f"{number(test.get('active_units'))} active units."
    )
    advice = [*monitor.get("reasons", []), *monitor.get("recommendations", [])]
    parts = [
        f"{_verdict(monitor)} {headline}",
        f"![originals above, reconstructions below]({picture})",
        _table(test),
        "\n".join(f"- {plain(line)}" for line in advice),
        f"This model {plain(promotion)}." if promotion else "",
        f"`report.html` among the artifacts has the details. The model is `{model}`.",
    ]
    return _fitted(parts)


def of_name(name: str) -> str:
    """The description of a registered model, whatever its versions."""
    return (
        "Variational autoencoders, one per version, registered by the pipeline after their evaluation.\n\n"
        "- `candidate`: the model of the latest run, whatever its verdict.\n"
        "- `champion`: the best so far. `vae promote` moves it, or with `promote.mode: enabled` each evaluation, if "
        "the gate accepts the model; `vae rollback` moves it back.\n\n"
        f'`mlflow.pyfunc.load_model("models:/{name}@champion")` takes images of any size and returns latents, '
        "reconstructions or scores.\n"
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
    """The model card: what it was trained on, how good it is, how to use it, and what it is not for."""
    channels, height, width = saved.config.image_shape
    facts = [
        f"trained on {number(saved.config.train.get('images'))} images of {height}×{width} pixels "
        f"{'in colour' if channels == 3 else 'in grey'} from `{p.data.source}` ({plain(p.data.path)}); "
        f"data {data_sha256[:12]}, weights {saved.sha256[:12]}",
        f"a {plain(p.model.architecture)} network with {p.model.latent_dim} latents, {saved.likelihood.kind} "
        f"likelihood, KL weight {number(p.kl.max_weight)}; epoch {saved.config.kept_epoch} was kept",
        *([plain(promotion)] if promotion else []),
    ]
    parts = [
        _verdict(monitor),  # first, since a list of versions shows the first line
        f"## {plain(name)} version {version}",
        "\n".join(f"- {fact}" for fact in facts),
        f"## Quality on {number(test.get('images'))} test images",
        _table(test),
        "## Use",
        _USE.format(uri=f"models:/{name}/{version}"),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(saved, monitor)),
    ]
    return _fitted(parts)


def _limits(saved: Saved, monitor: Mapping[str, Any]) -> Iterator[str]:
    _, height, width = saved.config.image_shape
    if monitor["verdict"] != "healthy":
        yield "It is not healthy: latents, samples and scores may be meaningless."
    yield from map(plain, monitor.get("warnings", []))
    yield f"Every image is resized to {height}×{width} pixels: finer detail is lost."
    yield "It knows images like those it was trained on, and encodes and scores any others without a warning."
    yield (
        "A score is an indication: an image of a very different kind can score as usual (Nalisnick 2019). "
        "Measure on labelled examples first."
    )
    yield "Its ELBO is comparable only with models of the same data and likelihood."


def _verdict(monitor: Mapping[str, Any]) -> str:
    return f"**{plain(monitor['verdict'])}** {plain(monitor['summary'])}"


def _table(test: Metrics) -> str:
    rows = [f"| {n.label} | {number(test[n.key])} |" for n in KEY_NUMBERS if test.get(n.key) is not None]
    return "\n".join(["| on the test split | |", "| --- | --- |", *rows])


def _fitted(parts: list[str]) -> str:
    """The parts as paragraphs; the last ones are left out where the whole would be too long."""
    parts = [part if len(part) < LONGEST // 2 else part[: LONGEST // 2] + " …" for part in parts if part]
    while sum(len(part) + 2 for part in parts) > LONGEST:
        parts = parts[:-1]
    return "\n\n".join(parts) + "\n"
