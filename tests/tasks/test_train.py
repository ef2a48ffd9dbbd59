"""The stage's files, from a training in a workspace of its own: whole and the same after an interruption."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.stages import EPOCHS, LATENTS, run_train, write_params
from helpers.trainings import CPU
from ruamel.yaml import YAML

from tasks import PROJECT, train, workspace
from tasks.processes import checkpoint_folder, events
from tasks.processes.events import Follower
from tasks.tracking.training_run import TrainingRun
from vae.config import loading
from vae.config.constants import SPLITS
from vae.config.resolved import resolve
from vae.metrics.measurement import measure
from vae.models import saved
from vae.training import checkpoint, loop


@pytest.fixture
def place(empty_workspace: Path, new_store: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    Path("mlflow.db").write_bytes(new_store)
    write_params()
    monkeypatch.setenv(events.FILE, str(empty_workspace / "events.jsonl"))
    for seed, split in enumerate(SPLITS):
        grey = np.random.default_rng(seed).integers(0, 256, (48, 1, 1, 1))
        np.save(workspace.images(split), np.broadcast_to(grey, (48, 8, 8, 1)).astype(np.uint8))
    return empty_workspace


def tables() -> list[bytes]:
    return [path.read_bytes() for path in (workspace.HISTORY, workspace.KL_PER_LATENT)]


def test_the_tables_of_epochs_are_whole_after_an_interruption(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "standardise", lambda model, measured: False)  # the tables are of the weights before it
        run_train()
    whole = tables()
    latents, history = pd.read_csv(workspace.KL_PER_LATENT), pd.read_csv(workspace.HISTORY)
    assert list(latents) == ["epoch", *(f"z{j}" for j in range(LATENTS))]
    assert latents["epoch"].tolist() == list(range(1, EPOCHS + 1))
    np.testing.assert_allclose(latents.drop(columns="epoch").sum(axis=1), history["valid/kl"], rtol=1e-12)
    model = saved.load(workspace.MODEL)
    last = measure(model.model, np.load(workspace.images("valid")), model.likelihood, CPU, seed=0)
    np.testing.assert_allclose(latents.iloc[-1, 1:], last.kl_per_latent, rtol=1e-12)
    *epochs, kept = Follower(place / "events.jsonl").new()
    assert [(e["epoch"], e["epochs"], e["attempt"]) for e in epochs] == [(n, EPOCHS, None) for n in (1, 2, 3, 4)]
    assert kept == {"event": "kept", "epoch": EPOCHS, "epochs": EPOCHS}

    checkpoint.remove_finished(Path())  # as monitor does
    real = TrainingRun.log_epoch

    def cut_off(self: TrainingRun, row: Any, *rest: Any) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        real(self, row, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingRun, "log_epoch", cut_off)
        run_train()
    for part, table in zip(tables(), whole, strict=True):
        assert part == table[: len(part)] and part.count(b"\n") == 3
    for path in (workspace.HISTORY, workspace.KL_PER_LATENT):
        path.unlink()  # as DVC does before a stage
    run_train()
    assert tables() == whole


@pytest.fixture
def stage(place: Path) -> Path:
    """A dvc.yaml that names a folder and a file, with something of Python's own in the folder."""
    stage = {"deps": ["data/images", "code", "one.py"], "params": ["seed", "train.epochs", "model"]}
    YAML().dump({"stages": {"train": stage}}, Path("dvc.yaml"))
    for name in ("code/inner/loop.py", "one.py", "code/__pycache__/loop.pyc"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("1")
    return place


def test_checkpoints_are_named_by_all_that_dvc_yaml_names(stage: Path) -> None:
    """Another file of a folder among the deps is another training; what Python keeps beside it is not."""
    p = resolve(loading.load(workspace.PARAMS), 1)
    key = checkpoint_folder.key_of(p)

    Path("code/__pycache__/loop.pyc").write_text("2")
    Path("reports").mkdir(exist_ok=True)
    Path("reports/other.json").write_text("2")
    assert checkpoint_folder.key_of(p) == key

    seen = {key}
    for name in ("code/inner/loop.py", "code/inner/new.py", "one.py", "data/images/train.npy"):
        Path(name).write_text("2")
        seen.add(checkpoint_folder.key_of(p))
    assert len(seen) == 5

    # After a remedy's change of epochs, a ramp that was left to the rule is another than the same number given.
    ramp = p.kl.model_copy(update={"follows_epochs": not p.kl.follows_epochs})
    assert checkpoint_folder.key_of(p.model_copy(update={"kl": ramp})) != checkpoint_folder.key_of(p)


def test_a_pilot_resumes_whatever_the_epochs_of_a_budget(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_folder, "key_of", lambda p, stage: p.train.model_dump_json())
    p = loading.load(workspace.PARAMS)
    paths = []
    for changes in ({"epochs": 20}, {"epochs": 21}, {"batch_size": 77}):
        changed = p.model_copy(update={"train": p.train.model_copy(update=changes)})
        for conditions in ({"averaging": "1"}, {"averaging": "2"}):
            with checkpoint_folder.of_pilot(changed, conditions) as path:
                paths.append(path)
    assert paths[:2] == paths[2:4] and len(set(paths)) == 4


@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "warned"),
    [
        ("muon", "auto", False),
        ("muon", 0.01, False),
        ("muon", 0.002, True),
        ("adamw", 0.001, False),
        ("adamw", 0.01, False),
        ("adamw", 0.025, True),
    ],
)
def test_a_learning_rate_of_the_other_optimiser(
    optimizer: str, learning_rate: float | str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"train": {"optimizer": optimizer, "learning_rate": learning_rate}}
    train.warn_of_the_others_rate(resolve(loading.parse(values, "test"), 1).train)
    assert ("train.learning_rate" in caplog.text) == warned


def test_under_other_conditions_a_training_starts_from_scratch_and_says_what_differs(
    stage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    p = resolve(loading.load(workspace.PARAMS), 1)
    with checkpoint_folder.held(p, {"threads": "1", "torch": "2"}) as one:
        assert workspace.read_note(one / checkpoint_folder.CONDITIONS)["threads"] == "1"
    assert not caplog.records
    with checkpoint_folder.held(p, {"threads": "2", "torch": "2"}) as other:
        assert other != one and "made with threads 1 (here 2): this one starts from scratch" in caplog.text


def test_dvc_counts_no_file_of_pythons_caches() -> None:
    assert "__pycache__/" in (PROJECT / ".dvcignore").read_text(encoding="utf-8").splitlines()
