"""A workspace of tiny files to make a report from."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.models import config, network
from helpers.parameters import nested
from helpers.trainings import CPU
from ruamel.yaml import YAML

from tasks import evaluate, workspace
from vae.config import loading
from vae.config.resolved import changed, resolve
from vae.inference import grids
from vae.models import saved
from vae.pilot import pictures
from vae.report.facts import Facts
from vae.training.history import COLUMNS

COUNTS, LATENTS = {"train": 40, "valid": 12, "test": 13}, 5
NASTY_CLASS, NASTY_FILE = "<script>alert(1)</script>", '<img src=x onerror="alert(2)">\n.png'
PARAMETERS = {
    "data.source": "folder", "data.image_size": [8, 12], "data.channels": 3, "model.latent_dim": LATENTS,
    "model.widths": [4], "kl.annealing_epochs": 2, "train.epochs": 6, "train.batch_size": 8,
    "evaluate.importance_samples": 3,
}  # fmt: skip


def make_workspace(
    folder: Path,
    labelled: bool = True,
    epochs: int = 6,
    verdict: str = "healthy",
    path: str = "photos",
    prior: str = "standard",
    pilot: bool = False,
    lower: int | None = None,
) -> None:
    """Every file that evaluate reads. pilot: with the curve of one, and pictures at two points of it."""
    random = np.random.default_rng(0)
    (folder / "data/images").mkdir(parents=True)
    (folder / "reports").mkdir()
    chosen = {"data.path": path, "model.prior": prior, "model.lower_latents": lower}
    YAML().dump(nested(PARAMETERS | chosen), folder / "params.yaml")
    rows = []
    for split, count in COUNTS.items():
        np.save(folder / f"data/images/{split}.npy", random.integers(0, 256, (count, 8, 12, 3), dtype=np.uint8))
        rows += [
            {"path": f"{split}/{i}.png", "split": split, "label": (NASTY_CLASS, "$x^ _b")[i % 2] if labelled else None,
             "index": i, "status": "ok", "reason": None}
            for i in range(count)
        ]  # fmt: skip
    rows += [{"path": f"{i}{NASTY_FILE}", "status": "quarantined", "reason": "no image"} for i in range(60)]
    pd.DataFrame(rows).astype({"index": "Int64"}).to_parquet(folder / "data/manifest.parquet")

    p = loading.load(folder / "params.yaml")
    made = config(p.data.image_shape, p.model, kept_epoch=epochs)
    model = network(made)
    with torch.no_grad():
        if verdict == "collapsed":
            model.posterior.weight.zero_()
        if verdict == "diverged":
            model.posterior.weight.fill_(math.nan)
    saved.save(folder / "models/vae", model, made)
    values = 100 / np.arange(1, epochs + 1)
    history = pd.DataFrame(dict.fromkeys(COLUMNS, values))
    history["epoch"] = np.arange(1, epochs + 1)
    if verdict == "diverged":
        history.loc[epochs - 1, history.columns[3:]] = math.nan
    history.to_csv(folder / "reports/history.csv", index=False)
    latents = pd.DataFrame(random.exponential(size=(epochs, LATENTS))).add_prefix("z")
    if verdict == "diverged":
        latents.iloc[-1] = math.nan
    latents.insert(0, "epoch", history["epoch"])
    latents.to_csv(folder / "reports/kl_per_latent.csv", index=False)
    row = np.zeros((1, 8, 12, 3), np.uint8)
    sheet = pictures.sheet([row, row + 100, row + 200] if pilot else [row])
    (folder / "reports/pilot.png").write_bytes(grids.png(sheet))
    learnt = {
        "thresholds": [0.04, 0.4, 4.0], "rates": [[3.0, 2.0, 1.0, 0.2, 0.0], [1.0, 0.5, 0, 0, 0], [0.0] * 5],
        "error": [1.0, 3.0, 9.0], "likelihood": "gaussian", "pictures": [{"threshold": 0.05}, {"threshold": 1.0}],
        "model": p.model.model_dump(include={"architecture", "latent_dim", "widths", "batch_norm"}),
    }  # fmt: skip
    advice = [] if verdict == "healthy" else ["set kl.max_weight to 0.01"]
    monitor = {"summary": "All of it & more.", "reasons": ["a < b"], "recommendations": advice}
    for name, content in (
        ("monitor", {"verdict": verdict, **monitor}),
        ("preflight", {"predicted_by": "the pilot" if pilot else "linear theory", "predicted_kl": 3.5,
                       "predicted_active_units": 2, "critical_kl_weight": 32.0, "collapse_kl_weight": 20.0,
                       "pilot": learnt if pilot else None, "eigenvalues": [3.0, 2.0, 1.0, 0.5, 0.2],
                       "eigenvalue_sum": 9.0, "images": 40, "kl_per_latent": [2.5, 1.0, 0, 0, 0],
                       "warnings": ["close to the edge"]}),
        ("validation", {"passed": True, "rules": [
            {"name": "bad_file", "severity": "warning", "count": 60, "checks": "none",
             "examples": [{"file": NASTY_FILE, "split": "", "value": "no image"}]},
            {"name": "leakage", "severity": "error", "count": 0}]}),
    ):  # fmt: skip
        (folder / f"reports/{name}.json").write_text(json.dumps(content))


def gathered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Facts, pd.DataFrame]:
    """What evaluate gathers there: the facts of a report, and the table of latents."""
    monkeypatch.chdir(folder)
    model = saved.load(workspace.MODEL)
    p = changed(resolve(loading.load(workspace.PARAMS), steps_per_epoch=5), model.config.changes)
    return evaluate.gather(p, model, CPU, workspace.read_json(workspace.MONITOR))


def facts_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Facts:
    return gathered(folder, monkeypatch)[0]
