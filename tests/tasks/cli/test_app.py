"""The command `vae`, on a tiny model: what lands on standard output, in files, and in the exit code."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.commands import PREPROCESSING, picture, register, vae, write_model
from helpers.priors import gaussian
from helpers.project import PROJECT
from helpers.workspaces import stand_in
from PIL import Image

from flows import runs as runs_of_the_flow
from tasks import workspace
from tasks.cli import apply, comparison, doctor, named_run, reading
from tasks.cli.app import app
from tasks.cli.console import LOOK
from tasks.processes import services
from tasks.processes.entry import INPUT_ERROR
from vae.data import images
from vae.inference import generate, grids, scoring
from vae.metrics import measurement
from vae.models import saved
from vae.priors.standard import StandardNormal


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a model and photos of two classes, one file of which is broken."""
    folder = tmp_path_factory.mktemp("wörk")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(folder, patch)
        Path("params.yaml").write_text("seed: 0\n")
        write_model()
        for number in range(6):
            picture(Path(f"photos/{'good' if number < 4 else 'bad'}/{number}.png"), number)
        Path("photos/good/broken.jpg").write_bytes(b"no image")
        Path("photos/good/.DS_Store").write_bytes(b"litter")
        yield folder


def expected() -> np.ndarray:
    """The photos as ingest would store them, in the order of their paths."""
    files = sorted(Path("photos").rglob("*.png"))
    return np.stack([images.load(file, PREPROCESSING) for file in files])


def test_help_answers_at_once_because_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "mlflow", "numpy", "pandas", "pydantic")
    listed = f"import sys; from tasks.cli import app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", listed], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    help_text = vae("--help")
    assert help_text.exit_code == 0 and "Exit codes" in help_text.stdout
    for command in app.registered_commands:
        assert command.callback is not None
        one = vae(command.callback.__name__, "--help")
        assert one.exit_code == 0 and "Exit codes" in one.stdout


def test_encode_writes_what_the_encoder_says_and_tells_what_it_skipped(place: Path) -> None:
    done = vae("encode", "photos", "out/latents.parquet", "--json")
    assert done.exit_code == LOOK, "a file was skipped"
    told = json.loads(done.stdout)
    assert told["images"] == 6 and told["output"] == "out/latents.parquet"
    assert [row["path"] for row in told["skipped"]] == ["good/broken.jpg"]
    assert "broken.jpg" in done.stderr and "1 of 7 files were skipped" in done.stderr
    table = pd.read_parquet("out/latents.parquet")
    assert list(table["path"]) == [*(f"bad/{n}.png" for n in (4, 5)), *(f"good/{n}.png" for n in range(4))]
    assert list(table["label"]) == ["bad"] * 2 + ["good"] * 4
    model = saved.load(workspace.MODEL)
    mu, logvar = measurement.encode(model.model, expected(), model.compute())
    np.testing.assert_array_equal(np.stack(table["mu"]), mu)
    np.testing.assert_array_equal(np.stack(table["logvar"]), logvar)
    assert not list(Path("out").glob(".*")), "no partial file is left"


def test_what_is_read_is_not_overwritten(place: Path) -> None:
    np.save("photos.npy", expected())
    before = Path("photos.npy").read_bytes(), Path("photos/bad/4.png").read_bytes()
    for words in (("encode", "photos.npy", "./photos.npy"), ("traverse", "photos/bad/4.png", "photos/bad/4.png")):
        done = vae(*words)
        assert done.exit_code == INPUT_ERROR and "is what is read" in done.stderr
    assert (Path("photos.npy").read_bytes(), Path("photos/bad/4.png").read_bytes()) == before


def test_batches_are_small_and_complete(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH", 2)
    source = reading.reading(Path("photos"), saved.load(workspace.MODEL))
    parts = list(source.batches())
    assert all(len(items) == len(pixels) <= 2 for items, pixels in parts)
    np.testing.assert_array_equal(np.concatenate([pixels for _, pixels in parts]), expected())


def test_score_is_the_librarys_most_unusual_first_with_the_kept_threshold(place: Path) -> None:
    done = vae("score", "photos")
    assert done.exit_code == LOOK
    table = pd.read_csv(io.StringIO(done.stdout)).set_index("path")
    assert table["score"].is_monotonic_decreasing
    model = saved.load(workspace.MODEL)
    scores = scoring.scores(model, expected(), model.compute())
    paths = [f"bad/{n}.png" for n in (4, 5)] + [f"good/{n}.png" for n in range(4)]
    np.testing.assert_allclose(table.loc[paths, "score"], scores, rtol=1e-9)
    limit = scoring.threshold(model, 99)
    assert limit is not None
    assert list(table["unusual"]) == list(table["score"] > limit)
    assert f"{limit:.6g}" in done.stderr and "99th percentile of the 30 validation images" in done.stderr

    middle = float(np.median(scores))
    given = vae("score", "photos", "--threshold", middle, "--json")
    told = json.loads(given.stdout)
    assert (told["threshold"], told["threshold_from"]) == (middle, "given")
    assert sum(row["unusual"] for row in told["scores"]) == 3


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_score_into_a_file_leaves_standard_output_empty(place: Path, name: str) -> None:
    done = vae("score", "photos/bad", "--to", name)
    assert (done.exit_code, done.stdout) == (0, "")
    table = pd.read_csv(name) if name.endswith("csv") else pd.read_parquet(name)
    assert sorted(table["path"]) == ["4.png", "5.png"]


def test_unseen_leaves_out_and_usual_gives_the_auroc(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    shas = {n: hashlib.sha256(Path(f"photos/good/{n}.png").read_bytes()).hexdigest() for n in range(4)}
    manifest = pd.DataFrame({"split": ["train", "valid", "test", None], "sha256": [shas[0], shas[1], shas[2], "0"]})
    workspace.MANIFEST.parent.mkdir(exist_ok=True)
    manifest.to_parquet(workspace.MANIFEST)
    done = vae("score", "photos", "--unseen", "--usual", "good", "--json")
    told = json.loads(done.stdout)
    scores = {row["path"]: row["score"] for row in told["scores"]}
    assert sorted(scores) == ["bad/4.png", "bad/5.png", "good/2.png", "good/3.png"]
    assert told["left_out"] == 2
    pairs = [(scores[f"bad/{b}.png"], scores[f"good/{g}.png"]) for b in (4, 5) for g in (2, 3)]
    assert told["auroc"] == {"all others": sum(bad > good for bad, good in pairs) / 4}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    other = place / "other"
    write_model(other, seed=1)
    vae("score", "photos", "--unseen", "-m", other)
    assert any(message.startswith("--unseen uses") for message in caplog.messages)
    nobody = vae("score", "photos", "--usual", "nobody")
    assert nobody.exit_code == INPUT_ERROR and "'bad', 'good'" in nobody.stderr


def test_reconstruct_draws_each_image_beside_itself(place: Path) -> None:
    assert vae("reconstruct", "photos", "copies").exit_code == LOOK
    assert vae("reconstruct", "photos", "pairs", "--pairs").exit_code == LOOK
    model = saved.load(workspace.MODEL)
    originals = expected()
    copies = generate.reconstruct(model.model, originals, model.likelihood, model.compute())
    np.testing.assert_array_equal(np.asarray(Image.open("copies/bad/4.png.png")), copies[0])
    pair = np.concatenate([originals[5], copies[5]], axis=1)
    np.testing.assert_array_equal(np.asarray(Image.open("pairs/good/3.png.png")), pair)


def test_sample_and_traverse_draw_what_they_are_asked_for(place: Path) -> None:
    assert vae("sample", "s.npy", "--count", 5, "--seed", 3).exit_code == 0
    assert vae("sample", "t.npy", "--count", 5, "--seed", 4).exit_code == 0
    drawn, others = np.load("s.npy"), np.load("t.npy")
    assert (drawn.shape, drawn.dtype) == ((5, 8, 12, 3), np.uint8) and (drawn != others).any()
    assert vae("sample", "s.png", "--count", 5).exit_code == 0
    assert Image.open("s.png").width > 5 * 12

    write_model(place / "fitted", prior=gaussian(latents=4))
    answers = {
        name: json.loads(vae("sample", f"{name}.npy", "--count", 5, "-m", "./fitted", *options, "--json").stdout)
        for name, options in {"plain": (), "fitted": ("--prior", "fitted"), "standard": ("--prior", "standard")}.items()
    }
    names = {name: answer["prior"] for name, answer in answers.items()}
    assert names == {"plain": "Gaussian", "fitted": "Gaussian", "standard": "N(0, I)"}
    read = saved.load(place / "fitted")
    for name, prior in (("plain", read.prior), ("fitted", read.prior), ("standard", StandardNormal(4))):
        pictures = grids.as_bytes(generate.samples(read, prior, 5, read.compute(), seed=0))
        np.testing.assert_array_equal(np.load(f"{name}.npy"), pictures)
    assert (np.load("fitted.npy") != np.load("standard.npy")).any()
    assert vae("sample", "s.png", "--prior", "other").exit_code == INPUT_ERROR

    done = vae("traverse", "photos/bad/4.png", "w.npy", "--latents", "3,0", "--steps", 5, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["values"] == [-3, -1.5, 0, 1.5, 3]
    assert np.load("w.npy").shape == (10, 8, 12, 3)
    chosen = json.loads(vae("traverse", "photos/bad/4.png", "w.png", "--top", 2, "--json").stdout)["latents"]
    model = saved.load(workspace.MODEL)
    mu, logvar = measurement.encode(model.model, expected()[:1], model.compute())
    kl = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar)[0]
    assert chosen == np.argsort(-kl)[:2].tolist()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("encode nowhere", "'nowhere' does not exist"),
        ("encode photos -m ./nowhere", "holds no model"),
        ("encode photos/good/broken.jpg", "none of 1 files can be used"),
        ("encode photos params.yaml/x.parquet", "cannot write"),
        ("encode photos --device cuda:7", "device = cuda:7"),
        ("sample picture.jpg", ".png or .npy"),
        ("encode photos latents.csv", ".parquet or .npy"),
        ("encode photos maps.npy --full-size", "the output is a folder; leave .npy out"),
        ("score photos/bad --to scores.txt", ".parquet or .csv"),
        ("traverse photos/bad/4.png w.png --latents 4", "expected numbers from 0 to 3"),
        ("reconstruct photos params.yaml", "cannot write"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(place: Path, words: str, told: str) -> None:
    done = vae(*words.split())
    assert done.exit_code == INPUT_ERROR and not done.stdout
    assert told in done.stderr and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_scores_that_are_not_finite_are_unusual_and_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_for_the_first(model: object, images: np.ndarray, *_: object) -> np.ndarray:
        return np.array([np.nan, *np.arange(1.0, len(images))])

    monkeypatch.setattr(scoring, "scores", nan_for_the_first)
    done = vae("score", "photos", "--usual", "good", "--threshold", "1e9", "--json")
    assert done.exit_code == LOOK and "1 scores are not finite" in done.stderr
    told = json.loads(done.stdout)
    assert told["scores"][0]["score"] is None and told["scores"][0]["unusual"] is True
    assert sum(row["unusual"] for row in told["scores"]) == 1
    assert 0 <= told["auroc"]["all others"] <= 1


def test_the_doctor_knows_the_servers_of_make_up(place: Path) -> None:
    """By the note that `make up` writes, of a process that is what the note's name says, started for this folder."""
    started = {**os.environ, services.STARTED_AS: services.mark(services.MLFLOW)}
    note = services.note(services.MLFLOW)
    note.parent.mkdir(exist_ok=True)
    for argument in ("mlflow", "another"):
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", argument], env=started) as process:
            note.write_text(str(process.pid))
            known = services.noted_process(services.MLFLOW) is not None
            process.kill()
        assert known == (argument == "mlflow")
    assert services.noted_process(services.MLFLOW) is None and services.noted_process("none") is None


def test_runs_on_other_data_are_not_comparable() -> None:
    found: dict[str, Any] = {"names": ("a", "b"), "metrics": {}, "parameters": {}}
    told = comparison.lines({**found, "about": {"data": ("1", "2"), "verdict": ("under_regularised", "healthy")}})
    assert "different data" in told[-1] and "under_regularised" in told[-2]
    assert "different data" not in comparison.lines({**found, "about": {"data": ("1", "1")}})[-1]


@pytest.mark.parametrize("words", ["compare a b", "promote", "rollback", "report a", "sample -m candidate", "trace"])
def test_a_server_that_is_away(place: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = vae(*words.split())
    assert done.exit_code == INPUT_ERROR and "Traceback" not in done.stderr
    assert "MLflow does not answer" in done.stderr and "make up" in done.stderr


def test_an_interruption_is_exit_code_130(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(apply, "score", interrupted)
    done = vae("score", "photos")
    assert done.exit_code == 130 and "Traceback" not in done.stderr


def test_models_by_alias_and_the_runs_behind_them(place: Path) -> None:
    first = register("first", 5.0)
    encoded = vae("encode", "photos/bad", "--model", "candidate", "--json")
    told = json.loads(encoded.stdout)["model"]
    assert told["place"] == "models:/vae@candidate"
    assert told["weights_sha256"] == saved.weights_hash(workspace.MODEL)
    assert vae("encode", "photos/bad", "-m", f"runs:/{first}").exit_code == 0
    missing = vae("encode", "photos/bad", "-m", "champion")
    assert missing.exit_code == INPUT_ERROR and "candidate (version 1)" in missing.stderr

    assert json.loads(vae("promote", "--json").stdout)["champion"] == "1"
    write_model(seed=2)
    register("second", 4.0)
    refused = vae("promote")
    assert refused.exit_code == LOOK and "of champion version 1 (-1 nats" in refused.stderr
    assert vae("promote", "2", "--force").exit_code == 0
    assert "already the champion" in vae("promote", "candidate").stderr
    back = vae("rollback", "--json")
    assert back.exit_code == 0 and json.loads(back.stdout)["champion"] == "1"
    nowhere = vae("rollback")
    assert nowhere.exit_code == INPUT_ERROR and "no champion before version 1" in nowhere.stderr

    for one, other in ((first, "second"), ("champion", "2"), ("models:/vae/1", "models/vae")):
        compared = json.loads(vae("compare", one, other, "--json").stdout)
        assert compared["names"] == ["first-healthy", "second-healthy"]
        assert compared["metrics"] == {"elbo": [5.0, 4.0]}
        assert compared["parameters"] == {"kl.max_weight": ["5.0", "4.0"]}
    lines = vae("compare", "first", "second").stdout.splitlines()
    assert any(line.split() == ["test", "elbo", "5", "4"] for line in lines)
    assert vae("compare", "first", "third").exit_code == INPUT_ERROR
    name = runs_of_the_flow.called("leaves", {"train.epochs": 2})
    register(name, 3.0)
    assert json.loads(vae("compare", "first", name, "--json").stdout)["names"][1] == f"{name}-healthy"

    assert vae("report", "first", "--to", "copy.html").stdout == "copy.html\n"
    assert Path("copy.html").read_text() == "<html>first</html>"
    assert Path(vae("report", "champion").stdout.strip()).read_text() == "<html>first</html>"
    none = vae("report")
    assert none.exit_code == INPUT_ERROR and "dvc repro" in none.stderr
    assert named_run.find("second").info.run_name == "second-healthy"
    assert first in vae("trace", first).stdout and vae("trace", "nothing").exit_code == INPUT_ERROR


def test_the_doctor_finds_what_needs_doing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data/bundled").mkdir(parents=True, exist_ok=True)
    Path("constraints.txt").write_text("numpy==0.1\n")
    Path(".dvc/tmp").mkdir(parents=True)
    Path(".dvc/tmp/rwlock").write_text("")
    done = vae("doctor", "--json")
    assert done.exit_code == LOOK
    told = json.loads(done.stdout)
    problems = {check["name"]: check["text"] for check in told["checks"] if check["state"] == "problem"}
    assert not told["healthy"] and "numpy" in problems["packages"] and "rwlock" in problems["locks"]
    assert "compute" not in problems and "mlflow" not in problems

    Path("dvc.lock").write_text("schema: '2.0'\nsta")
    done = vae("doctor", "--mend", "--json")
    assert "rwlock" in done.stderr and "dvc.lock was half written" in done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert not [c for c in checks if c["name"] == "locks"] and not Path("dvc.lock").exists()
    assert vae("doctor", "--mend").stderr == ""  # nothing is left to mend

    monkeypatch.setattr(doctor, "FREE_GB", 1e9)
    Path("mlflow.db").write_bytes(b"no database")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it in this process
    lines = vae("doctor").stdout.splitlines()
    assert {line.split()[1] for line in lines if line.startswith("problem")} >= {"disk", "mlflow"}
