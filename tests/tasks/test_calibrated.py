"""What every stage resolves in the same way: a calibrated KL weight, and a ramp in steps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.parameters import parse
from helpers.stages import LATENTS, write_params
from helpers.trainings import TRAIN, VALID

from tasks import monitor, preflight, workspace
from tasks.processes import checkpoint_folder
from vae.collapse import kl_weights, linear_theory
from vae.config import loading
from vae.config.errors import InputError
from vae.config.resolved import RAMP
from vae.pilot import training

STEPS_PER_EPOCH = 4  # 70 images in batches of 16


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    workspace.IMAGES.mkdir(parents=True)
    for split, images in (("train", TRAIN), ("valid", VALID)):
        np.save(workspace.images(split), images)
    return tmp_path


@pytest.mark.parametrize(
    "objective",
    [
        {"objective.sigma": "optimal", "objective.reduction": "mean"},
        {"objective.sigma": 0.2},
        {"objective.sigma": "optimal", "objective.likelihood": "bernoulli"},
    ],
)
def test_the_weight_is_the_one_that_preflight_finds(folder: Path, objective: dict[str, Any]) -> None:
    write_params({**objective, "kl.max_weight": "calibrated"})
    with pytest.raises(InputError, match=r"preflight\.json does not exist"):
        workspace.load_parameters()
    preflight.main()
    p, raw = workspace.load_parameters(), loading.load(workspace.PARAMS)
    assert raw.kl.max_weight == "calibrated"
    spectrum = linear_theory.spectrum(TRAIN, LATENTS, bernoulli=p.objective.likelihood == "bernoulli")
    assert p.kl.max_weight == pytest.approx(kl_weights.of_beta(raw, spectrum), rel=1e-5)
    found = workspace.read_json(workspace.PREFLIGHT)
    assert found["kl_weight"] == p.kl.max_weight == found["calibrated_kl_weight"]


def test_a_ramp_in_steps_becomes_one_in_epochs(folder: Path) -> None:
    write_params({"kl.annealing_steps": 6, "kl.annealing_epochs": 50})
    p = workspace.load_parameters()
    assert (p.kl.annealing_epochs, p.kl.annealing_steps) == (6 / STEPS_PER_EPOCH, None)
    workspace.images("train").unlink()
    with pytest.raises(InputError, match=r"train\.npy does not exist; `dvc repro` makes it"):
        workspace.load_parameters()


@pytest.mark.parametrize("ramp", [{"kl.schedule": "linear", "kl.annealing_epochs": 10}, {"kl.schedule": "linear"}])
def test_a_remedy_of_the_ramp_unsets_one_in_steps(ramp: dict[str, Any]) -> None:
    unset = {"kl.annealing_steps": None} if "kl.annealing_epochs" in ramp else {}
    assert remedied(ramp, {"kl.annealing_steps": 60}) == ramp | unset
    assert remedied(ramp, {}) == remedied(ramp, {"train.budget": 60}) == ramp


@pytest.mark.parametrize("changes", [{"train.epochs": 80}, {"kl.max_weight": 2.0}])
def test_a_remedy_of_the_epochs_unsets_a_budget(changes: dict[str, Any]) -> None:
    unset = {"train.budget": None} if "train.epochs" in changes else {}
    assert remedied(changes, {"train.budget": 60}) == changes | unset
    assert remedied(changes, {}) == remedied(changes, {"kl.annealing_steps": 60}) == changes


def remedied(remedy: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    """What monitor recommends to whose `params.yaml` has these values."""
    model, verdict = SimpleNamespace(config=SimpleNamespace(changes={})), SimpleNamespace(remedy=remedy)
    return monitor.remedy_of(model, verdict, parse(user))  # type: ignore[arg-type]


def test_a_budget_becomes_epochs_that_training_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(workspace.images("valid"), VALID)
    write_params({"train.budget": 60.0, "train.epochs": 3, "kl.annealing_epochs": "auto"})
    monkeypatch.setattr(preflight, "epochs_within", lambda seconds, *_: int(seconds) + 17)
    preflight.main()
    assert workspace.read_json(workspace.PREFLIGHT)["epochs"] == 77
    p = workspace.load_parameters()
    assert (p.train.epochs, p.train.budget, p.kl.annealing_epochs) == (77, None, RAMP * 77)
    write_params({"train.budget": 600.0})
    with pytest.raises(InputError, match=r"preflight\.json is not of train\.budget = 600; run `dvc repro preflight`"):
        workspace.load_parameters()


def test_a_wish_becomes_the_weight_that_the_pilot_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS", 200)
    monkeypatch.setattr(checkpoint_folder, "key_of", lambda p, stage: "a")
    np.save(workspace.images("valid"), VALID)
    network = {"model.architecture": "conv", "model.widths": [6, 8], "model.batch_norm": True}  # that learns at once
    write_params({**network, "kl.max_weight": {"rate": 2.5}, "preflight.pilot": True})
    preflight.main()
    found, weight = workspace.read_json(workspace.PREFLIGHT), workspace.load_parameters().kl.max_weight
    assert (
        found["predicted_by"] == "the pilot"
        and found["linear_theory"]["collapse_kl_weight"] != found["collapse_kl_weight"]
    )
    assert found["predicted_kl"] == pytest.approx(2.5, rel=1e-3) and found["kl_weight"] == weight
    assert not list((workspace.root() / ".checkpoints").glob("pilot-a*"))
    write_params({"kl.max_weight": {"rate": 2.0}, "preflight.pilot": True})
    with pytest.raises(InputError, match=r"not of kl\.max_weight = \{rate: 2\}; run `dvc repro preflight`"):
        workspace.load_parameters()
