"""What every stage resolves in the same way: a calibrated KL weight, and a ramp in steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.trainings import TRAIN, params
from vae.losses.objective import Objective

from tasks import monitor, workspace
from tasks import preflight as stage
from vae.collapse import linear_theory
from vae.config import parameters
from vae.config.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    workspace.IMAGES.mkdir(parents=True)
    np.save(workspace.images("train"), TRAIN)
    return tmp_path


def write(values: dict[str, Any]) -> None:
    # JSON is YAML
    workspace.PARAMS.write_text(json.dumps(params(values).model_dump(mode="json")))


@pytest.mark.parametrize("objective", [{"reduction": "mean"}, {"sigma": 0.2}, {"likelihood": "bernoulli"}])
def test_the_weight_is_the_one_that_preflight_finds(folder: Path, objective: dict[str, Any]) -> None:
    values = {f"objective.{name}": value for name, value in objective.items()}
    write({**values, "kl.max_weight": "calibrated"})
    stage.main()
    p = workspace.load_parameters()
    known = params({**values, "kl.max_weight": 0.123})
    spectrum = linear_theory.spectrum(TRAIN, 3, bernoulli=known.objective.likelihood == "bernoulli")
    assert p.kl.weight == pytest.approx(
        linear_theory.calibrated_weight(spectrum, Objective.of(known)), rel=1e-5
    )
    assert parameters.load(workspace.PARAMS).kl.max_weight == "calibrated"
    found = workspace.read_json(workspace.PREFLIGHT)
    assert found["kl_weight"] == p.kl.weight == found["calibrated_kl_weight"]


def test_a_number_needs_no_preflight(folder: Path) -> None:
    write({"kl.max_weight": 0.25})
    assert workspace.load_parameters().kl.weight == 0.25


def test_a_ramp_in_steps_becomes_one_in_epochs(folder: Path) -> None:
    write(
        {"kl.annealing_steps": 6, "kl.annealing_epochs": 50}
    )  # 70 images in batches of 16: 4 steps an epoch
    p = workspace.load_parameters()
    assert (p.kl.annealing_epochs, p.kl.annealing_steps) == (1.5, None)
    workspace.images("train").unlink()
    with pytest.raises(InputError, match=r"train\.npy does not exist; `dvc repro ingest`"):
        workspace.load_parameters()


def test_advice_about_the_ramp_counts_only_without_one_in_steps() -> None:
    advice = ["set kl.schedule to linear", "set kl.annealing_epochs to 10"]
    in_steps, in_epochs = params({"kl.annealing_steps": 9}).kl, params().kl
    assert monitor.followable(advice, in_steps) == [*advice, "set kl.annealing_steps to null"]
    assert monitor.followable(advice, in_epochs) == advice
    assert monitor.followable(advice[:1], in_steps) == advice[:1]


def test_before_preflight_it_is_told_what_is_missing(folder: Path) -> None:
    write({"kl.max_weight": "calibrated"})
    with pytest.raises(InputError, match=r"preflight\.json does not exist"):
        workspace.load_parameters()


def test_a_controller_needs_a_bound_that_is_a_number() -> None:
    with pytest.raises(InputError, match="target_kl needs a number for max_weight"):
        params({"kl.max_weight": "calibrated", "kl.target_kl": 5.0})
