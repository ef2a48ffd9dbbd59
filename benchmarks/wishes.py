"""Ask for rates and for errors by `kl.max_weight`, train once with the weight that the pilot finds, and compare.

`python -m benchmarks.wishes --leaves PATH` writes `docs/prediction/wishes.csv`, a row as each training ends, and prints
the table; the same command continues after the last row. Images and recipe are those of `benchmarks.prediction`.
"""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks import prediction, sweep
from benchmarks.prediction import COMPUTE, SWEEPS
from tasks import workspace
from tasks.processes import entry
from vae.collapse import kl_weights, linear_theory
from vae.compute import devices
from vae.config.parameters import Wish
from vae.config.resolved import resolve
from vae.pilot import training as pilot

TABLE = prediction.FOLDER / "wishes.csv"

# From close to collapse to a calibrated weight: rates in nats, root mean squared errors of a pixel in [0, 1].
WISHES: dict[str, dict[str, list[float]]] = {
    "digits-optimal": {"rate": [3, 8, 15, 30, 45], "rmse": [0.18, 0.13, 0.09, 0.06, 0.045]},
    "leaves-optimal": {"rate": [5, 15, 40, 90, 150], "rmse": [0.14, 0.12, 0.1, 0.08, 0.065]},
}
MEASURED = {"rate": "kl", "rmse": "rmse"}


def main(
    leaves: Annotated[
        Path | None, typer.Option(envvar="LEAVES", help="a folder of photos, in folders by class")
    ] = None,
) -> None:
    """Measure how closely one training meets a wish."""
    devices.set_up(COMPUTE, deterministic=True)
    rows: list[dict[Any, Any]] = pd.read_csv(TABLE, engine="python").to_dict("records") if TABLE.exists() else []
    for name in WISHES if leaves else ["digits-optimal"]:
        rows = asked(name, leaves, rows)
    print("\n".join(markdown(rows)))


def asked(name: str, leaves: Path | None, rows: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    """These rows and those of one image set that they lack."""
    done = {(row["images"], row["asked"], row["wish"]) for row in rows}
    missing = [(by, w) for by, ws in WISHES[name].items() for w in ws if (name, by, w) not in done]
    if not missing:
        return rows
    chosen = SWEEPS[name]
    user = prediction.parameters_of(chosen, leaves if chosen.given else None)
    train_images, valid_images = prediction.splits(chosen, user)
    spectrum = linear_theory.spectrum_for(user, train_images)
    learnt = pilot.learn(user, spectrum, train_images, COMPUTE)
    assert learnt is not None
    for by, value in missing:
        wished = user.model_copy(update={"kl": user.kl.model_copy(update={"max_weight": Wish(**{by: value})})})
        weight = kl_weights.resolved(wished, learnt.curve)
        p = resolve(wished, user.train.steps_per_epoch(len(train_images)), weight)
        row = sweep.measured(p, weight, train_images, valid_images, COMPUTE)
        rows = [*rows, {"images": name, "asked": by, "wish": value, **row}]
        workspace.write(TABLE, pd.DataFrame(rows).to_csv(index=False))
    return rows


def markdown(rows: list[dict[Any, Any]]) -> list[str]:
    lines = ["| images | asked | KL weight | measured | off | on the training split |", "|" + " --- |" * 6]
    for row in rows:
        column = MEASURED[row["asked"]]
        measured, train = row[column], row[f"train_{column}"]
        lines.append(
            f"| {row['images']} | {row['asked']} {row['wish']:g} | {row['kl_weight']:.3g} | {measured:.3g} "
            f"| {measured / row['wish'] - 1:+.0%} | {train:.3g} ({train / row['wish'] - 1:+.0%}) |"
        )
    return lines


if __name__ == "__main__":
    entry.run(lambda: typer.run(main))
