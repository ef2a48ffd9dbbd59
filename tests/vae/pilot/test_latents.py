"""The curve over the number of latents: what is dropped costs nothing, and a number that suffices is recommended."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import CPU, TRAIN, Interrupted, unresolved

from benchmarks.case_images import factors
from vae.collapse.linear_theory import Spectrum, spectrum_for
from vae.compute.batches import to_pixels
from vae.config.beta_elbo import BetaELBO
from vae.losses.elbo import kl_per_latent
from vae.models.likelihood import gaussian_log_prob
from vae.pilot import latents, training
from vae.pilot.latents import LatentDim
from vae.pilot.network import NestedNetwork

FACTORS: dict[str, Any] = {
    "data.image_size": 16, "model.architecture": "mlp", "model.widths": [64], "model.latent_dim": 8,
    "train.batch_size": 64, "objective.sigma": 0.08,
}  # fmt: skip


@pytest.mark.parametrize("architecture", ["conv", "mlp", "autoregressive"])
@torch.no_grad()
def test_latents_that_are_dropped_cost_nothing_and_say_nothing(architecture: str) -> None:
    network = NestedNetwork(unresolved({"model.architecture": architecture})).eval()
    network.vae.posterior.weight.normal_(0, 1, generator=torch.Generator().manual_seed(0))
    x, noise = to_pixels(TRAIN[:6], torch.device("cpu")), torch.zeros(6, 3)
    network.latents = 2
    output, mu, logvar = network(x, noise, torch.zeros(6))
    rates = kl_per_latent(mu, logvar)
    assert (rates[:, :2] > 0).all() and (rates[:, 2] == 0).all()
    noise[:, 2] = 5.0
    assert torch.equal(network(x, noise, torch.zeros(6))[0], output)
    noise[:, 1] = 5.0
    assert not torch.equal(network(x, noise, torch.zeros(6))[0], output)


@torch.no_grad()
def test_it_learns_all_numbers_of_latents_at_once() -> None:
    network = NestedNetwork(unresolved({"model.latent_dim": 7})).eval()
    x = to_pixels(np.repeat(TRAIN[:1], 64, axis=0), torch.device("cpu"))
    mu = network(x, torch.zeros(64, 7), torch.zeros(64))[1]
    left = (mu != 0).sum(1)
    assert (left.diff() >= 0).all() and set(left.tolist()) == set(range(1, 8))
    assert (left == 1).sum() == pytest.approx(64 * math.log(2) / math.log(8), abs=1)


def test_five_latents_are_recommended_for_five_factors() -> None:
    """Orthogonal patterns times N(0, 1), and noise below σ: a sixth latent has nothing to say."""
    images = factors(5, 2000)
    p = unresolved(FACTORS)
    curves = latents.learn(p, images, CPU)
    assert list(curves) == [2, 4, 6, 8, 12, 16, 24, 32]
    rows = latents.compared(p, 1.0, curves)
    assert latents.recommended(rows).latent_dim in (6, 8)  # of those that were tried
    theory = latents.compared(p, 1.0, {n: spectrum_for(latents.with_latents(p, n), images) for n in curves})
    assert latents.recommended(theory).latent_dim == 6
    np.testing.assert_allclose([row.rate for row in rows], [row.rate for row in theory], rtol=0.15)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective.likelihood": "bernoulli", "data.binarise": "dynamic"},
        {"model.architecture": "autoregressive"},
        {"objective.reduction": "mean"},
        {"kl.target_kl": 2.0},
        {"kl.reconstruction_target": 0.1, "objective.sigma": "learned"},
    ],
)
def test_it_runs_for_every_kind_of_training_and_repeats_after_an_interruption(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STEPS", 6)
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    p = unresolved(changes)
    if p.model.architecture != "autoregressive":
        assert latents.learn(p, TRAIN, CPU) == {}  # nothing was learnt in six steps
    monkeypatch.setattr(latents, "has_died", lambda p, curve: False)
    rows = latents.compared(p, 1.0, latents.learn(p, TRAIN, CPU))
    assert [row.latent_dim for row in rows] == [1, 2, 3, 4, 6, 9, 12]
    assert all(math.isfinite(row.gain) for row in rows)
    assert [row.gain for row in rows] == sorted(row.gain for row in rows)
    assert rows[2].operations == 1 < rows[-1].operations

    def stop(step: int) -> None:
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        latents.learn(p, TRAIN, CPU, tmp_path / "latents.pt", stop)
    done: list[int] = []
    resumed = latents.learn(p, TRAIN, CPU, tmp_path / "latents.pt", done.append)
    assert done == [5, 6] and latents.compared(p, 1.0, resumed) == rows


def test_the_numbers_are_those_that_the_images_can_tell_apart() -> None:
    assert latents.tried(unresolved({"model.latent_dim": 16}), 1000) == [4, 8, 12, 16, 24, 32, 48, 64]  # of 64 pixels
    assert latents.tried(unresolved({"model.latent_dim": 16}), 80) == [4, 8, 12, 16]
    assert latents.tried(unresolved({"model.latent_dim": 100}), 80) == [100]
    assert latents.tried(unresolved({"model.latent_dim": 1}), 80) == [1, 2, 3, 4]


def test_images_that_are_all_the_same_have_none() -> None:
    assert latents.learn(unresolved(), np.repeat(TRAIN[:1], 40, axis=0), CPU) == {}


def test_more_latents_never_do_worse() -> None:
    good, bad = (Spectrum(np.array([value, 0.5]), 3.0, 64, 100) for value in (2.0, 0.6))
    rows = latents.compared(unresolved({"model.latent_dim": 2}), 1.0, {2: good, 4: bad})
    assert (rows[1].rate, rows[1].distortion, rows[1].gain) == (rows[0].rate, rows[0].distortion, rows[0].gain)


def test_the_objective_is_the_elbo_with_a_weighted_rate() -> None:
    at_sigma = BetaELBO("gaussian", 0.3, 2.0, 1.0, 16)
    assert latents.objective(at_sigma, 1.7, 5.0) == pytest.approx(
        10 - float(gaussian_log_prob(torch.tensor(1.7, dtype=torch.float64), 16, 0.3**2))
    )
    optimal = BetaELBO("gaussian", "optimal", 2.0, 1.0, 16)
    assert latents.objective(optimal, 1.7, 5.0) == pytest.approx(
        10 - float(gaussian_log_prob(torch.tensor(1.7, dtype=torch.float64), 16, 1.7 / 16))
    )
    assert latents.objective(BetaELBO("bernoulli", "optimal", 2.0, 1.0, 16), 30.0, 5.0) == 40


@pytest.mark.parametrize(
    ("gains", "now", "said"),
    [
        ((0, 0, 0, 0), 4, "4: by the latents' pilot no number of them gains a nat at this KL weight"),
        ((10, 94, 99.5, 100), 8, "8 is recommended by the latents' pilot: more gain next to nothing"),
        ((10, 99.5, 99.9, 100), 8, "4 would do in place of 8: by the latents' pilot it costs 0.4 nats of 99.9"),
        ((10, 80, 99.5, 100), 4, "8 in place of 4 would gain 19.5 nats of the objective by the "
         "latents' pilot, for 1.5 times the operations"),
        ((10, 50, 70, 100), 4, "16 or more in place of 4 would gain 50 nats of the objective by the "
         "latents' pilot, for 2 times the operations"),
    ],
)  # fmt: skip
def test_the_advice_in_words(gains: tuple[float, ...], now: int, said: str) -> None:
    numbers, operations = (2, 4, 8, 16), (0.9, 1.0, 1.5, 2.0)
    rows = [LatentDim(n, 1.0, 0.1, gain, ops) for n, gain, ops in zip(numbers, gains, operations, strict=True)]
    assert latents.advice(unresolved({"model.latent_dim": now}), 1.0, rows) == f"model.latent_dim = {said}"


def test_of_a_mean_loss_the_weight_grows_with_the_latents() -> None:
    rows = [LatentDim(n, 1.0, 0.1, gain, 1.0) for n, gain in ((4, 50.0), (8, 100.0), (16, 101.0))]
    p = unresolved({"model.latent_dim": 4, "objective.reduction": "mean"})
    assert "model.latent_dim = 8 (and kl.max_weight = 0.02) in place of 4" in latents.advice(p, 0.01, rows)
