"""The stage's report on an autoregressive decoder, from a training in a workspace of its own."""

from pathlib import Path

import numpy as np
import pytest
from helpers.stages import run_train, write_params
from helpers.trainings import CPU

from tasks import monitor, preflight, workspace
from vae.config.constants import SPLITS
from vae.metrics.free_running import free_running
from vae.metrics.mean_image import MeanImage
from vae.models import saved


def test_what_the_decoder_draws_from_z_alone_is_reported(empty_workspace: Path, new_store: bytes) -> None:
    Path("mlflow.db").write_bytes(new_store)
    write_params({"model.architecture": "autoregressive", "train.epochs": 2, "train.on_collapse": "continue"})
    for seed, split in enumerate(SPLITS):
        grey = np.random.default_rng(seed).integers(0, 256, (96, 1, 1, 1))
        np.save(workspace.images(split), np.broadcast_to(grey, (96, 8, 8, 1)).astype(np.uint8))
    preflight.main()
    run_train()
    monitor.main()
    result, model = workspace.read_json(workspace.MONITOR), saved.load(workspace.MODEL)
    train, valid = (np.load(workspace.images(split)) for split in ("train", "valid"))
    drawn = free_running(model.model, valid, MeanImage.of(train), model.likelihood, CPU, seed=0)
    assert drawn is not None
    assert result["mse_free_running"] == pytest.approx(drawn.mse, rel=1e-5)
    assert result["gain_from_z"] == pytest.approx(drawn.gain, rel=1e-5)
    assert result["mse_free_running"] != pytest.approx(result["mse_sampled"], rel=0.1)
