"""Tiny trainings that end unhealthy, and what the restarts make of them."""

import dataclasses
import itertools

import numpy as np
import pytest
from helpers.priors import gaussian
from helpers.trainings import CPU, TRAIN, VALID, blobs, params, run

from vae.collapse import linear_theory, restarts
from vae.collapse.diagnosis import judge
from vae.collapse.evidence import Verdict
from vae.collapse.expectations import expectations
from vae.collapse.restarts import Attempt, attempts
from vae.config.resolved import ResolvedParameters, changed
from vae.metrics.mean_image import MeanImage
from vae.metrics.measurement import encode, measure
from vae.models.likelihood import GAUSSIAN, Likelihood
from vae.priors import fitting
from vae.priors.aggregate import kl_to_prior
from vae.priors.fitting import Fitted
from vae.priors.mixture import Mixture
from vae.priors.standard import STANDARD
from vae.samples.evidence import sample_evidence
from vae.training import loop
from vae.training.loop import Trained

MANY, OTHERS = blobs(320, 3), blobs(160, 4)
# Healthy with the defaults of these tests: enough steps for the alarm, and few enough for seconds.
LONG = {"train.epochs": 14, "train.on_collapse": "remedy"}


class Trainings:
    """Trains for `attempts`, and keeps what was asked for."""

    def __init__(self, train_images: np.ndarray = MANY, valid_images: np.ndarray = OTHERS) -> None:
        self.images = train_images, valid_images
        self.asked: list[tuple[ResolvedParameters, int, str]] = []

    def __call__(self, p: ResolvedParameters, number: int, reason: str) -> Trained:
        self.asked.append((p, number, reason))
        return loop.train(p, *self.images, CPU)

    def attempts(self, p: ResolvedParameters) -> list[Attempt]:
        spectrum = linear_theory.spectrum(self.images[0], p.model.latent_dim, False)
        return attempts(p, spectrum, *self.images, CPU, self)


def names(tried: list[Attempt]) -> list[str]:
    return [attempt.verdict.verdict for attempt in tried]


def test_a_weight_far_too_high_is_remedied(caplog: pytest.LogCaptureFixture) -> None:
    trainings = Trainings()
    p = params({**LONG, "kl.max_weight": 1e3})
    first, last = trainings.attempts(p)
    assert first.verdict.verdict == "collapsed" and first.evidence.valid.rate < 1
    assert last.verdict.verdict == "healthy", last.verdict
    assert first.changes == {} and first.parameters == p
    assert last.evidence.prior == last.prior.name
    assert last.changes == first.verdict.remedy == {"kl.max_weight": 1.0}
    assert last.parameters.kl.max_weight == 1 and p.kl.max_weight == 1e3
    # the verdict on it is by what theory says of the changed parameters
    assert first.evidence.predicted["predicted_kl"] < 1 < last.evidence.predicted["predicted_kl"]
    (_, _, why), (_, number, reason) = trainings.asked
    assert (why, number) == ("the parameters as they are", 1)
    assert reason.startswith("collapsed: KL of ") and "kl.max_weight = 1000" in reason
    assert len(caplog.messages) == 1 and "remedy 1: set kl.max_weight to 1" in caplog.messages[0]
    assert restarts.best([first, last]) is last


@pytest.mark.parametrize("allowed", [0, 3])
def test_the_number_of_restarts_is_bounded_and_changes_add_up(allowed: int) -> None:
    """A learning rate at which nothing moves within an epoch or a few: no remedy helps soon."""
    hopeless = {"train.epochs": 1, "train.learning_rate": 3e-5, "train.remedy_attempts": allowed}
    trainings = Trainings(TRAIN, VALID)
    p = params({**hopeless, "kl.annealing_epochs": 0, "train.on_collapse": "remedy"})
    tried = trainings.attempts(p)
    assert len(tried) == len(trainings.asked) == allowed + 1
    assert "healthy" not in names(tried)
    assert [number for _, number, _ in trainings.asked] == list(range(allowed + 1))
    for before, after in itertools.pairwise(tried):
        assert after.changes == before.changes | before.verdict.remedy
        assert after.parameters == changed(p, after.changes)
    assert restarts.best(tried) in tried


def test_a_prior_is_fitted_to_the_latents_of_every_attempt() -> None:
    """To those of the training split, and the same as anyone would fit."""
    trainings = Trainings()
    p = params({"train.epochs": 2, "train.remedy_attempts": 1, "train.learning_rate": 1e-5})
    tried = trainings.attempts(p)
    assert len(tried) == 2
    for attempt in tried:
        expected = fitting.fit(*encode(attempt.trained.model, MANY, CPU), p.seed)
        assert (attempt.prior.name, attempt.prior.log_likelihood) == (expected.name, expected.log_likelihood)
        assert attempt.evidence.prior == expected.name and attempt.evidence.samples is not None


def test_a_control_that_asks_for_many_nats_has_samples_by_its_fitted_prior() -> None:
    """A capacity is asked for 30 nats: latents of 30 nats are far from N(0, I), as they were told to be."""
    p = params(
        {
            **LONG, "train.epochs": 60, "train.batch_size": 64, "train.learning_rate": 0.01,
            "kl.capacity": 30.0, "kl.schedule": "constant", "kl.max_weight": 2.0,
        }
    )  # fmt: skip
    trainings = Trainings()
    (only,) = trainings.attempts(p)
    assert len(trainings.asked) == 1 and only.verdict.verdict == "healthy", only.verdict
    assert only.prior.name != STANDARD and isinstance(only.prior.prior, Mixture)
    assert only.evidence.samples is not None
    bound = only.evidence.samples.aggregate_kl
    own = only.trained.model.own_prior()
    expected = kl_to_prior(*encode(only.trained.model, OTHERS, CPU), own, only.prior.prior, p.seed)
    assert bound == expected and bound.value > 1
    assert f"at least {bound.value:.3g} ± " in only.verdict.reasons[-1]


def test_a_refused_remedy_ends_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    refused = Verdict("collapsed", "All of it.", ["for once"], {"train.learning_rate": -1.0})
    monkeypatch.setattr(restarts, "judge", lambda p, e: refused)
    trainings = Trainings(TRAIN, VALID)
    tried = trainings.attempts(params({"train.epochs": 1}))
    assert len(tried) == len(trainings.asked) == 1
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("no further remedy: ")
    assert "train.learning_rate = -1.0" in caplog.messages[0]


SPECTRUM = linear_theory.spectrum(TRAIN, 3, False)
FITTED = Fitted(gaussian(latents=3), "Gaussian", {})


@pytest.fixture(scope="module")
def trained() -> Trained:
    return run(params({"train.epochs": 2}))


def test_evidence_is_what_monitor_would_find(trained: Trained) -> None:
    p = params({"train.epochs": 2})
    got = restarts.evidence_of(p, trained, FITTED, SPECTRUM, TRAIN, VALID, CPU)
    expected = measure(trained.model, VALID, trained.likelihood, CPU, p.seed)
    assert (got.valid.elbo, got.kept_epoch) == (expected.elbo, trained.kept_epoch)
    mean_image = MeanImage.of(TRAIN)
    assert got.mean_image_mse == mean_image.mse(VALID)
    assert got.train["images"] == len(TRAIN)
    assert got.train["mean_image_elbo"] == mean_image.elbo(TRAIN, GAUSSIAN)
    assert got.predicted == expectations(p, p.kl.max_weight, SPECTRUM)
    assert judge(p, got).verdict
    assert got.prior == "Gaussian"
    expected_samples = sample_evidence(trained.model, trained.likelihood, FITTED.prior, TRAIN, VALID, CPU, p.seed)
    assert got.samples is not None and got.samples == expected_samples


def test_the_best_is_healthy_or_else_of_the_highest_elbo_that_is_a_number(trained: Trained) -> None:
    p = params({"train.epochs": 2})
    evidence = restarts.evidence_of(p, trained, FITTED, SPECTRUM, TRAIN, VALID, CPU)

    def attempt(verdict: str, mse: float) -> Attempt:
        valid = dataclasses.replace(evidence.valid, mse_sampled=mse, distortion=mse, rate=3.0, kl_per_latent=np.ones(3))
        changed = dataclasses.replace(evidence, valid=valid)
        return Attempt({}, p, trained, FITTED, changed, Verdict(verdict, "", []))

    diverged, poor = attempt("diverged", float("nan")), attempt("collapsed", 0.05)
    better, healthy = attempt("partly_collapsed", 0.02), attempt("healthy", 0.1)
    assert restarts.best([diverged, poor, better]) is better
    assert restarts.best([better, diverged, poor]) is better
    assert restarts.best([diverged, poor, better, healthy]) is healthy
    elbo = restarts.calibrated_elbo(poor)
    assert elbo == pytest.approx(-32 * (np.log(2 * np.pi * 0.05) + 1) - 3.0, rel=1e-6)
    bernoulli = poor.evidence.valid
    assert bernoulli.elbo_at_own_sigma(Likelihood("bernoulli"), 64) == bernoulli.elbo
