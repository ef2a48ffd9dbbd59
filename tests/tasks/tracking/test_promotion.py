"""Champions in a real registry: made, kept, taken back."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import evaluate, write_model
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from tasks import workspace
from tasks.tracking import lineage, promotion, registry, store
from tasks.tracking.promotion import Outcome
from vae.config.errors import InputError
from vae.inference.scoring import elbo_per_image
from vae.models.saved import Saved
from vae.report.facts import Origin

IMAGES = 40
ELBOS = np.random.default_rng(0).normal(100, 20, IMAGES)
METRICS = {"kl": 20.0, "fitted_prior_coverage": 0.9, "active_units": 2, "mse_sampled": 0.01}


def scored(gain: float) -> np.ndarray:
    """ELBOs that are better by so much, in the mean of images that differ."""
    noise = np.random.default_rng(abs(int(10 * gain))).normal(0, 0.5, IMAGES)
    return ELBOS + gain + noise - noise.mean()


def registered(client: MlflowClient, gain: float) -> ModelVersion:
    """A version in the registry with an evaluated run, as the gate sees them, without the files of a model."""
    run_id = client.create_run("1").info.run_id
    for name, value in METRICS.items():
        client.log_metric(run_id, f"test/{name}", value)
    promotion.keep_scores(client, run_id, scored(gain), lineage.data()["data.sha256"])
    if not client.search_registered_models("name = 'vae'"):
        client.create_registered_model("vae")
    tags = {store.VERDICT: "healthy", registry.LIKELIHOOD: "gaussian", registry.RUN: run_id}
    return client.create_model_version("vae", f"runs:/{run_id}/model", run_id, {**tags, store.WEIGHTS: f"{gain}"})


def evaluated(client: MlflowClient, gain: float, mode: str = "enabled") -> str:
    return promotion.consider(client, registered(client, gain), mode).sentence


def by_hand(client: MlflowClient, version: str, mode: str = "by hand") -> Outcome:
    return promotion.consider(client, client.get_model_version("vae", version), mode)


def champion(client: MlflowClient) -> str | None:
    found = registry.champion(client, "vae")
    return None if found is None else str(found.version)


def log_evaluation(model: Saved, gain: float) -> Origin:
    """What evaluate does at its end, with the gate enabled; returns what its report is given."""
    told: list[Origin] = []

    def report(origin: Origin) -> str:
        told.append(origin)
        return "<html></html>"

    test = {**METRICS, "elbo": float(scored(gain).mean())}
    evaluate(model, test, scored(gain), promote="enabled", report=report)
    return told[0]


def test_an_evaluation_moves_the_alias_and_records_it(client: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    log_evaluation(write_model(seed=1), 0)
    assert champion(client) == "1", "healthy, and there is none yet"
    better = write_model(seed=2)
    with caplog.at_level("INFO", "tasks"):
        told = log_evaluation(better, 5)
    assert champion(client) == "2"
    sentence = told.promotion
    assert sentence is not None and sentence.startswith("was promoted: test ELBO")
    assert told.champion is not None and told.champion[0] == "the champion, version 1"
    assert f"promotion: version 2 {sentence}" in caplog.text
    run, version = store.run_of(better.sha256), client.get_model_version("vae", "2")
    assert run.data.tags[promotion.SENTENCE] == version.tags[promotion.SENTENCE] == sentence
    decision = json.loads(Path(client.download_artifacts(run.info.run_id, promotion.DECISION)).read_text())
    assert (decision["sentence"], decision["passes"], decision["mode"]) == (sentence, True, "enabled")
    assert decision["gain"]["low"] == pytest.approx(5, abs=0.5) and decision["champion"] == "1"

    again = log_evaluation(better, 5)
    assert again.promotion == "is already the champion, version 2"
    assert client.get_registered_model("vae").tags[promotion.CHAMPIONS] == "1 2"


def test_enabled_promotes_only_what_is_better_and_dry_run_nothing(client: MlflowClient) -> None:
    assert evaluated(client, 0, "dry_run") == "would be promoted: it is healthy and there is no champion yet"
    assert champion(client) is None
    evaluated(client, 0)
    assert evaluated(client, -3).startswith("was not promoted: not better: ")
    assert evaluated(client, 0.1).startswith("was not promoted: not better beyond the noise: ")
    assert evaluated(client, 5, "dry_run").startswith("would be promoted: test ELBO")
    assert champion(client) == "2"
    evaluated(client, 5.5)
    assert champion(client) == "6"


def test_a_rollback_goes_back_step_by_step_and_an_evaluation_does_not_undo_it(client: MlflowClient) -> None:
    for gain in (0, 5, 10):
        evaluated(client, gain)
    assert promotion.roll_back("vae").champion == champion(client) == "2"
    assert "was rolled back to version 2" in by_hand(client, "3", "enabled").sentence
    assert champion(client) == "2", "it was taken back for a reason that its numbers do not show"
    assert by_hand(client, "3").champion == "2"
    assert promotion.roll_back("vae").champion == champion(client) == "1"
    with pytest.raises(InputError, match="no champion before version 1"):
        promotion.roll_back("vae")
    assert by_hand(client, "3", "forced").champion == champion(client) == "3"
    assert promotion.ROLLED_BACK not in client.get_model_version("vae", "3").tags, "it is as any other again"
    assert promotion.roll_back("vae").champion == "1"


def test_a_rollback_knows_deleted_versions_and_aliases_set_by_hand(client: MlflowClient) -> None:
    for gain in (0, 5, 10):
        evaluated(client, gain)
    client.delete_model_version("vae", "2")
    assert promotion.roll_back("vae").champion == "1"
    registered(client, 1)
    client.set_registered_model_alias("vae", registry.CHAMPION, "4")
    evaluated(client, 50)
    assert champion(client) == "5" and promotion.roll_back("vae").champion == "4"


def test_a_champion_that_kept_no_scores_is_loaded_and_scored(client: MlflowClient) -> None:
    one = write_model(seed=1)
    log_evaluation(one, 0)
    version, data = client.get_model_version("vae", "1"), lineage.data()["data.sha256"]
    np.testing.assert_allclose(promotion.scores(client, version, data), scored(0))
    file = Path(store.run_of(one.sha256).info.artifact_uri.removeprefix("file://"), promotion.scores_file(data))
    file.unlink()
    images = np.load(workspace.images("test"))
    measured = elbo_per_image(one.model, images, one.likelihood, one.compute())
    np.testing.assert_array_equal(promotion.scores(client, version, data), measured)

    far_better = 1000 + round(measured.mean() - ELBOS.mean())
    assert f"against {measured.mean():.4g} of champion version 1" in evaluated(client, far_better)
    assert champion(client) == "2"
    candidate = registered(client, far_better + 1000)
    by_hand(client, "1", "forced")
    np.save(workspace.images("test"), images[::-1])
    assert "its test images are not here" in promotion.consider(client, candidate, "enabled").sentence
    assert champion(client) == "1"


def test_other_data_are_not_compared_until_the_champion_is_evaluated_on_them(client: MlflowClient) -> None:
    evaluated(client, 0)
    np.save(workspace.images("test"), np.load(workspace.images("test"))[::-1])
    candidate = registered(client, 5)
    assert "trained and tested on different data" in promotion.consider(client, candidate, "enabled").sentence
    run = registry.run_behind(client, client.get_model_version("vae", "1"))
    assert run is not None
    promotion.keep_scores(client, run.info.run_id, scored(0), lineage.data()["data.sha256"])
    assert promotion.consider(client, candidate, "enabled").champion == champion(client) == "2"


def test_a_champion_whose_run_is_gone_is_not_replaced_by_itself(client: MlflowClient) -> None:
    evaluated(client, 0)
    client.set_model_version_tag("vae", "1", registry.RUN, "0" * 32)
    assert "the data that champion version 1 was tested on are unknown" in evaluated(client, 5)
    assert champion(client) == "1"


def test_of_two_at_once_the_second_meets_the_champion_of_the_first(client: MlflowClient) -> None:
    for gain in (0, 5, 10):
        registered(client, gain)
    assert by_hand(client, "1").champion == "1"
    outcomes: list[Outcome] = []
    second = threading.Thread(target=lambda: outcomes.append(by_hand(client, "2")))
    with promotion.alone():
        second.start()
        second.join(timeout=0.5)
        assert second.is_alive(), "it waits"
        promotion.crown(client, client.get_model_version("vae", "3"))
    second.join(timeout=60)
    assert outcomes[0].champion == champion(client) == "3" and "not better" in outcomes[0].sentence
