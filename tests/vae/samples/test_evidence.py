"""Samples beside reconstructions, from models whose encoder and decoder are written down."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.by_hand import NOISE
from helpers.far import Far, images
from helpers.trainings import CPU, TRAIN, VALID, params

from vae.collapse.sample_rules import is_poor
from vae.models.likelihood import Likelihood
from vae.models.vae import build
from vae.priors.mixture import Mixture, PrincipalAxes, fit_gaussian
from vae.priors.standard import StandardNormal
from vae.samples import evidence as evidence_module
from vae.samples.evidence import SampleEvidence, sample_evidence
from vae.samples.quality import MEASURES


def found(model: Any, prior: Any, train: np.ndarray, valid: np.ndarray, seed: int = 0) -> SampleEvidence | None:
    return sample_evidence(model, NOISE, prior, train, valid, CPU, seed)


def fitted_to(train: np.ndarray) -> Mixture:
    mu, logvar = Far().encode(torch.from_numpy(train).permute(0, 3, 1, 2) / 255)
    return fit_gaussian(PrincipalAxes.of(mu.double().numpy(), logvar.double().numpy()))


def test_where_n_0_i_lies_elsewhere_its_samples_are_poor_and_those_of_the_fitted_prior_are_not() -> None:
    train, valid = images(400, 0), images(100, 1)
    result = found(Far(), fitted_to(train), train, valid)
    assert result is not None
    assert result.standard.precision.value < 0.1 < 0.6 < result.fitted.precision.value
    assert result.standard.frechet.value > 5 * result.fitted.frechet.value
    assert is_poor(result.standard, result) and not is_poor(result.fitted, result)
    # The moments alone are ½·2·(s² + 36 − 1 − ln s²) nats away, with s² = 16/12 of a uniform grey.
    s2 = 16 / 12
    assert result.aggregate_kl.value == pytest.approx(s2 + 36 - 1 - np.log(s2), rel=0.05)
    assert 0 < result.aggregate_kl.standard_error < 2


def test_the_certified_distance_is_that_of_the_validation_split() -> None:
    train, black = images(400, 0), np.zeros_like(images(100, 1))  # encoded to (2, 2), not about (6, 6)
    prior = fitted_to(train)
    result = found(Far(), prior, train, black)
    assert result is not None
    z = torch.full((1, 2), 2.0)
    difference = float(prior.log_prob(z) - StandardNormal(2).log_prob(z))
    assert result.aggregate_kl.value == pytest.approx(difference, abs=0.5)


def test_with_n_0_i_as_the_fitted_prior_both_are_the_same() -> None:
    train, valid = images(200, 0), images(60, 1)
    result = found(Far(), StandardNormal(2), train, valid)
    assert result is not None and result.standard == result.fitted
    assert (result.aggregate_kl.value, result.aggregate_kl.standard_error) == (0, 0)


def test_as_many_of_each_kind_and_the_same_at_every_call() -> None:
    """Of half the training images the others are reconstructed."""
    train, valid, model = images(301, 0), images(60, 1), Far()
    result = found(model, fitted_to(train), train, valid)
    assert result is not None and model.asked == [150] * 3
    for kind in (result.reconstructions, result.standard, result.fitted):
        assert (kind.real, kind.generated) == (150, 150)
    assert result == found(Far(), fitted_to(train), train, valid)
    assert result != found(Far(), fitted_to(train), train, valid, seed=1)


def test_reconstructions_of_other_images_are_as_near_as_images_get() -> None:
    """Of their own images they would be nearer than other images are: precision 1 and coverage 1."""
    train = images(400, 0)
    result = found(Far(), fitted_to(train), train, images(60, 1))
    assert result is not None
    assert 0.8 < result.reconstructions.coverage.value < 1
    for measure in MEASURES[:2]:
        assert getattr(result.reconstructions, measure).value > 0.85


@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_too_few_images_are_not_compared(count: int) -> None:
    assert found(Far(), StandardNormal(2), images(count, 0), images(40, 1)) is None
    assert found(Far(), StandardNormal(2), images(12, 0), images(40, 1)) is not None


def test_a_model_without_numbers_has_no_evidence() -> None:
    made = build(params()).eval()
    with torch.no_grad():
        made.posterior.weight.fill_(torch.nan)
    assert sample_evidence(made, NOISE, StandardNormal(3), TRAIN, VALID, CPU, 0) is None


def test_an_autoregressive_decoder_draws_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "DRAWN_PIXEL_BY_PIXEL", 20)
    for architecture, count in (("autoregressive", 20), ("conv", len(TRAIN) // 2)):
        made = build(params({"model.architecture": architecture})).eval()
        result = sample_evidence(made, NOISE, StandardNormal(3), TRAIN, VALID, CPU, 0)
        assert result is not None
        assert (result.fitted.real, result.fitted.generated, result.reconstructions.generated) == (count,) * 3


def test_it_leaves_no_mark_on_random_state_or_weights() -> None:
    made = build(params()).eval()
    before, state = {k: v.clone() for k, v in made.state_dict().items()}, torch.get_rng_state()
    sample_evidence(made, Likelihood("bernoulli"), StandardNormal(3), TRAIN, VALID, CPU, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
