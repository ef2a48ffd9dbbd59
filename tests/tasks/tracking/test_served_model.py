"""`mlflow models serve`, asked over HTTP as another program would."""

import base64
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from helpers.commands import PREPROCESSING, register, write_model
from helpers.workspaces import free_ports, stand_in, wait_for
from PIL import Image

from tasks import workspace
from tasks.cli import apply, reading
from tasks.processes import services
from tasks.tracking import registry, store
from vae.data import images
from vae.inference import generate, grids, scoring
from vae.metrics import measurement
from vae.models import saved
from vae.priors.standard import StandardNormal


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of a tiny model that bears the alias `champion`."""
    stand_in(tmp_path, monkeypatch)
    workspace.PARAMS.write_text("seed: 0\n")
    write_model()
    register("served", 1.0)
    store.connect()[0].set_registered_model_alias("vae", registry.CHAMPION, "1")
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    environment.pop("PYTHONPATH", None)  # the code that was logged with the model has to do
    command = ["-m", "mlflow", "models", "serve", "-m", "models:/vae@champion", "--env-manager", "local"]
    with Path("serve.log").open("w") as log:
        command = [sys.executable, *command, "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None, Path("serve.log").read_text()
        return services.answers(f"{address}/ping")

    try:
        wait_for(up, 120, "the server")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, **document: Any) -> tuple[int, Any]:
    reply = requests.post(f"{address}/invocations", json=document, timeout=60)
    return reply.status_code, reply.json()["predictions"] if reply.ok else reply.text


def test_it_encodes_reconstructs_scores_and_samples_files_and_arrays_as_the_library_does(server: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 14, 3), dtype=np.uint8)
    buffers = [io.BytesIO() for _ in pixels]
    for array, buffer in zip(pixels, buffers, strict=True):
        Image.fromarray(array).save(buffer, format="png")
    files = [base64.b64encode(buffer.getvalue()).decode() for buffer in buffers]
    model = saved.load(workspace.MODEL)
    compute = model.compute()
    prepared = np.stack([images.load(array, PREPROCESSING) for array in pixels])
    mu, logvar = measurement.encode(model.model, prepared, compute)
    copies = generate.reconstruct(model.model, prepared, model.likelihood, compute)
    scores = scoring.scores(model, prepared, compute)

    for given in (pixels.tolist(), files):
        status, rows = ask(server, inputs=given)
        assert status == 200, rows
        latents = [[row[f"{part}_{j}"] for part in ("mu", "logvar") for j in range(4)] for row in rows]
        np.testing.assert_allclose(latents, np.concatenate([mu, logvar], axis=1), rtol=1e-5)
        status, rows = ask(server, inputs=given, params={"task": "score"})
        assert status == 200, rows
        np.testing.assert_allclose([row["score"] for row in rows], scores, rtol=1e-6)
        np.testing.assert_allclose([row["elbo"] for row in rows], -scores, rtol=1e-6)
        np.testing.assert_allclose([row["percentile"] for row in rows], scoring.ranks(model, scores), atol=0.1)

    assert ask(server, inputs=pixels.tolist(), params={"task": "reconstruct"}) == (200, copies.tolist())
    status, drawn = ask(server, inputs=files, params={"task": "reconstruct"})
    assert status == 200, drawn
    for text, copy in zip(drawn, copies, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), copy)

    for params, prior in (({}, model.prior), ({"prior": "standard"}, StandardNormal(model.model.latent_dim))):
        expected = grids.as_bytes(generate.samples(model, prior, 3, compute, seed=5))
        status, drawn = ask(server, inputs=[], params={"task": "sample", "count": 3, "seed": 5} | params)
        assert (status, drawn) == (200, expected.tolist())

    mixed = [{"image": files[0]}, {"image": pixels[1, :5].tolist()}]
    status, rows = ask(server, dataframe_records=mixed, params={"task": "score"})
    assert status == 200 and rows[0]["score"] == pytest.approx(scores[0], rel=1e-6)

    for document, told in (
        ({"inputs": ["?"]}, "image 0: invalid base64"),
        ({"inputs": [files[0], base64.b64encode(b"text").decode()]}, "image 1: not an image"),
        ({"inputs": [[[300]]]}, "integers from 0 to 255"),
        ({"inputs": files, "params": {"task": "dream"}}, "expected one of encode, reconstruct, score"),
        ({"inputs": [], "params": {"task": "sample", "count": 0}}, "count = 0; expected 1 to 10,000"),
        ({"inputs": [], "params": {"task": "sample", "prior": "mine"}}, "expected one of fitted, standard"),
        ({"dataframe_records": [{"a": 1, "b": 2}]}, "one column of images"),
    ):
        status, text = ask(server, **document)
        assert status == 400 and told in text

    Path("photos").mkdir()
    for number, buffer in enumerate(buffers):
        Path(f"photos/{number}.png").write_bytes(buffer.getvalue())
    source = reading.reading(Path("photos"), model)
    table = apply.score(model, source, None, compute).sort_values("path")
    np.testing.assert_allclose(table["score"], scores, rtol=1e-9)
