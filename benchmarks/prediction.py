"""Compare the predicted KL with trainings over sweeps of KL weights on ten image sets.

`python -m benchmarks.prediction --mnist PATH --leaves PATH` adds a row to `docs/prediction/trained/NAME.csv` as each
training ends, and those of a seed with the predictions of its pilot to `docs/prediction/NAME.csv`; the same command
continues after the last row. In the end it prints the tables and draws `docs/prediction.png`. `--only shapes` and so on
runs some of the sweeps, `--trainings-only` no pilots. `--wishes` asks instead for rates and errors by `kl.max_weight`,
trains once with the weight that the pilot finds, and writes `docs/prediction/wishes.csv`; `--latents` trains with
each number of latents that a second pilot compares, and writes `docs/prediction/latents.csv`.

The recipe is the default one but for what `SWEEPS` says, on one thread of a CPU in fp32. The rows hold for the code
that wrote them: remove `NAME.csv` to predict anew, `trained/NAME.csv` to train anew.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray

from benchmarks import case_images, prediction_images, sweep
from benchmarks.speed import known
from tasks import workspace
from tasks.processes import entry
from vae.collapse import kl_weights, linear_theory
from vae.compute import devices
from vae.compute.devices import Compute
from vae.config import loading
from vae.config.parameters import Parameters
from vae.config.preprocessing import Preprocessing
from vae.config.resolved import ResolvedParameters, resolve
from vae.config.sections import Wish
from vae.config.text import rounded
from vae.data import sources
from vae.data.images import binarised, prepare
from vae.pilot import latents
from vae.pilot import training as pilot

FOLDER, PLOT = Path("docs/prediction"), Path("docs/prediction.png")
TRAINED, WISHES_TABLE, LATENTS_TABLE = FOLDER / "trained", FOLDER / "wishes.csv", FOLDER / "latents.csv"

WEIGHTS = 8
VALID = TEST = 0.1  # of the images
COMPUTE = Compute(torch.device("cpu"), "fp32", threads=1)

Images = NDArray[np.uint8]

# From close to collapse to about a calibrated weight: rates in nats, root mean squared errors of a pixel in [0, 1].
WISHES: dict[str, dict[str, list[float]]] = {
    "digits-optimal": {"rate": [3, 8, 15, 30, 45], "rmse": [0.18, 0.15, 0.12, 0.09, 0.07]},
    "leaves-optimal": {"rate": [5, 15, 40, 90, 150], "rmse": [0.14, 0.12, 0.1, 0.08, 0.075]},
}
WISHED = {"rate": "kl", "rmse": "rmse"}
LATENTS = ("digits-optimal", "mnist-bernoulli", "leaves-optimal")


@dataclass(frozen=True)
class Sweep:
    """Images and parameters; what is not said is the default.

    Attributes:
        make: the images, uint8 (N, H, W, C); None: those of `data.source`.
        given: whether the user gives `data.path`, by an option of the folder's name.
        most: how many images are taken.
        block: images that stay in one split, as the neighbours in a sequence should.
    """

    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    make: Callable[[], Images] | None = None
    given: str | None = None
    most: int | None = None
    block: int = 1


_mnist = partial(
    Sweep, model={"latent_dim": 16, "widths": [16, 32]}, train={"epochs": 8}, given="mnist", most=10_000
)  # fmt: skip
_leaves = partial(
    Sweep,
    {"source": "folder", "image_size": 32, "channels": 3, "augment": "flip"},
    {"latent_dim": 64, "widths": [32, 64, 128]},
    train={"epochs": 20, "batch_size": 32},
    given="leaves",
)

SWEEPS = {
    "digits-fixed": Sweep(objective={"sigma": 0.15}),
    "digits-optimal": Sweep(),
    "mnist-mean": _mnist({"source": "idx", "image_size": 28}, objective={"reduction": "mean"}),
    "mnist-bernoulli": _mnist(
        {"source": "idx", "image_size": 28, "binarise": "dynamic"}, objective={"likelihood": "bernoulli"}
    ),
    "leaves-mean": _leaves(objective={"reduction": "mean"}),
    "leaves-optimal": _leaves(),
    # Held out: no choice in this project was made on the following. A training takes 10 to 25 s on one core.
    "photos": Sweep(
        {"source": "npy", "image_size": 32, "channels": 3},
        {"latent_dim": 64, "widths": [32, 64, 128]},
        train={"epochs": 10, "batch_size": 32},
        make=partial(prediction_images.photos, 2500),
    ),
    "faces": Sweep(
        {"source": "npy", "image_size": [28, 20]},
        {"latent_dim": 16, "widths": [16, 32]},
        {"sigma": 0.1},
        {"epochs": 15},
        make=partial(case_images.faces, 4000),
        block=100,
    ),
    "characters": Sweep(
        {"source": "npy", "image_size": 28},
        {"latent_dim": 24, "widths": [16, 32]},
        {"likelihood": "bernoulli"},
        {"epochs": 15},
        make=partial(prediction_images.characters, 5000),
    ),
    "shapes": Sweep(
        {"source": "npy", "image_size": 24},
        {"latent_dim": 12, "widths": [16, 32]},
        train={"epochs": 25},
        make=partial(prediction_images.shapes, 3000),
    ),
}


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SWEEPS)} (default: all); repeat for several")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="pilots and sweeps of each image set")] = 3,
    mnist: Annotated[Path | None, typer.Option(envvar="MNIST", help="the folder of MNIST's four idx files")] = None,
    leaves: Annotated[
        Path | None, typer.Option(envvar="LEAVES", help="a folder of photos, in folders by class")
    ] = None,
    trainings_only: Annotated[bool, typer.Option("--trainings-only", help="no pilots and no tables")] = False,
    wishes: Annotated[bool, typer.Option("--wishes", help="no sweeps: rates and errors that are asked for")] = False,
    latent_dims: Annotated[bool, typer.Option("--latents", help="no sweeps: numbers of latents")] = False,
) -> None:
    """Measure how good the prediction is on ten image sets."""
    devices.set_up(COMPUTE, deterministic=True)
    paths = {"mnist": mnist, "leaves": leaves}
    if wishes or latent_dims:
        table, names, measure = (WISHES_TABLE, WISHES, asked) if wishes else (LATENTS_TABLE, LATENTS, numbered)
        rows = sweep.read(table, sweep.MEASURED).to_dict("records") if table.exists() else []
        for name in names:
            path = paths[given] if (given := SWEEPS[name].given) else None
            if path or not given:
                rows = measure(name, path, rows)
        print("\n".join(wishes_markdown(rows) if wishes else latents_markdown(rows)))
        return
    tables = {}
    for name in only or SWEEPS:
        chosen: Sweep = known(name, SWEEPS)
        path = paths[chosen.given] if chosen.given else None
        if chosen.given and path is None:
            print(f"{name}: skipped; give --{chosen.given} PATH", flush=True)
            continue
        tables[name] = swept(name, chosen, path, seeds, trainings_only)
    if tables and not trainings_only:
        print("\n".join(markdown(tables)))
        PLOT.parent.mkdir(exist_ok=True)
        sweep.plot(tables).savefig(PLOT, dpi=100, metadata={"Software": None})


def swept(name: str, chosen: Sweep, path: Path | None, seeds: int, trainings_only: bool = False) -> pd.DataFrame:
    """A row per seed and weight, in ascending order; those that the files have are not measured again."""
    user, train_images, valid_images = loaded(chosen, path)
    p = resolve(user, user.train.steps_per_epoch(len(train_images)))
    spectrum = linear_theory.spectrum_for(p, train_images)
    weights: list[float] = rounded(sweep.weights(p, spectrum, WEIGHTS))  # the same on all machines
    trained = Rows(TRAINED / f"{name}.csv", sweep.MEASURED)
    compared = Rows(FOLDER / f"{name}.csv", sweep.COMPARED)
    for seed in range(seeds):
        seeded: ResolvedParameters = p.model_copy(update={"seed": seed})
        for w in trained.missing(seed, weights):
            print(f"{name}, seed {seed}: weight {w:.3g}", flush=True)
            trained.add(sweep.measured(seeded, w, train_images, valid_images, COMPUTE))
        missing = compared.missing(seed, weights)
        if trainings_only or not missing:
            continue
        print(f"{name}, seed {seed}: a pilot", flush=True)
        learnt = pilot.learn(seeded, spectrum, train_images, COMPUTE)
        curve = spectrum if learnt is None else learnt.curve
        rows = [row for row in trained.rows if row["seed"] == seed and row["kl_weight"] in missing]
        compared.add(*(sweep.compared(seeded, row, spectrum, curve) for row in rows))
    asked = trained.rows if trainings_only else compared.rows
    return pd.DataFrame([row for row in asked if row["seed"] < seeds and row["kl_weight"] in weights])


class Rows:
    """A table in a file, by seed and weight in ascending order."""

    def __init__(self, path: Path, columns: Collection[str]) -> None:
        self.path = path
        self.rows: list[dict[Any, Any]] = sweep.read(path, columns).to_dict("records") if path.exists() else []

    def missing(self, seed: int, weights: list[float]) -> list[float]:
        return [w for w in weights if (seed, w) not in {(row["seed"], row["kl_weight"]) for row in self.rows}]

    def add(self, *rows: dict[str, Any]) -> None:
        self.rows = sorted([*self.rows, *rows], key=lambda row: (row["seed"], row["kl_weight"]))
        workspace.write(self.path, pd.DataFrame(self.rows).to_csv(index=False))


def parameters_of(chosen: Sweep, path: Path | None) -> Parameters:
    values = {
        "data": chosen.data | ({"path": str(path)} if path else {}),
        "model": chosen.model,
        "objective": chosen.objective,
        "train": {"device": "cpu", "precision": "fp32", "compile": False} | chosen.train,
    }
    return loading.parse(values, "the sweep's parameters")


def loaded(chosen: Sweep, path: Path | None) -> tuple[Parameters, Images, Images]:
    user = parameters_of(chosen, path)
    return user, *splits(chosen, user)


def splits(chosen: Sweep, p: Parameters) -> tuple[Images, Images]:
    """Training and validation images, by a fixed permutation of the blocks; the test split is not needed."""
    images = chosen.make() if chosen.make else stored(p, chosen.most)
    blocks = len(images) // chosen.block
    order = np.random.default_rng(0).permutation(blocks)
    valid, test = int(VALID * blocks), int(TEST * blocks)
    numbers = np.arange(blocks * chosen.block).reshape(blocks, chosen.block)
    train_images = images[numbers[order[valid + test :]].flatten()]
    valid_images = images[numbers[order[:valid]].flatten()]
    preprocessing = Preprocessing.of(p)
    return (
        np.stack([binarised(image, preprocessing, training=True) for image in train_images]),
        np.stack([binarised(image, preprocessing) for image in valid_images]),
    )


def stored(p: Parameters, most: int | None) -> Images:
    """The first images of `data.source`, but for those of a validation or test split of its own."""
    items = [item for item in sources.find(p.data) if item.split in (None, "train")][:most]
    return np.stack([prepare(item.load(), Preprocessing.of(p)).pixels for item in items])


def asked(name: str, path: Path | None, rows: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    """These rows and the wishes of one image set that they lack."""
    done = {(row["images"], row["asked"], row["wish"]) for row in rows}
    missing = [(by, w) for by, ws in WISHES[name].items() for w in ws if (name, by, w) not in done]
    if not missing:
        return rows
    user, train_images, valid_images = loaded(SWEEPS[name], path)
    spectrum = linear_theory.spectrum_for(user, train_images)
    learnt = pilot.learn(user, spectrum, train_images, COMPUTE)
    assert learnt is not None
    for by, value in missing:
        wished = user.model_copy(update={"kl": user.kl.model_copy(update={"max_weight": Wish(**{by: value})})})
        weight = kl_weights.resolved(wished, learnt.curve)
        p = resolve(wished, user.train.steps_per_epoch(len(train_images)), weight)
        row = sweep.measured(p, weight, train_images, valid_images, COMPUTE)
        rows = [*rows, {"images": name, "asked": by, "wish": value, **row}]
        workspace.write(WISHES_TABLE, pd.DataFrame(rows).to_csv(index=False))
    return rows


def wishes_markdown(rows: list[dict[Any, Any]]) -> list[str]:
    lines = ["| images | asked | KL weight | measured | off | on the training split |", "|" + " --- |" * 6]
    for row in rows:
        column = WISHED[row["asked"]]
        measured, train = row[column], row[f"train_{column}"]
        lines.append(
            f"| {row['images']} | {row['asked']} {row['wish']:g} | {row['kl_weight']:.3g} | {measured:.3g} "
            f"| {measured / row['wish'] - 1:+.0%} | {train:.3g} ({train / row['wish'] - 1:+.0%}) |"
        )
    return lines


def numbered(name: str, path: Path | None, rows: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    """These rows and the numbers of latents of one image set that they lack, by the ELBO (a KL weight of 1)."""
    user, train_images, valid_images = loaded(SWEEPS[name], path)
    done = {row["latent_dim"] for row in rows if row["images"] == name}
    if done >= set(latents.tried(user, len(train_images))):
        return rows
    for predicted in latents.compared(user, 1.0, latents.learn(user, train_images, COMPUTE)):
        if (number := predicted.latent_dim) in done:
            continue
        print(f"{name}: {number} latents", flush=True)
        p = resolve(latents.with_latents(user, number), user.train.steps_per_epoch(len(train_images)), 1.0)
        row = sweep.measured(p, 1.0, train_images, valid_images, COMPUTE)
        told = {"images": name, "latent_dim": number, "predicted_kl": predicted.rate, "predicted_gain": predicted.gain}
        rows = [*rows, {**told, **row}]
        workspace.write(LATENTS_TABLE, pd.DataFrame(rows).to_csv(index=False))
    return rows


def latents_markdown(rows: list[dict[Any, Any]]) -> list[str]:
    """Gains in nats of the ELBO over that of `model.latent_dim`."""
    lines = ["| images | latents | predicted KL | measured KL | predicted gain | measured gain |", "|" + " --- |" * 6]
    for name, of_set in pd.DataFrame(rows).groupby("images", sort=False):
        own = of_set[of_set["latent_dim"] == parameters_of(SWEEPS[str(name)], Path("x")).model.latent_dim].iloc[0]
        lines += [
            f"| {name} | {row.latent_dim} | {row.predicted_kl:.3g} | {row.kl:.3g} "
            f"| {row.predicted_gain - own['predicted_gain']:+.0f} | {row.elbo - own['elbo']:+.0f} |"
            for row in of_set.itertuples()
        ]
    return lines


def markdown(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The rows of each sweep, then how good the predictions are on all."""
    lines = [line for name, table in tables.items() for line in ("", f"## {name}", "", *sweep.report(table))]
    lines += ["", "## All sweeps", "", f"| sweep | prediction {sweep.SUMMARY}", "|" + " --- |" * 8]
    for name, table in tables.items():
        lines += [f"| {name} | {by} | {sweep.summary(table, by).cells()} |" for by in sweep.PREDICTORS]
    return lines


if __name__ == "__main__":
    entry.run(lambda: typer.run(main))
