"""Compare training recipes at several lengths, on the ingested images: `python -m benchmarks.recipe`.

Each length is a training of its own: its learning rate falls to 0 at its end. Everything but the recipe is as
`params.yaml` has it. Results: `reports/recipe.csv`.
"""

import time
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.progress import track

from benchmarks.speed import known, usual_adam
from tasks import workspace
from tasks.processes import contention, entry
from vae.compute import devices
from vae.compute.batches import open_images
from vae.config import loading
from vae.config.parameters import Parameters
from vae.config.resolved import resolve
from vae.metrics.measurement import measure
from vae.models.flops import training_flops
from vae.training import loop

TABLE = workspace.REPORTS / "recipe.csv"

FALLING: dict[str, Any] = {"learning_rate": "auto", "learning_rate_schedule": "cosine", "warmup": 0.1}
RECIPES: dict[str, dict[str, Any]] = {
    "muon": FALLING | {"optimizer": "muon"},
    "adamw": FALLING | {"optimizer": "adamw"},
    "adam, constant": usual_adam(),
}


def main(
    epochs: Annotated[
        list[int] | None, typer.Option(min=1, help="of a training (default: 5, 10, 20, 40); repeat for several")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help=f"{' | '.join(RECIPES)} (default: all); repeat for several")
    ] = None,
) -> None:
    """Train with each recipe for each number of epochs; compare ELBO and CPU time."""
    weight = workspace.load_parameters().kl.max_weight
    p = loading.load(workspace.PARAMS)
    images = [open_images(workspace.images(split)) for split in ("train", "valid")]
    asked = [
        (name, length) for name in recipe or RECIPES if known(name, RECIPES) for length in epochs or (5, 10, 20, 40)
    ]
    rows = [trained(p, weight, name, length, *images) for name, length in track(asked, description="trainings")]
    workspace.REPORTS.mkdir(exist_ok=True)
    table = pd.DataFrame(rows)
    table.to_csv(TABLE, index=False)
    print("validation ELBO in nats per image, and CPU seconds of the training:")
    print(table.pivot(index="recipe", columns="epochs", values=["elbo", "cpu_seconds"]).to_string(float_format="%.4g"))


def trained(
    user: Parameters, weight: float, recipe: str, epochs: int, train_images: np.ndarray, valid_images: np.ndarray
) -> dict[str, Any]:
    """One training; the kept model on the validation split, its ELBO at the σ of its own error."""
    train = user.train.model_copy(update=RECIPES[recipe] | {"epochs": epochs, "budget": None})
    p = resolve(user.model_copy(update={"train": train}), user.train.steps_per_epoch(len(train_images)), weight)
    compute = devices.choose(p.train, training_flops(p), len(train_images))
    begin = time.process_time()
    with contention.coped_with(compute):
        result = loop.train(p, train_images, valid_images, compute)
    seconds = time.process_time() - begin
    valid = measure(result.model, valid_images, result.likelihood, compute, p.seed)
    return {
        "recipe": recipe,
        "epochs": epochs,
        "elbo": valid.elbo_at_own_sigma(result.likelihood, int(np.prod(valid_images.shape[1:]))),
        "kl": valid.rate,
        "mse": valid.mse,
        "active_units": valid.active_units(),
        "kept_epoch": result.kept_epoch,
        "cpu_seconds": seconds,
    }


if __name__ == "__main__":
    entry.run(lambda: typer.run(main))
