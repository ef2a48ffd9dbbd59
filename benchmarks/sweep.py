"""Compare preflight's predicted KL with trainings over a sweep of KL weights, on the ingested images.

`python -m benchmarks.sweep` trains a model for each weight and writes `reports/sweep.csv` and `reports/sweep.png`.
`--show` plots earlier sweeps into one figure instead.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure
from rich.progress import track

from tasks import preflight, workspace
from tasks.processes import entry
from vae.collapse import kl_weights, linear_theory
from vae.collapse.expectations import tolerance
from vae.collapse.linear_theory import Spectrum
from vae.collapse.rate_distortion import Curve, predict
from vae.compute import devices
from vae.compute.batches import for_measuring, open_images
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.resolved import ResolvedParameters, changed
from vae.metrics import measurement
from vae.metrics.mean_image import MeanImage
from vae.models.flops import training_flops
from vae.training import loop

TABLE, PLOT = workspace.REPORTS / "sweep.csv", workspace.REPORTS / "sweep.png"


def main(
    weight: Annotated[list[float] | None, typer.Option(help="a KL weight; repeat for several")] = None,
    count: Annotated[
        int,
        typer.Option(min=6, help="number of weights, from calibrated/10 to beyond collapse, unless --weight is given"),
    ] = 8,
    show: Annotated[
        list[Path] | None,
        typer.Option(help="plot this earlier sweep.csv instead of training; repeat for several"),
    ] = None,
) -> None:
    """Train a model for each KL weight and compare its KL with the prediction of linear theory."""
    workspace.REPORTS.mkdir(exist_ok=True)
    if show:
        tables = {file.stem: pd.read_csv(file) for file in show}
    else:
        tables = {"": sweep(workspace.load_parameters(), weight, count)}
        tables[""].to_csv(TABLE, index=False)
    for name, table in tables.items():
        print("\n".join([*([f"\n{name}\n"] if name else []), *report(table)]))
    plot(tables).savefig(PLOT, dpi=100, metadata={"Software": None})


def sweep(p: ResolvedParameters, weight: list[float] | None, count: int) -> pd.DataFrame:
    """One row per weight, in ascending order."""
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    spectrum = linear_theory.spectrum_for(p, train_images)
    curve = preflight.curve_of(p, spectrum, train_images)
    chosen = sorted(weight) if weight else weights(p, spectrum, count)
    return pd.DataFrame(
        measured(changed(p, {"kl.max_weight": w}), spectrum, curve, train_images, valid_images)
        for w in track(chosen, description="weights")
    )


def weights(p: ResolvedParameters, spectrum: Spectrum, count: int) -> list[float]:
    """From a tenth of the calibrated weight to half of the collapse weight of linear theory, and four around it."""
    collapse = kl_weights.of_rate(p, spectrum)
    low = kl_weights.of_beta(p, spectrum) / 10
    return [*np.geomspace(low, collapse / 2, count - 4), *(collapse * np.array([0.75, 1.0, 1.25, 1.6]))]


def measured(
    p: ResolvedParameters, spectrum: Spectrum, curve: Curve, train_images: np.ndarray, valid_images: np.ndarray
) -> dict[str, float]:
    """One training: the prediction, and the kept model measured on whole splits.

    `kl` is measured on the validation split, `train_kl` on the training split, whose covariance the prediction uses.
    `kl_at_measured_sigma` is the prediction at the σ that training reached, where σ is not fixed.
    """
    p = changed(p, {"train.on_collapse": "continue"})
    compute = devices.choose(p.train, training_flops(p), len(train_images))
    predicted = predict(curve, p.elbo)
    trained = loop.train(p, train_images, valid_images, compute)
    valid = measurement.measure(trained.model, valid_images, trained.likelihood, compute, p.seed)
    pixels = int(np.prod(valid_images.shape[1:]))
    # Models of different σ compare by the calibrated ELBO.
    elbo, kl_at_measured_sigma = valid.elbo_at_own_sigma(trained.likelihood.kind, pixels), predicted.kl
    own_sigma = p.elbo.likelihood == "gaussian" and p.elbo.fixed_sigma is None
    if own_sigma and trained.likelihood.sigma is not None:
        fixed = replace(p.elbo, sigma=trained.likelihood.sigma)
        kl_at_measured_sigma = predict(curve, fixed).kl
    mean_image = MeanImage.of(for_measuring(train_images, p))
    return {
        "kl_weight": p.kl.max_weight,
        "predicted_kl": predicted.kl,
        "linear_kl": predict(spectrum, p.elbo).kl,
        "kl": valid.rate,
        "train_kl": trained.train.rate,
        "kl_at_measured_sigma": kl_at_measured_sigma,
        "predicted_active_units": predicted.active_units,
        "informative_units": valid.informative_units(),
        "active_units": valid.active_units(),
        "elbo": elbo,
        "mean_image_elbo": mean_image.elbo(valid_images, trained.likelihood.kind),
        "tolerance": tolerance(p),
        "collapse_kl_weight": kl_weights.of_rate(p, curve),
        "images_per_latent": spectrum.images / p.model.latent_dim,
    }


def report(table: pd.DataFrame) -> list[str]:
    """The sweep as a Markdown table, and the weight at which the KL falls to 1 nat, predicted and measured.

    Rows whose predicted and measured KL are both below 1 nat are not compared.
    """
    allowed, best = table["tolerance"][0], table["elbo"].max()
    lines = [
        "| KL weight | predicted KL | measured KL | predicted/measured | "
        f"within {allowed:.0%} | predicted active | informative | skill |",
        "|" + " --- |" * 8,
    ]
    for row in table.to_dict("records"):
        predicted, kl = row["predicted_kl"], row["kl"]
        skill = (row["elbo"] - row["mean_image_elbo"]) / (best - row["mean_image_elbo"])
        ratio = f"{predicted / kl:.2f}" if kl else ""
        within = "yes" if abs(predicted - kl) <= allowed * kl else "**no**"
        lines.append(
            f"| {row['kl_weight']:.3g} | {predicted:.3g} | {kl:.3g} | {ratio} "
            f"| {within if max(predicted, kl) > COLLAPSED_BELOW_NATS else 'under 1 nat'} "
            f"| {row['predicted_active_units']:.0f} | {row['informative_units']:.0f} | {skill:.3f} |"
        )
    expected = float(table["collapse_kl_weight"][0])
    found = crossing(table["kl_weight"].to_numpy(), table["kl"].to_numpy())
    outcome = "not in the sweep" if found is None else f"found at {found:.3g}, a factor of {found / expected:.2f}"
    return [
        *lines,
        "",
        f"{table['images_per_latent'][0]:.0f} training images per latent. "
        f"KL of {COLLAPSED_BELOW_NATS:g} nat: predicted at a weight of {expected:.3g}, {outcome}.",
    ]


def crossing(weight: np.ndarray, kl: np.ndarray, nats: float = COLLAPSED_BELOW_NATS) -> float | None:
    """The KL weight beyond which the measured KL stays below `nats`; None where the sweep does not span it.

    Interpolates ln KL linearly in ln weight. weight: (n,), ascending. kl: (n,).
    """
    above = np.flatnonzero(kl > nats)
    if len(above) == 0 or above[-1] == len(kl) - 1:
        return None
    i = above[-1]
    share = np.log(kl[i] / nats) / np.log(kl[i] / max(kl[i + 1], 1e-6))
    return float(weight[i] * (weight[i + 1] / weight[i]) ** share)


def plot(tables: dict[str, pd.DataFrame]) -> Figure:
    """KL over the KL weight for each sweep; the band is the tolerance."""
    columns = min(len(tables), 3)
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(3.4 * columns + 1, 2.6 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in panels[len(tables) :]:
        unused.set_axis_off()
    for axes, (name, table) in zip(panels, tables.items(), strict=False):
        weight, predicted = table["kl_weight"], table["predicted_kl"].clip(lower=1e-2)
        axes.fill_between(
            weight,
            predicted / (1 + table["tolerance"]),
            predicted / (1 - table["tolerance"]),
            color="#7a828c",
            alpha=0.25,
            lw=0,
        )
        axes.plot(weight, predicted, "--", color="#7a828c", label="predicted")
        axes.plot(weight, table["kl"].clip(lower=1e-2), "o-", color="#2f6db3", ms=4, label="measured")
        axes.axhline(COLLAPSED_BELOW_NATS, color="#c0392b", lw=0.8)
        axes.set(xscale="log", yscale="log", title=name, xlabel="KL weight", ylabel="KL (nats per image)")
        axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    entry.run(lambda: typer.run(main))
