"""Holds preflight's prediction against trainings over a sweep of KL weights, on the images that ingest made.

`python -m tasks.sweep` trains a model for each weight, in this process, and writes `reports/sweep.csv` and
`reports/sweep.png`; nothing else changes. docs/prediction.md has what it gave on three data sets.
"""

from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure
from rich.progress import track

from tasks import workspace
from vae import devices, diagnostics, parameters, preflight, training
from vae.batches import open_images
from vae.objective import COLLAPSED_BELOW_NATS, Objective
from vae.parameters import Parameters, with_weight
from vae.preflight import Spectrum

SWEEP, SWEEP_PLOT = workspace.REPORTS / "sweep.csv", workspace.REPORTS / "sweep.png"


def main(
    weight: Annotated[list[float] | None, typer.Option(help="a KL weight; give it once for each")] = None,
    count: Annotated[
        int,
        typer.Option(min=6, help="of weights, where none is given: from calibrated/10 to beyond collapse"),
    ] = 8,
) -> None:
    """Trains a model for each KL weight and compares its KL with what linear theory predicts."""
    p = with_weight(parameters.load(workspace.PARAMS), 1.0)
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    bernoulli, drawn = p.objective.likelihood == "bernoulli", p.data.binarise == "dynamic"
    spectrum = preflight.spectrum(train_images, p.model.latent_dim, bernoulli, drawn, p.seed)
    objective = Objective.of(p)
    weight = sorted(weight) if weight else weights(spectrum, objective, count)

    rows = [
        measured(with_weight(p, w), spectrum, train_images, valid_images)
        for w in track(weight, description="weights")
    ]
    table = pd.DataFrame(rows)
    workspace.REPORTS.mkdir(exist_ok=True)
    table.to_csv(SWEEP, index=False)
    plot(table).savefig(SWEEP_PLOT, dpi=110, metadata={"Software": None})
    print(
        "| KL weight | predicted KL | measured KL | measured/predicted | predicted active | informative | skill |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    best = table["elbo"].max()
    for row in rows:
        skill = (row["elbo"] - row["mean_image_elbo"]) / (best - row["mean_image_elbo"])
        ratio = f"{row['kl'] / row['predicted_kl']:.2f}" if row["predicted_kl"] else ""
        print(
            f"| {row['kl_weight']:.3g} | {row['predicted_kl']:.3g} | {row['kl']:.3g} | {ratio} "
            f"| {row['predicted_active_units']} | {row['informative_units']} | {skill:.3f} |"
        )
    predicted = preflight.collapse_weight(spectrum, objective)
    measured_weight = crossing(table["kl_weight"].to_numpy(), table["kl"].to_numpy())
    print(f"\n{spectrum.images / p.model.latent_dim:.0f} training images a latent.")
    if measured_weight is None:
        print(
            f"KL falls to {COLLAPSED_BELOW_NATS:g} nat: predicted at a weight of {predicted:.3g}, not in the sweep."
        )
    else:
        print(
            f"KL falls to {COLLAPSED_BELOW_NATS:g} nat: predicted at a weight of {predicted:.3g}, "
            f"measured at {measured_weight:.3g}, a factor of {measured_weight / predicted:.2f}."
        )


def weights(spectrum: Spectrum, objective: Objective, count: int) -> list[float]:
    """From a tenth of the calibrated weight to half of the one where collapse is predicted, and four around it."""
    collapse = preflight.collapse_weight(spectrum, objective)
    low = preflight.calibrated_weight(spectrum, objective) / 10
    return [*np.geomspace(low, collapse / 2, count - 4), *(collapse * np.array([0.75, 1.0, 1.25, 1.6]))]


def crossing(weight: np.ndarray, kl: np.ndarray, nats: float = COLLAPSED_BELOW_NATS) -> float | None:
    """The KL weight at which the measured KL falls to `nats` for good; None where the sweep does not span it.

    Between two trainings ln KL is taken as linear in ln weight. weight: (n,), ascending. kl: (n,).
    """
    above = np.flatnonzero(kl > nats)
    if len(above) == 0 or above[-1] == len(kl) - 1:
        return None
    i = above[-1]
    below = max(float(kl[i + 1]), 1e-6)
    share = np.log(kl[i] / nats) / np.log(kl[i] / below)
    return float(weight[i] * (weight[i + 1] / weight[i]) ** share)


def measured(
    p: Parameters, spectrum: Spectrum, train_images: np.ndarray, valid_images: np.ndarray
) -> dict[str, float]:
    """One training at one weight: the prediction, and the kept model on the whole validation split."""
    from vae.baseline import MeanImage
    from vae.batches import for_measuring
    from vae.objective import Likelihood, optimal_sigma

    p = p.model_copy(update={"train": p.train.model_copy(update={"on_collapse": "continue"})})
    compute = devices.choose(p.train, training.flops(p, len(train_images)))
    predicted = preflight.predict(spectrum, Objective.of(p), p.kl.weight)
    trained = training.train(p, train_images, valid_images, compute, on_message=lambda line: None)
    valid = diagnostics.measure(trained.model, valid_images, trained.likelihood, compute, p.seed)
    pixels = int(np.prod(valid_images.shape[1:]))
    # Models of different σ compare by the ELBO that each has with the σ of its own validation error.
    elbo = valid.elbo
    if trained.likelihood.kind == "gaussian":
        elbo = valid.with_likelihood(Likelihood("gaussian", optimal_sigma(valid.mse_sampled)), pixels)
    mean_image = MeanImage.of(for_measuring(train_images, p))
    return {
        "kl_weight": p.kl.weight,
        "predicted_kl": predicted.kl,
        "kl": valid.rate,
        "predicted_active_units": predicted.active_units,
        "informative_units": valid.informative_units(),
        "active_units": valid.active_units(),
        "elbo": elbo,
        "mean_image_elbo": mean_image.elbo(valid_images, trained.likelihood.kind),
    }


def plot(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.loglog(
        table["kl_weight"], table["predicted_kl"].clip(lower=1e-2), "--", color="#7a828c", label="predicted"
    )
    axes.loglog(table["kl_weight"], table["kl"].clip(lower=1e-2), "o-", color="#2f6db3", label="measured")
    axes.axhline(1, color="#c0392b", lw=0.8)
    axes.set(xlabel="KL weight", ylabel="KL (nats per image)")
    axes.legend()
    return figure


if __name__ == "__main__":
    workspace.run(lambda: typer.run(main))
