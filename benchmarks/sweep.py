"""Compare preflight's predicted KL with trainings over a sweep of KL weights, on the ingested images.

`python -m benchmarks.sweep` learns a pilot and trains a model for each weight, for each of `--seeds`, and writes
`reports/sweep.csv` and `reports/sweep.png`. `--show` plots earlier sweeps into one figure instead.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.progress import track

from tasks import workspace
from tasks.processes import entry
from vae.collapse import kl_weights, linear_theory
from vae.collapse.expectations import tolerance
from vae.collapse.linear_theory import Spectrum
from vae.collapse.rate_distortion import Curve, predict
from vae.compute import devices
from vae.compute.batches import for_measuring, open_images
from vae.compute.devices import Compute
from vae.config.beta_elbo import BetaELBO
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, changed
from vae.metrics import measurement
from vae.metrics.mean_image import MeanImage
from vae.models.flops import training_flops
from vae.pilot import training as pilot
from vae.training import loop

TABLE, PLOT = workspace.REPORTS / "sweep.csv", workspace.REPORTS / "sweep.png"

# Below 1 nat, from where on a KL is more than noise, and the factor by which its prediction may miss it.
LEAST_NATS, FACTOR = 0.3, 2.0

# Columns of the predicted KL and of the weight at which it falls to 1 nat.
PREDICTORS = {
    "preflight": ("predicted_kl", "collapse_kl_weight"),
    "linear theory": ("linear_kl", "linear_collapse_kl_weight"),
}


def main(
    weight: Annotated[list[float] | None, typer.Option(help="a KL weight; repeat for several")] = None,
    count: Annotated[
        int,
        typer.Option(min=6, help="number of weights, from calibrated/10 to beyond collapse, unless --weight is given"),
    ] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="pilots and sweeps, each with a seed of its own")] = 1,
    show: Annotated[
        list[Path] | None,
        typer.Option(help="plot this earlier sweep.csv instead of training; repeat for several"),
    ] = None,
) -> None:
    """Train a model for each KL weight and compare its KL with the predictions of the pilot and of linear theory."""
    workspace.REPORTS.mkdir(exist_ok=True)
    if show:
        tables = {file.stem: read(file) for file in show}
    else:
        tables = {"": sweep(workspace.load_parameters(), weight, count, seeds)}
        tables[""].to_csv(TABLE, index=False)
    for name, table in tables.items():
        print("\n".join([*([f"\n{name}\n"] if name else []), *report(table)]))
    plot(tables).savefig(PLOT, dpi=100, metadata={"Software": None})


def sweep(p: ResolvedParameters, weight: list[float] | None, count: int, seeds: int = 1) -> pd.DataFrame:
    """One row per seed and weight, in ascending order; the seeds begin with that of the parameters."""
    train_images, valid_images = (open_images(workspace.images(split)) for split in ("train", "valid"))
    spectrum = linear_theory.spectrum_for(p, train_images)
    chosen = sorted(weight) if weight else weights(p, spectrum, count)
    compute = devices.choose(p.train, training_flops(p), len(train_images))

    def rows() -> Iterator[dict[str, Any]]:
        for seed in range(p.seed, p.seed + seeds):
            seeded = p.model_copy(update={"seed": seed})
            curve = pilot.curve_of(seeded, spectrum, train_images)
            for w in track(chosen, description=f"weights, seed {seed}"):
                row = measured(seeded, w, train_images, valid_images, compute)
                yield compared(seeded, row, spectrum, curve)

    return pd.DataFrame(rows())


MEASURED = {"seed", "kl_weight", "kl", "train_rmse", "sigma"}
COMPARED = MEASURED | {"predicted_kl", "predicted_rmse", "linear_kl", "linear_collapse_kl_weight"}


def read(path: Path, columns: Collection[str] = COMPARED) -> pd.DataFrame:
    """An earlier sweep, its numbers as they were. Raises: InputError: one of the columns is missing."""
    table = pd.read_csv(path, engine="python")  # whose floats are exact
    missing = set(columns) - set(table.columns)
    if missing:
        raise InputError(f"{path} is of an earlier version, without {', '.join(sorted(missing))}; remove it and rerun")
    return table


def weights(p: ResolvedParameters, spectrum: Spectrum, count: int) -> list[float]:
    """From a tenth of the calibrated weight to half of the collapse weight of linear theory, and four around it."""
    collapse = kl_weights.of_rate(p, spectrum)
    low = kl_weights.of_beta(p, spectrum) / 10
    return [*np.geomspace(low, collapse / 2, count - 4), *(collapse * np.array([0.75, 1.0, 1.25, 1.6]))]


def measured(
    p: ResolvedParameters, weight: float, train_images: np.ndarray, valid_images: np.ndarray, compute: Compute
) -> dict[str, float]:
    """One training with this KL weight, the kept model measured on whole splits.

    `kl` and `rmse` are of the validation split, `train_kl` and `train_rmse` of the training split, which the
    predictions are of; z sampled. `sigma` is the decoder's, NaN unless it has one.
    """
    p = changed(p, {"kl.max_weight": weight, "train.on_collapse": "continue"})
    trained = loop.train(p, train_images, valid_images, compute)
    valid = measurement.measure(trained.model, valid_images, trained.likelihood, compute, p.seed)
    sigma, pixels = trained.likelihood.sigma, int(np.prod(valid_images.shape[1:]))
    return {
        "seed": p.seed,
        "kl_weight": p.kl.max_weight,
        "kl": valid.rate,
        "train_kl": trained.train.rate,
        "rmse": math.sqrt(valid.mse_sampled),
        "train_rmse": math.sqrt(trained.train.mse_sampled),
        "sigma": sigma if isinstance(sigma, float) else math.nan,
        "informative_units": valid.informative_units(),
        "active_units": valid.active_units(),
        # Models of different σ compare by the calibrated ELBO.
        "elbo": valid.elbo_at_own_sigma(trained.likelihood, pixels),
        "mean_image_elbo": MeanImage.of(for_measuring(train_images, p)).elbo(valid_images, trained.likelihood),
    }


def compared(p: ResolvedParameters, row: Mapping[str, Any], spectrum: Spectrum, curve: Curve) -> dict[str, Any]:
    """A row of `measured` and what the pilot and linear theory predict for it.

    `kl_at_measured_sigma` is the prediction at the σ that training reached, where σ is not fixed.
    """
    elbo = BetaELBO.of(p, row["kl_weight"])
    predicted = predict(curve, elbo)
    follows = kl_weights.follows_the_error(p) and math.isfinite(row["sigma"])
    at_sigma = predict(curve, replace(elbo, sigma=row["sigma"])) if follows else predicted
    return {
        **row,
        "predicted_kl": predicted.kl,
        "linear_kl": predict(spectrum, elbo).kl,
        "kl_at_measured_sigma": at_sigma.kl,
        "predicted_rmse": math.sqrt(predicted.mse),
        "predicted_active_units": predicted.active_units,
        "tolerance": tolerance(p),
        "collapse_kl_weight": kl_weights.of_rate(p, curve),
        "linear_collapse_kl_weight": kl_weights.of_rate(p, spectrum),
        "images_per_latent": spectrum.images / p.model.latent_dim,
    }


@dataclass(frozen=True)
class Summary:
    """How good a prediction is over a sweep.

    Attributes:
        judged: rows whose predicted or measured KL is above 1 nat. within: those of them within tolerance.
        error: exp of the mean |ln(predicted/measured)| over the rows whose measured KL is above 1 nat.
        expected, found: the weight at which the KL falls to 1 nat, predicted and measured, for each seed; `found` is
            None where the sweep does not span it.
        missed: weight and predicted/measured of rows from 0.3 to 1 nat that are missed by more than a factor of 2.
    """

    judged: int
    within: int
    error: float
    expected: list[float]
    found: list[float | None]
    missed: list[tuple[float, float]]

    def cells(self) -> str:
        """As cells of a Markdown table, for `SUMMARY`."""
        both = [(found, found / said) for said, found in zip(self.expected, self.found, strict=True) if found and said]
        absent = f" ({len(self.found) - len(both)} not in the sweep)" if len(both) < len(self.found) else ""
        missed = ", ".join(f"{ratio:.2f} at {weight:.3g}" for weight, ratio in self.missed)
        return (
            f"{self.within} of {self.judged} | {self.error:.2f} | {_range(self.expected, '.3g')} "
            f"| {_range([found for found, _ in both], '.3g')}{absent} "
            f"| {_range([factor for _, factor in both], '.2f')} | {missed or 'none'}"
        )


SUMMARY = (
    "| above 1 nat within tolerance | geometric mean error | weight of 1 nat: predicted | measured "
    "| measured/predicted | below 1 nat beyond a factor of 2 |"
)


def summary(table: pd.DataFrame, by: str) -> Summary:
    """Of one of the `PREDICTORS`, over all seeds."""
    kl_column, collapse_column = PREDICTORS[by]
    predicted, kl = table[kl_column].to_numpy(), table["kl"].to_numpy()
    weight, tolerance = table["kl_weight"].to_numpy(), table["tolerance"].to_numpy()
    judged = np.maximum(predicted, kl) > COLLAPSED_BELOW_NATS
    within = np.abs(predicted - kl) <= tolerance * kl
    with np.errstate(divide="ignore"):  # a prediction of 0
        miss = np.abs(np.log(predicted / np.maximum(kl, 1e-300)))
    above = kl > COLLAPSED_BELOW_NATS
    error = math.exp(miss[above].mean()) if above.any() else math.nan
    missed = (kl > LEAST_NATS) & ~above & (miss > math.log(FACTOR))
    seeds = [rows.sort_values("kl_weight") for _, rows in table.groupby("seed")]
    return Summary(
        int(judged.sum()),
        int((judged & within).sum()),
        error,
        [float(rows[collapse_column].iloc[0]) for rows in seeds],
        [crossing(rows["kl_weight"].to_numpy(), rows["kl"].to_numpy()) for rows in seeds],
        [(float(weight[i]), float(predicted[i] / kl[i])) for i in np.flatnonzero(missed)],
    )


def _range(values: list[float], form: str) -> str:
    if not values:
        return "–"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low}–{high}"


def report(table: pd.DataFrame) -> list[str]:
    """The sweep as a Markdown table, and how good preflight's prediction and linear theory are.

    Rows whose predicted and measured KL are both below 1 nat are not compared.
    """
    allowed, best = table["tolerance"][0], table["elbo"].max()
    lines = [
        "| seed | KL weight | predicted KL | by linear theory | measured KL | predicted/measured | "
        f"within {allowed:.0%} | predicted active | informative | skill |",
        "|" + " --- |" * 10,
    ]
    for row in table.to_dict("records"):
        predicted, kl = row["predicted_kl"], row["kl"]
        skill = (row["elbo"] - row["mean_image_elbo"]) / (best - row["mean_image_elbo"])
        ratio = f"{predicted / kl:.2f}" if kl else ""
        within = "yes" if abs(predicted - kl) <= allowed * kl else "**no**"
        lines.append(
            f"| {row['seed']:.0f} | {row['kl_weight']:.3g} | {predicted:.3g} | {row['linear_kl']:.3g} | {kl:.3g} "
            f"| {ratio} | {within if max(predicted, kl) > COLLAPSED_BELOW_NATS else 'under 1 nat'} "
            f"| {row['predicted_active_units']:.0f} | {row['informative_units']:.0f} | {skill:.3f} |"
        )
    return [
        *lines,
        "",
        f"{table['images_per_latent'][0]:.0f} training images per latent.",
        "",
        f"| prediction {SUMMARY}",
        "|" + " --- |" * 7,
        *(f"| {by} | {summary(table, by).cells()} |" for by in PREDICTORS),
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
        for index, (_, sweep_of_seed) in enumerate(table.sort_values("kl_weight").groupby("seed")):
            _draw(axes, sweep_of_seed, labelled=index == 0)
        axes.axhline(COLLAPSED_BELOW_NATS, color="#c0392b", lw=0.8)
        axes.set(xscale="log", yscale="log", title=name, xlabel="KL weight", ylabel="KL (nats per image)")
        axes.legend(fontsize="small")
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, labelled: bool) -> None:
    """One seed."""
    least, grey = 1e-2, "#7a828c"
    weight, predicted = rows["kl_weight"], rows["predicted_kl"].clip(lower=least)
    low, high = predicted / (1 + rows["tolerance"]), predicted / (1 - rows["tolerance"])
    axes.fill_between(weight, low, high, color=grey, alpha=0.2, lw=0)
    axes.plot(weight, predicted, "--", color=grey, label="predicted" if labelled else None)
    if labelled:  # the same for all seeds
        axes.plot(weight, rows["linear_kl"].clip(lower=least), ":", color="#c9822b", label="linear theory")
    axes.plot(
        weight, rows["kl"].clip(lower=least), "o-", color="#2f6db3", ms=3, lw=1, label="measured" if labelled else None
    )


if __name__ == "__main__":
    entry.run(lambda: typer.run(main))
