"""Train, monitor and evaluate with `train.on_collapse: remedy`, in a workspace of their own: a weight far too high."""

import dataclasses
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers.stages import run_train, write_params
from helpers.trainings import CPU, STEADY
from mlflow import MlflowClient

from tasks import monitor, preflight, workspace
from tasks.tracking import store
from tasks.tracking.training_run import TrainingRun
from vae.collapse.expectations import expectations
from vae.collapse.pilot_curve import curve_of
from vae.config import resolved
from vae.config.constants import SPLITS
from vae.config.text import rounded
from vae.metrics.measurement import encode
from vae.models import saved
from vae.priors import fitting
from vae.priors.aggregate import kl_to_prior
from vae.priors.mixture import Mixture
from vae.priors.standard import STANDARD
from vae.samples.evidence import sample_evidence
from vae.training import checkpoint

EPOCHS, STOPPED = (24, 4)  # of a training; of one that collapses: with 30 steps per epoch the alarm comes past 100
TOO_HIGH = STEADY | {
    "kl.max_weight": 1e5, "train.epochs": EPOCHS, "train.on_collapse": "remedy", "train.select": "best",
}  # fmt: skip
FILES = (
    workspace.HISTORY,
    workspace.KL_PER_LATENT,
    workspace.MODEL / saved.WEIGHTS_FILE,
    workspace.MODEL / saved.CONFIG_FILE,
)


@pytest.fixture
def place(empty_workspace: Path, new_store: bytes) -> Path:
    Path("mlflow.db").write_bytes(new_store)
    write_params(TOO_HIGH)
    for seed, split in enumerate(SPLITS):
        random = np.random.default_rng(seed)
        halves = np.repeat(random.integers(0, 256, (480, 1, 2, 1)), 4, axis=2)
        images = np.broadcast_to(halves, (480, 8, 8, 1)) + random.integers(-3, 4, (480, 8, 8, 1))
        np.save(workspace.images(split), images.clip(0, 255).astype(np.uint8))
    preflight.main()
    return empty_workspace


def contents() -> list[bytes]:
    return [path.read_bytes() for path in FILES]


def test_a_training_that_collapsed_starts_again_and_everything_is_recorded(place: Path) -> None:
    written = workspace.PARAMS.read_bytes()
    run_train()
    assert workspace.PARAMS.read_bytes() == written, "the recorded parameters stay the user's"

    config = saved.read_config(workspace.MODEL)
    changes = {"objective.sigma": "optimal", "kl.max_weight": 1.0}
    assert config.changes == changes
    before, after = config.remedies
    assert (before.verdict, before.changes, before.kept) == ("collapsed", {}, False)
    assert (after.verdict, after.changes, after.kept) == ("healthy", changes, True)
    assert any("kl.max_weight = 100000" in reason for reason in before.reasons)
    history = pd.read_csv(workspace.HISTORY)
    assert history["epoch"].tolist() == list(range(1, EPOCHS + 1)) and history["valid/kl"].iloc[-1] > 1
    assert (history["kl_weight"] == 1).all(), "the history is that of the attempt that was kept"

    client, experiment = store.connect()
    runs = client.search_runs([experiment], order_by=["attribute.start_time ASC"])
    (outer,) = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    inner = {found.data.tags["attempt"]: found for found in runs if found is not outer}
    assert set(inner) == {"0", "1"}
    assert all(found.data.tags["mlflow.parentRunId"] == outer.info.run_id for found in inner.values())
    assert all(found.info.status == "FINISHED" for found in runs)
    assert inner["0"].data.tags["reason"] == "the parameters as they are"
    assert inner["1"].data.tags["reason"].startswith("collapsed: KL of ")
    assert [inner[number].data.tags[store.VERDICT] for number in "01"] == ["collapsed", "healthy"]
    assert inner["0"].data.tags["changes"] == "none" and "kl.max_weight = 1" in inner["1"].data.tags["changes"]
    collapsed, kept = (curve(client, inner[number].info.run_id) for number in "01")
    assert len(collapsed) == STOPPED and collapsed[-1] < 1
    np.testing.assert_allclose(kept, history["valid/kl"])
    np.testing.assert_allclose(curve(client, outer.info.run_id), history["valid/kl"])
    assert outer.data.params["kl.max_weight"] == "100000.0", "parameters as the user wrote them"
    assert outer.data.tags[store.VERDICT] == "healthy"
    assert "kl.max_weight = 1" in outer.data.tags["remedy"]
    assert outer.data.tags[store.WEIGHTS] == saved.weights_hash(workspace.MODEL)
    assert (place / "checkpoints" / checkpoint.FINISHED).exists()

    monitor.main()
    result = workspace.read_json(workspace.MONITOR)
    assert result["verdict"] == "healthy" and result["changes"] == changes
    p = resolved.changed(workspace.load_parameters(), changes)
    spectrum = curve_of(workspace.read_json(workspace.PREFLIGHT), 64)
    expected = expectations(p, p.kl.max_weight, spectrum)["predicted_kl"]
    assert result["predicted_kl"] == pytest.approx(expected, rel=1e-4)
    assert result["predicted_kl"] > 1 > workspace.read_json(workspace.PREFLIGHT)["predicted_kl"]
    assert result["remedy"] == changes
    assert result["recommendations"] == [
        "keep the remedy: set objective.sigma to optimal", "keep the remedy: set kl.max_weight to 1",
    ]  # fmt: skip
    first, second = result["remedies"]
    assert first == f"attempt 0, parameters unchanged: collapsed. {'; '.join(before.reasons)}."
    assert second.startswith("attempt 1, objective.sigma = optimal, kl.max_weight = 1: healthy. ")
    assert second.endswith("Kept.") and "Kept" not in first


def curve(client: MlflowClient, run_id: str) -> list[float]:
    points = sorted(client.get_metric_history(run_id, "valid/kl"), key=lambda point: point.step)
    return [point.value for point in points]


def test_interrupted_in_the_second_attempt_and_resumed_it_gives_the_same_bits(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_train()
    whole = contents()
    real, trained_epochs = TrainingRun.log_epoch, 0

    checkpoint.remove_finished(Path())  # as monitor does

    def cut_off(self: TrainingRun, row: Any, timing: Any, grid: Any) -> None:
        nonlocal trained_epochs
        trained_epochs += 1
        if trained_epochs == STOPPED + 2:
            raise KeyboardInterrupt
        real(self, row, timing, grid)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingRun, "log_epoch", cut_off)
        run_train()
    assert mlflow.active_run() is None
    client, experiment = store.connect()
    killed = client.search_runs([experiment], "tags.ended = 'KILLED'")
    assert {found.data.tags.get("attempt") for found in killed} == {None, "1"}
    for path in FILES:
        path.unlink(missing_ok=True)  # as DVC does before a stage
    trained_epochs = -100
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "log_epoch", cut_off)
        run_train()
    assert contents() == whole
    # The first attempt was not trained again, and the second from its third epoch on: its second was whole.
    assert trained_epochs == -100 + EPOCHS - 2
    assert client.search_runs([experiment], "tags.ended = 'KILLED'") == []
    assert {client.get_run(found.info.run_id).info.status for found in killed} == {"FINISHED"}
    second = next(found for found in killed if found.data.tags.get("attempt") == "1")
    np.testing.assert_allclose(
        curve(client, second.info.run_id), pd.read_csv(workspace.HISTORY)["valid/kl"], rtol=1e-12
    )


def test_a_fitted_prior_is_saved_judged_and_told(place: Path) -> None:
    write_params(TOO_HIGH | {"kl.max_weight": 2.0, "kl.capacity": 30.0, "train.epochs": 60})
    run_train()
    monitor.main()
    model, result = saved.load(workspace.MODEL), workspace.read_json(workspace.MONITOR)
    assert isinstance(model.prior, Mixture) and model.config.changes == {} and model.config.remedies == []
    train, valid = (np.load(workspace.images(split)) for split in ("train", "valid"))
    expected = fitting.fit(*encode(model.model, train, CPU), seed=0)
    assert result["prior"] == model.config.prior.name == expected.name != STANDARD
    assert result["prior_log_likelihood"] == pytest.approx(expected.log_likelihood, rel=1e-4)
    assert result["verdict"] == "healthy" and f"(a {expected.name})" in result["summary"], result
    bound = kl_to_prior(*encode(model.model, valid, CPU), model.own_prior, model.prior, seed=0)
    assert result["aggregate_kl_bound"] == pytest.approx(bound.value, rel=1e-4)
    assert result["aggregate_kl_bound_se"] == pytest.approx(bound.standard_error, rel=1e-3)
    samples = sample_evidence(model.model, model.likelihood, model.prior, train, valid, CPU, seed=0)
    assert samples is not None
    assert result["samples"] == rounded(dataclasses.asdict(samples)) and samples.standard != samples.fitted
    client, experiment = store.connect()
    attempts = [r for r in client.search_runs([experiment]) if "mlflow.parentRunId" in r.data.tags]
    assert len(attempts) == 1, "nothing was trained again"
    once = [(workspace.MODEL / name).read_bytes() for name in (saved.PRIOR_FILE, saved.CONFIG_FILE)]
    run_train()
    assert [(workspace.MODEL / name).read_bytes() for name in (saved.PRIOR_FILE, saved.CONFIG_FILE)] == once
