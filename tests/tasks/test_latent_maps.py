"""A model whose latents are a map, through all stages and commands: files, verdict, report, encoding, serving."""

import io
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import vae
from helpers.stages import run_train, write_params
from helpers.trainings import CPU, blobs
from PIL import Image

from tasks import evaluate, monitor, preflight, workspace
from tasks.cli import apply, reading
from tasks.tracking.served_model import ServedVAE
from vae.config.constants import SPLITS
from vae.config.errors import InputError
from vae.inference import generate, tiled
from vae.metrics.measurement import encode, measure
from vae.models import saved
from vae.pilot import training
from vae.priors.mixture import Mixture
from vae.report import page

CHANNELS, FACTOR = 3, 4
MAP: dict[str, Any] = {
    "model.architecture": "residual", "model.latent_dim": 16, "model.latent_shape": [2, 2, CHANNELS],
    "model.widths": [6, 8], "preflight.pilot": True,
}  # fmt: skip


@pytest.fixture
def place(empty_workspace: Path, new_store: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    Path("mlflow.db").write_bytes(new_store)
    monkeypatch.setattr(training, "STEPS", 150)
    monkeypatch.setattr(preflight.checkpoint_folder, "of_pilot", lambda *_: nullcontext())
    write_params(MAP)
    rows = []
    for seed, split in enumerate(SPLITS):
        np.save(workspace.images(split), blobs(96, seed))
        rows += [
            {"path": f"{i}.png", "split": split, "label": "ab"[i % 2], "index": i, "status": "ok", "reason": None}
            for i in range(96)
        ]
    pd.DataFrame(rows).to_parquet(workspace.MANIFEST)
    workspace.write_json(workspace.VALIDATION, {"passed": True, "rules": []})
    return empty_workspace


def test_the_stages_count_channels_and_the_report_says_so(place: Path) -> None:
    preflight.main()
    foreseen = workspace.read_json(workspace.PREFLIGHT)
    assert foreseen["predicted_by"] == "the pilot" and foreseen["predicted_kl"] > 0 and foreseen["kl_per_latent"] == []
    run_train()
    monitor.main()

    model = saved.load(workspace.MODEL)
    assert model.config.latent_mean == pytest.approx([0] * CHANNELS, abs=1e-3)
    assert model.config.latent_std == pytest.approx([1] * CHANNELS, rel=1e-3)
    assert isinstance(model.prior, Mixture) and (workspace.MODEL / "prior.safetensors").exists()
    assert list(pd.read_csv(workspace.KL_PER_LATENT)) == ["epoch", "z0", "z1", "z2"]
    found = workspace.read_json(workspace.MONITOR)
    valid = measure(model.model, np.load(workspace.images("valid")), model.likelihood, CPU, seed=0)
    assert found["latents"] == len(found["kl_per_latent"]) == CHANNELS
    assert sum(found["kl_per_latent"]) == pytest.approx(found["kl"], rel=1e-4) == pytest.approx(valid.rate, rel=1e-4)

    facts, table = evaluate.gather(workspace.load_parameters(), model, CPU, found)
    assert sorted(table["latent"]) == list(range(CHANNELS))
    text = page.html(facts)
    assert "2×2×3 = 12 latents" in text and f" of {CHANNELS}" in text and "channel, sorted" in text
    assert facts.metrics["test"]["probe_accuracy"] is not None

    encoding_commands(place)
    served(model)


def encoding_commands(place: Path) -> None:
    """Maps as .npy with the rows' paths beside it, traversals of channels, samples."""
    Path("photos").mkdir()
    images = np.load(workspace.images("test"))[:5]
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(f"photos/{number}.png")
    assert vae("encode", "photos", "maps.npy").exit_code == 0
    model = saved.load(workspace.MODEL)
    maps = np.load("maps.npy")
    assert maps.shape == (5, 2, CHANNELS, 2, 2) and maps.dtype == np.float32
    for part, expected in zip(maps.swapaxes(0, 1), encode(model.model, images, CPU), strict=True):
        np.testing.assert_allclose(part.reshape(5, -1), expected, atol=1e-6)
    assert vae("encode", "photos", "--full-size").exit_code == 0
    assert len(list(Path("latents").glob("*.npy"))) == 5 and not Path("latents.parquet").exists()
    assert pd.read_csv("maps.npy.csv")["path"].tolist() == [f"{n}.png" for n in range(5)]
    assert vae("encode", "photos", "table.parquet").exit_code == 0
    np.testing.assert_array_equal(np.stack(pd.read_parquet("table.parquet")["mu"]), maps[:, 0].reshape(5, -1))

    assert vae("traverse", "photos/0.png", "rows.npy", "--latents", "2,0", "--steps", 3).exit_code == 0
    rows = np.load("rows.npy").reshape(2, 3, 8, 8, 1)
    mu, _ = encode(model.model, images[:1], CPU)
    z = mu.reshape(CHANNELS, -1).copy()
    z[2] = -3
    expected = generate.decoded(model.model, model.likelihood, torch.from_numpy(z.reshape(1, -1)), CPU)
    np.testing.assert_allclose(rows[0, 0], (expected[0].clip(0, 1) * 255).round(), atol=1)
    done = vae("traverse", "photos/0.png", "rows.npy", "--latents", "3")
    assert done.exit_code != 0 and "from 0 to 2" in done.stderr
    in_own_size(model)
    assert vae("sample", "samples.npy", "--count", 4).exit_code == 0 and np.load("samples.npy").shape == (4, 8, 8, 1)
    assert vae("score", "photos", "--to", "scores.csv").exit_code == 0 and len(pd.read_csv("scores.csv")) == 5


def in_own_size(model: saved.Saved) -> None:
    Path("large/a").mkdir(parents=True)
    random = np.random.default_rng(0)
    sizes = {"a/wide": (9, 30), "a/tall": (40, 8)}
    pixels = {name: random.integers(0, 256, size, dtype=np.uint8) for name, size in sizes.items()}
    for name, image in pixels.items():
        Image.fromarray(image).save(f"large/{name}.png")
    assert vae("encode", "large", "own", "--full-size").exit_code == 0
    assert vae("reconstruct", "large", "copies", "--full-size").exit_code == 0
    for name, (height, width) in sizes.items():
        assert np.load(f"own/{name}.png.npy").shape == (2, CHANNELS, -(-height // FACTOR), -(-width // FACTOR))
        copy = np.asarray(Image.open(f"copies/{name}.png.png"))
        expected = tiled.reconstruct(model.model, pixels[name][..., None], model.likelihood, CPU)
        np.testing.assert_array_equal(copy, expected[..., 0])


def served(model: saved.Saved) -> None:
    server = ServedVAE()
    server.load_context(SimpleNamespace(artifacts={"vae": str(workspace.MODEL)}))
    images = np.load(workspace.images("test"))[:2]
    answer = server.predict(None, images, {"task": "encode"})
    assert answer.shape == (2, 2, CHANNELS, 2, 2)
    np.testing.assert_allclose(answer[:, 0].reshape(2, -1), encode(model.model, images, CPU)[0], atol=1e-6)


def test_maps_of_a_vector_of_latents_are_refused(place: Path) -> None:
    write_params()
    run_train()
    model, buffer = saved.load(workspace.MODEL), io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "png")
    Path("one.png").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"latent_shape"):
        apply.encode(model, reading.reading(Path("one.png"), model), Path("maps.npy"), CPU)
    for command in ("encode", "reconstruct"):
        done = vae(command, "one.png", "out", "--full-size")
        assert done.exit_code != 0 and "model.latent_shape" in done.stderr
