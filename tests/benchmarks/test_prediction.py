"""The sweeps over image sets: they resume, their images are what they say, and a pilot belongs to each."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import case_images, prediction, prediction_images, sweep
from benchmarks.prediction import SWEEPS, Sweep
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.pilot import latents
from vae.pilot import training as pilot

SMALL = Sweep(
    {"source": "npy", "image_size": 8},
    {"latent_dim": 2, "widths": [4]},
    train={"epochs": 1, "batch_size": 16},
    make=lambda: prediction_images.shapes(60)[:, ::3, ::3],
)
GENERATED = {
    "photos": (2500, 32, 32, 3),
    "faces": (4000, 28, 20, 1),
    "characters": (5000, 28, 28, 1),
    "shapes": (3000, 24, 24, 1),
}


FULL_STEPS = pilot.STEPS


@pytest.fixture(autouse=True)
def _in_a_folder_with_short_pilots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pilot, "STEPS", 2)
    monkeypatch.setattr(prediction, "WEIGHTS", 6)


def test_a_killed_run_goes_on_to_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prediction.swept("whole", SMALL, None, 2)
    measured, pilots = sweep.measured, list[int]()

    def killed_at_the_last_but_one(*arguments: Any) -> dict[str, float]:
        row = measured(*arguments)
        if row["seed"] == 1 and row["kl_weight"] == whole["kl_weight"].iloc[-2]:
            raise KeyboardInterrupt
        return row

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep, "measured", killed_at_the_last_but_one)
        prediction.swept("killed", SMALL, None, 2)
    assert len(sweep.read(prediction.TRAINED / "killed.csv", sweep.MEASURED)) == 2 * prediction.WEIGHTS - 2
    assert len(sweep.read(prediction.FOLDER / "killed.csv")) == prediction.WEIGHTS

    learn = pilot.learn

    def noted(p: Parameters, *others: Any) -> pilot.Pilot | None:
        pilots.append(p.seed)
        return learn(p, *others)

    monkeypatch.setattr(pilot, "learn", noted)
    resumed = prediction.swept("killed", SMALL, None, 2)

    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    whole_file, resumed_file = ((prediction.FOLDER / f"{name}.csv").read_bytes() for name in ("whole", "killed"))
    assert resumed_file == whole_file
    trained = [(prediction.TRAINED / f"{name}.csv").read_bytes() for name in ("whole", "killed")]
    assert trained[0] == trained[1]
    assert pilots == [1]  # seed 0 was complete
    assert whole["seed"].tolist() == [0] * prediction.WEIGHTS + [1] * prediction.WEIGHTS
    first, second = (whole[whole["seed"] == seed].reset_index(drop=True) for seed in (0, 1))
    assert first["predicted_kl"].ne(second["predicted_kl"]).any()  # a pilot for each seed
    assert first["kl"].ne(second["kl"]).all() and first["linear_kl"].equals(second["linear_kl"])


def test_more_seeds_continue_a_file_and_fewer_read_a_part_of_it() -> None:
    prediction.swept("small", SMALL, None, 1)
    both = prediction.swept("small", SMALL, None, 2)
    assert both["seed"].max() == 1
    assert prediction.swept("small", SMALL, None, 1)["seed"].max() == 0
    assert len(sweep.read(prediction.FOLDER / "small.csv")) == len(both)


def test_predictions_are_made_anew_without_the_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = prediction.swept("anew", SMALL, None, 1, trainings_only=True)
    assert "predicted_kl" not in trained and not (prediction.FOLDER / "anew.csv").exists()
    monkeypatch.setattr(sweep, "measured", None)
    found = prediction.swept("anew", SMALL, None, 1)
    pd.testing.assert_frame_equal(found[trained.columns], trained, check_exact=True)
    (prediction.FOLDER / "anew.csv").unlink()
    pd.testing.assert_frame_equal(prediction.swept("anew", SMALL, None, 1), found, check_exact=True)


def test_wishes_are_asked_for_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(SWEEPS, "digits-optimal", SMALL)
    monkeypatch.setattr(prediction, "WISHES", {"digits-optimal": {"rate": [0.5], "rmse": [0.2]}})
    weights = iter([3.0, 2.0])
    monkeypatch.setattr(prediction.kl_weights, "resolved", lambda p, curve: next(weights))
    prediction.main(wishes=True)
    first = capsys.readouterr().out
    assert "| digits-optimal | rate 0.5 | 3 |" in first and "| digits-optimal | rmse 0.2 | 2 |" in first
    prediction.main(wishes=True)  # weights has no more
    assert capsys.readouterr().out == first


def test_numbers_of_latents_are_trained_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SWEEPS, "digits-optimal", SMALL)
    monkeypatch.setattr(latents, "has_died", lambda p, curve: False)  # of two steps
    prediction.main(latent_dims=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith("| digits-optimal")] == [
        "1",
        "2",
        "3",
        "4",
        "6",
        "8",
    ]
    assert any(line.startswith("| digits-optimal | 2 |") and line.endswith("| +0 | +0 |") for line in lines)
    monkeypatch.setattr(sweep, "measured", None)
    prediction.main(latent_dims=True)
    assert capsys.readouterr().out.splitlines() == [line for line in lines if line.startswith("|")]


def test_a_table_of_an_earlier_version_is_refused() -> None:
    pd.DataFrame({"kl_weight": [1.0], "predicted_kl": [2.0]}).to_csv("old.csv", index=False)
    with pytest.raises(InputError, match=r"old\.csv is of an earlier version, without kl, linear_collapse_kl_weight"):
        sweep.read(Path("old.csv"))


def test_the_command_leaves_tables_and_a_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SWEEPS, "shapes", SMALL)
    prediction.main(["shapes", "mnist-mean"], 1, None, None)
    printed = capsys.readouterr().out
    assert "mnist-mean: skipped; give --mnist PATH" in printed
    assert "| shapes | preflight |" in printed and "| shapes | linear theory |" in printed
    assert sorted(file.name for file in prediction.FOLDER.iterdir()) == ["shapes.csv", "trained"]
    assert prediction.PLOT.stat().st_size > 1000
    with pytest.raises(InputError, match="'leaves' is unknown; expected one of digits-fixed, "):
        prediction.main(["leaves"], 1, None, None)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_is_worth_a_pilot(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that `preflight.pilot: auto`, the default, would learn one."""
    chosen = SWEEPS[name]
    counts = {"digits": 1797, "mnist": 10_000, "leaves": 1753} | {n: shape[0] for n, shape in GENERATED.items()}
    p = prediction.parameters_of(chosen, None)
    monkeypatch.setattr(pilot, "STEPS", FULL_STEPS)
    assert pilot.is_asked(p, int(0.8 * counts[name.split("-")[0]]))
    assert p.train.optimizer == "muon" and p.train.precision == "fp32"


@pytest.mark.parametrize("name", GENERATED)
def test_generated_images_have_the_declared_shape(name: str) -> None:
    chosen = SWEEPS[name]
    assert isinstance(chosen.make, partial) and chosen.make.args == GENERATED[name][:1]
    p = prediction.parameters_of(chosen, None)
    images = chosen.make.func(8)
    assert images.shape == (8, *GENERATED[name][1:]) and images.dtype == np.uint8
    assert (*p.data.image_size, p.data.channels) == images.shape[1:]


@pytest.mark.parametrize("make", [prediction_images.photos, prediction_images.characters, prediction_images.shapes])
def test_generated_images_follow_from_the_seed_and_differ(make: Any) -> None:
    images = make(64)
    assert np.array_equal(images, make(64))
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64


def test_what_the_images_show() -> None:
    characters, shapes = prediction_images.characters(200), prediction_images.shapes(200)
    assert set(np.unique(characters)) == {0, 255}
    ink = (characters == 255).mean((1, 2, 3))
    assert ink.min() > 0.02 and ink.max() < 0.5
    edge = np.concatenate([shapes[:, 0], shapes[:, -1], shapes[:, :, 0], shapes[:, :, -1]], axis=1)
    assert (edge == 128).mean() > 0.99  # inside the canvas
    assert (shapes.min((1, 2, 3)) < 100).any() and (shapes.max((1, 2, 3)) > 150).any()
    assert not np.array_equal(prediction_images.photos(20), case_images.photos(32, 20))


def test_the_splits_are_fixed_disjoint_and_keep_a_sequence_in_blocks() -> None:
    numbers = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1)
    chosen = Sweep({"source": "npy", "image_size": 8}, make=lambda: numbers, block=10)
    train, valid = (split.flatten() for split in prediction.splits(chosen, prediction.parameters_of(chosen, None)))
    assert len(train) == 160 and len(valid) == 20 and not set(train) & set(valid)
    for block in [*train.reshape(-1, 10), *valid.reshape(-1, 10)]:
        assert block.tolist() == list(range(block[0], block[0] + 10)) and block[0] % 10 == 0
    again, _ = prediction.splits(chosen, prediction.parameters_of(chosen, None))
    assert np.array_equal(again.flatten(), train)


def test_a_folder_of_images_is_read_as_ingest_reads_it_and_only_validation_is_binarised() -> None:
    digits = SWEEPS["digits-optimal"]
    chosen = Sweep({"binarise": "dynamic", "image_size": 8}, objective={"likelihood": "bernoulli"}, most=100)
    grey, _ = prediction.splits(digits, prediction.parameters_of(digits, None))
    train, valid = prediction.splits(chosen, prediction.parameters_of(chosen, None))
    assert grey.shape == (1439, 16, 16, 1)
    assert train.shape == (80, 8, 8, 1) and len(np.unique(train)) > 2
    assert valid.shape == (10, 8, 8, 1) and set(np.unique(valid)) == {0, 255}
