"""The comparison of recipes, on small images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from benchmarks import recipe
from tasks import workspace
from vae.config.errors import InputError

SMALL = {
    "data": {"image_size": 8}, "model": {"latent_dim": 2, "widths": [4]}, "kl": {"max_weight": 1.0},
    "train": {"batch_size": 16, "budget": 60},
}  # fmt: skip


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace.IMAGES.mkdir(parents=True)
    YAML().dump(SMALL, workspace.PARAMS)
    workspace.write_json(workspace.PREFLIGHT, {"epochs": 7, "budget": 60})
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("valid", 8)):
        np.save(workspace.images(split), random.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8))


def test_each_length_is_a_training_of_its_own(images: None, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.main(epochs=[1, 2], recipe=None)
    table = pd.read_csv(recipe.TABLE)
    assert list(zip(table["recipe"], table["epochs"], strict=True)) == [
        (name, epochs) for name in recipe.RECIPES for epochs in (1, 2)
    ]
    assert table["kept_epoch"].between(1, table["epochs"]).all()
    assert table["elbo"].nunique() == len(table), "each recipe trains another model"
    printed = capsys.readouterr().out
    assert all(name in printed for name in recipe.RECIPES)


def test_an_unknown_recipe_is_an_error(images: None) -> None:
    with pytest.raises(InputError, match="'sgd' is unknown; expected one of muon, adamw"):
        recipe.main(epochs=[1], recipe=["sgd"])
