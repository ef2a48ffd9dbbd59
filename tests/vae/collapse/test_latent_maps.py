"""What is said of a map of latents: idle channels by name, no remedy that changes the map, a prior for a small one."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import CPU, TRAIN, run, unresolved
from helpers.trainings import params as tiny
from helpers.verdicts import evidence, measurement, params, predicted

from vae.collapse import remedies, restarts
from vae.collapse.diagnosis import judge
from vae.collapse.linear_theory import spectrum
from vae.collapse.pilot_curve import PilotCurve, curve_of
from vae.collapse.sample_rules import prior_mismatch
from vae.config.resolved import changed
from vae.models.vae import build
from vae.pilot import training
from vae.pilot.network import averaged, can_average
from vae.priors.standard import STANDARD

MAP: dict[str, Any] = {"model.architecture": "residual", "model.latent_dim": 16, "model.latent_shape": [4, 4, 4]}
PILOT = {"model.architecture": "residual", "model.latent_dim": 16, "model.latent_shape": [2, 2, 3]}


@pytest.mark.parametrize("kl", [20.0, 4.0])
def test_idle_channels_are_named(kl: float) -> None:
    """In a healthy model and in a partly collapsed one."""
    e = evidence(valid=measurement(kl, active=2))
    flat, spread = (judge(params(changes), e) for changes in ({}, MAP))
    assert flat.verdict == spread.verdict == ("healthy" if kl == 20 else "partly_collapsed")
    (said,) = set(spread.reasons) - set(flat.reasons)
    assert said.startswith("2 of 4 channels carry nothing") and said.endswith(": z2, z3")
    assert ("informative channels" in spread.summary) == (kl == 20)
    assert not any("carry nothing" in reason for reason in judge(params(MAP), evidence()).reasons)


def test_a_remedy_leaves_the_map_as_it_is() -> None:
    p = params(MAP)
    for remedy in (
        remedies.gentler(p, 20),
        remedies.simpler_latents(p, predicted()),
        remedies.gentler(params(MAP | {"model.batch_norm": False}), 1000),
    ):
        assert not {"model.latent_dim", "model.latent_shape", "kl.free_bits"} & remedy.keys()
        assert changed(p, remedy).model.latent_shape == (4, 4, 4)


def test_a_prior_is_fitted_to_a_small_map_alone_and_none_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    p = tiny(PILOT)
    trained = run(p)
    fitted = restarts.fitted_prior(p, trained, TRAIN, CPU)
    assert fitted.name != STANDARD and fitted.log_likelihood[fitted.name] > fitted.log_likelihood[STANDARD]
    monkeypatch.setattr("vae.config.sections.MOST_OF_FITTED_MAPS", 11)
    unfitted = restarts.fitted_prior(p, trained, TRAIN, CPU)
    assert unfitted.name == STANDARD and unfitted.log_likelihood == {}
    assert prior_mismatch(params(MAP), evidence()) is None


def test_many_latents_have_the_spectrum_of_as_many_images() -> None:
    """By the Gram matrix: what the covariance's own eigenvalues are."""
    images = np.random.default_rng(0).integers(0, 256, (30, 40, 60, 1), dtype=np.uint8)
    found = spectrum(images, 5000, bernoulli=False)
    x = images.reshape(30, -1) / 255
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(found.eigenvalues, singular**2 / 30, atol=1e-9)
    assert found.total == pytest.approx(found.eigenvalues.sum())
    few = spectrum(images, 20, bernoulli=False)
    np.testing.assert_allclose(few.eigenvalues, found.eigenvalues[:20], rtol=0.01)


LIKE_DIFFUSERS = {
    "model.architecture": "autoencoder_kl", "model.batch_norm": False, "model.attention": True,
    "model.widths": [4, 8, 8],
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, LIKE_DIFFUSERS])
def test_a_pilot_of_averages_has_the_same_map(changes: dict[str, Any]) -> None:
    latents = {"model.latent_shape": [8, 8, 3] if changes else [4, 4, 3]}
    p = unresolved(PILOT | {"data.image_size": 32, "model.widths": [4, 8, 8]} | latents | changes)
    for k in (1, 2):
        assert can_average(p, k)
        network = training.PilotNetwork(p, k)
        x, u = averaged(torch.rand(2, 1, 32, 32), k), torch.zeros(2)
        mu, _ = network.encode(x, u)
        assert mu.shape == (2, p.model.latent_dim) and network.vae.latent_map == build(p).latent_map
        output, _, _ = network(x, torch.randn_like(mu), u)
        assert output.shape == x.shape
        (output.sum() + mu.sum()).backward()
        assert all(w.grad is not None for modulation in network.modulations for w in modulation.parameters())


@pytest.mark.parametrize("changes", [{}, LIKE_DIFFUSERS])
def test_a_pilot_of_very_many_latents_keeps_means_of_neighbours(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = tiny(PILOT | changes)
    points = np.geomspace(0.01, 1, training.POINTS)
    known = spectrum(TRAIN, 12, bernoulli=False)
    network = training.PilotNetwork(p)
    torch.nn.init.normal_(network.vae.posterior.weight, std=0.5)

    def measured() -> PilotCurve:
        return training.measured(p, network, known, points, TRAIN, CPU)

    whole = measured()
    monkeypatch.setattr(training, "MOST_RATES", 5)
    few = measured()
    assert (whole.each, few.each, few.latents) == (1, 3, 12) and few.measured_rates.shape == (training.POINTS, 4)
    for s in (0.001, 0.02, 0.3, 2):
        assert len(few.rates(s)) == 12
    assert few.rates(0.02).sum() == pytest.approx(whole.rates(0.02).sum(), rel=1e-6)
    assert few.critical == whole.critical
    again = curve_of(few.facts() | {"images": known.images}, known.pixels)
    assert isinstance(again, PilotCurve)
    for name, value in dataclasses.asdict(few).items():
        if name != "spectrum":
            np.testing.assert_array_equal(getattr(again, name), value)
