"""Evaluations in a real store: what goes into the run of the weights, and what is registered."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers.commands import evaluate, write_model
from helpers.priors import gaussian
from mlflow import MlflowClient

from tasks.tracking import evaluation_run, registry, store
from tasks.tracking.training_run import training_run
from vae.models.saved import Saved
from vae.report.facts import Origin


def evaluated(model: Saved, verdict: str = "healthy", elbo: float = 5.0, told: list[Origin] | None = None) -> str:
    """Logs an evaluation; what the report is given of the run is added to `told`."""

    def report(origin: Origin) -> str:
        if told is not None:
            told.append(origin)
        return f"<html>{origin}</html>"

    elbos = np.random.default_rng(0).normal(elbo, 0.1, 40)
    return evaluate(model, {"elbo": elbo, "kl": 2.0}, elbos, verdict, report=report)


def test_the_same_weights_are_registered_once_and_the_candidate_moves(client: MlflowClient) -> None:
    first, second = evaluated(write_model(seed=4)), evaluated(write_model(seed=5))
    assert first != second
    assert evaluated(write_model(seed=4), "overfitted") == first, "restored weights are not a new version"
    candidate = client.get_model_version_by_alias("vae", registry.CANDIDATE)
    assert first == f"models:/vae/{candidate.version}"
    assert candidate.tags[store.VERDICT] == "overfitted"
    assert len(client.search_model_versions("name = 'vae'")) == 2
    registry.point_candidate(write_model(seed=5).sha256, "vae")
    assert second.endswith(f"/{client.get_model_version_by_alias('vae', registry.CANDIDATE).version}")


def test_a_fitted_prior_makes_another_version_of_the_same_weights(client: MlflowClient) -> None:
    prior = gaussian(latents=4)
    plain, fitted = evaluated(write_model()), evaluated(write_model(prior=prior))
    assert fitted != plain
    assert evaluated(write_model(prior=prior)) == fitted and evaluated(write_model()) == plain


def test_an_evaluation_goes_into_the_run_of_the_weights(client: MlflowClient, tmp_path: Path) -> None:
    model = write_model()
    with pytest.raises(KeyboardInterrupt), training_run("n", tmp_path / "id", {}) as run:
        run.tag({store.WEIGHTS: model.sha256})
        raise KeyboardInterrupt
    run_id = str(run.run_id)

    def fail(*_: object) -> None:
        assert client.get_run(run_id).info.status == "KILLED", "whatever ends the evaluation from here on"
        raise ConnectionResetError

    with mock.patch.object(registry, "register", fail), store.away("never mind"):
        evaluated(model)
    evaluated(model, "overfitted")
    assert client.get_run(run_id).info.run_name == "n-overfitted"
    uri = evaluated(model)
    found = client.get_run(run_id)
    assert (found.info.status, found.info.run_name) == ("KILLED", "n-healthy")
    metrics, tags = found.data.metrics, found.data.tags
    assert (metrics["test/elbo"], metrics["final_valid/elbo"]) == (5.0, 4.0)
    assert "final_valid/nll" not in metrics, "what is null is left out"
    assert tags[store.VERDICT] == "healthy"
    assert tags[evaluation_run.NOTE].startswith("**healthy**") and uri in tags[evaluation_run.NOTE]
    assert {"plots", "report.html", "params.yaml"} <= {item.path for item in client.list_artifacts(run_id)}
    assert run_id in Path(client.download_artifacts(run_id, "report.html")).read_text()
    version = client.get_model_version("vae", uri.rsplit("/", 1)[1])
    assert str(version.description).startswith("**healthy**") and uri in str(version.description)
    assert all("Detail is lost." in text for text in (tags[evaluation_run.NOTE], str(version.description)))


def test_the_report_names_the_run_and_the_champion(client: MlflowClient) -> None:
    told: list[Origin] = []
    champion = evaluated(write_model(seed=8), elbo=3.0, told=told).rsplit("/", 1)[1]
    client.set_registered_model_alias("vae", registry.CHAMPION, champion)
    evaluated(write_model(seed=9), told=told)
    evaluated(write_model(seed=8), elbo=3.0, told=told)
    alone, challenger, itself = told
    assert alone.champion is None and alone.promotion and "no champion yet" in alone.promotion
    run = store.run_of(write_model(seed=9).sha256)
    assert challenger.links[0] == ("MLflow run", run.info.run_name, store.run_url(run))
    assert challenger.champion == (f"the champion, version {champion}", {"elbo": 3.0, "kl": 2.0})
    assert challenger.promotion and "of champion version" in challenger.promotion
    assert itself.champion is None
    assert ("Champion", f"this model, version {champion}", None) in itself.links
