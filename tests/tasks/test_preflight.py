"""What preflight leaves: numbers and pictures of the points along the curve."""

import io
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from helpers.stages import write_params
from helpers.trainings import TRAIN, VALID
from PIL import Image

from tasks import preflight, workspace
from vae.pilot import pictures, training


@pytest.mark.parametrize("pilot", [True, False])
def test_the_sheet_has_a_row_for_each_point_of_a_pilot(
    pilot: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "STEPS", 3)
    monkeypatch.setattr(preflight.checkpoint_folder, "of_pilot", lambda *_: nullcontext())
    workspace.IMAGES.mkdir(parents=True)
    for split, images in (("train", TRAIN), ("valid", VALID)):
        np.save(workspace.images(split), images)
    write_params({"preflight.pilot": pilot})
    preflight.main()
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
