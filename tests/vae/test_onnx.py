"""The exported encoder, run by onnxruntime."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.commands import vae, write_model
from helpers.models import config, network
from helpers.trainings import CPU

from vae import onnx
from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.config.sections import Model
from vae.metrics import measurement
from vae.models import saved
from vae.models.saved import Saved
from vae.priors.standard import StandardNormal


def test_the_encoder_in_onnx_agrees_with_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model()
    done = vae("export", "out/encoder.onnx", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["largest_difference"] < 1e-4
    session = onnxruntime.InferenceSession("out/encoder.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3, 300):
        images = np.random.default_rng(count).integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
        expected = measurement.encode(model.model, images, model.compute())
        for got, wanted in zip(session.run(["mu", "logvar"], {"images": images}), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert told["weights.sha256"] == model.sha256
    assert Preprocessing(**json.loads(told["preprocessing"])) == Preprocessing(8, 12, 3)
    assert "RGB" in told["preprocess"] and "8×12" in told["preprocess"]


def test_maps_of_latents_stay_maps(tmp_path: Path) -> None:
    model = Model(architecture="residual", latent_shape=(2, 3, 4), widths=[4, 6], attention=True)
    made = config((3, 8, 12), model)
    onnx.export(Saved(network(made).eval(), made, StandardNormal(24), "0" * 64), tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    mu, logvar = session.run(["mu", "logvar"], {"images": np.zeros((5, 8, 12, 3), np.uint8)})
    assert mu.shape == logvar.shape == (5, 4, 2, 3)


@pytest.mark.parametrize(
    "levels",
    [
        {"architecture": "gated_mlp", "latent_dim": 5, "lower_latents": 2},
        {"architecture": "residual", "latent_dim": 15, "lower_latents": (2, 3, 2)},
    ],
)
def test_of_two_levels_both_are_in_one_vector(tmp_path: Path, levels: dict[str, Any]) -> None:
    made = config((3, 8, 12), Model(widths=[4, 6], **levels))
    model = network(made).eval()
    onnx.export(Saved(model, made, StandardNormal(made.model.latent_dim), "0" * 64), tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 12, 3), dtype=np.uint8)
    expected = measurement.encode(model, images, CPU)
    for got, wanted in zip(session.run(["mu", "logvar"], {"images": images}), expected, strict=True):
        assert got.shape == (7, made.model.latent_dim) and wanted[:, model.top :].std() > 0.01
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_an_encoder_that_does_not_agree_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "encoder.onnx"
    good.write_bytes(b"the one before")
    model = write_model()
    with torch.no_grad():
        model.model.posterior.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="differ"):
        onnx.export(dataclasses.replace(model), good)
    assert good.read_bytes() == b"the one before" and list(tmp_path.glob(".*.new")) == []
    assert saved.load(Path("models/vae")).sha256 == model.sha256
