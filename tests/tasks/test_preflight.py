"""What preflight leaves: numbers and pictures of the points along the curve."""

import io
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from helpers.stages import write_params
from helpers.trainings import TRAIN, VALID, unresolved
from PIL import Image

from tasks import preflight, workspace
from vae.collapse.linear_theory import spectrum_for
from vae.pilot import pictures, training


@pytest.mark.parametrize("pilot", [True, False])
def test_the_sheet_has_a_row_for_each_point_of_a_pilot(
    pilot: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "STEPS", 200)
    monkeypatch.setattr(preflight.checkpoint_folder, "of_pilot", lambda *_: nullcontext())
    workspace.IMAGES.mkdir(parents=True)
    for split, images in (("train", TRAIN), ("valid", VALID)):
        np.save(workspace.images(split), images)
    network = {"model.architecture": "conv", "model.widths": [6, 8], "model.batch_norm": True}  # that learns at once
    write_params({**network, "preflight.pilot": pilot, "preflight.latent_dims": pilot})
    preflight.main()
    compared = workspace.read_json(workspace.PREFLIGHT).get("latent_dims", {}).get("compared", [])
    assert [row["latent_dim"] for row in compared] == ([1, 2, 3, 4, 6, 9, 12] if pilot else [])
    points = workspace.read_json(workspace.PREFLIGHT).get("pilot", {}).get("pictures", [])
    assert len(points) == (pictures.ROWS if pilot else 0)
    assert [at["kl_weight"] for at in points] == sorted(at["kl_weight"] for at in points)
    sheet = np.asarray(Image.open(io.BytesIO(workspace.PILOT_SHEET.read_bytes())))
    tile = np.split(sheet, len(points) + 1)[0]
    shown = VALID[np.linspace(0, len(VALID) - 1, pictures.IMAGES).astype(int)]
    if pilot:  # room for the samples of the other rows
        shown = np.concatenate([shown, np.full((1 + pictures.SAMPLES, *shown.shape[1:]), 255, np.uint8)])
    np.testing.assert_array_equal(tile, pictures.sheet([shown]))
    first = workspace.PREFLIGHT_PLOT.read_bytes()
    preflight.main()
    assert workspace.PREFLIGHT_PLOT.read_bytes() == first and first.startswith(b"\x89PNG")


def test_a_pilot_that_learnt_nothing_predicts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "STEPS", 1)
    monkeypatch.setattr(preflight.checkpoint_folder, "of_pilot", lambda *_: nullcontext())
    p = unresolved()
    spectrum = spectrum_for(p, TRAIN)
    assert preflight.pilot_of(p, spectrum, TRAIN) is None and training.curve_of(p, spectrum, TRAIN) is spectrum
    autoregressive = unresolved({"model.architecture": "autoregressive"})  # whose latents may be of no use
    assert preflight.pilot_of(autoregressive, spectrum, TRAIN) is not None
