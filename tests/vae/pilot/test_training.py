"""A pilot finds the curve of images whose curve is known, the same bits each time, for every kind of training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import CPU, TRAIN, Interrupted, unresolved

from benchmarks.case_images import factors
from vae.collapse import linear_theory
from vae.collapse.linear_theory import Spectrum
from vae.collapse.pilot_curve import PilotCurve
from vae.config.parameters import Parameters
from vae.pilot import training


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS", 6)
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)


def learnt(p: Parameters, images: np.ndarray = TRAIN, **more: Any) -> PilotCurve:
    pilot = training.learn(p, linear_theory.spectrum_for(p, images), images, CPU, **more)
    assert pilot is not None
    return pilot.curve


def assert_same(one: PilotCurve, other: PilotCurve) -> None:
    for name in ("thresholds", "measured_rates", "measured_error"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_it_finds_the_curve_of_a_linear_model() -> None:
    """Orthogonal patterns times N(0, 1), and noise: there a deep VAE can do no better than linear theory."""
    images = factors(5, 2000)
    p = unresolved(
        {"data.image_size": 16, "model.architecture": "mlp", "model.widths": [64], "model.latent_dim": 5,
         "train.batch_size": 64}
    )  # fmt: skip
    curve, theory = learnt(p, images), linear_theory.spectrum_for(p, images)
    # All five latents die at one threshold, near which a network is less decided than theory.
    middle = [s for s in curve.thresholds if 3 < theory.rates(s).sum() < 12]
    assert len(middle) > 15
    for s in middle:
        assert curve.rates(s).sum() == pytest.approx(theory.rates(s).sum(), rel=0.15)
        assert curve.error(np.array([s]))[0] == pytest.approx(theory.error(np.array([s]))[0], rel=0.1)


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective.likelihood": "bernoulli", "data.binarise": "dynamic"},
        {"objective.reduction": "mean", "data.augment": "flip"},
        {"model.architecture": "autoregressive"},
        {"model.architecture": "gated_mlp", "model.prior": "vamp"},
        {"kl.target_kl": 2.0, "objective.sigma": "learned", "model.prior": "flow"},
        {"objective.sigma": 0.2, "objective.importance_samples_train": 3, "model.mean_batch_norm": 0.5},
    ],
)
def test_every_kind_of_training_has_one_and_it_has_the_same_bits_after_an_interruption(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    p = unresolved(changes)
    curve = learnt(p)
    assert curve.measured_rates.shape == (training.POINTS, p.model.latent_dim)
    assert np.isfinite(curve.measured_rates).all() and (curve.measured_error > 0).all()

    def stop(step: int) -> None:
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        learnt(p, checkpoint_path=tmp_path / "pilot.pt", on_step=stop)
    done: list[int] = []
    assert_same(learnt(p, checkpoint_path=tmp_path / "pilot.pt", on_step=done.append), curve)
    assert done == [5, 6]
    assert_same(learnt(p, checkpoint_path=tmp_path / "pilot.pt", on_step=done.append), curve)
    assert done == [5, 6]


@pytest.mark.usefixtures("_short")
def test_a_checkpoint_that_cannot_be_written_is_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert_same(learnt(unresolved(), checkpoint_path=tmp_path / "file" / "pilot.pt"), learnt(unresolved()))
    assert "no checkpoint of the pilot" in caplog.text


@pytest.mark.usefixtures("_short")
def test_another_seed_is_another_pilot() -> None:
    assert (learnt(unresolved()).measured_rates != learnt(unresolved({"seed": 1})).measured_rates).any()


def test_images_that_are_all_the_same_have_none() -> None:
    same = np.repeat(TRAIN[:1], 40, axis=0)
    p = unresolved()
    assert training.learn(p, linear_theory.spectrum_for(p, same), same, CPU) is None


@pytest.mark.parametrize("bernoulli", [False, True])
def test_the_thresholds_reach_from_the_best_variance_to_the_last_latent(bernoulli: bool) -> None:
    spectrum = Spectrum(np.array([6.0, 3.0, 1.5]), 12.0, 256, 1000)
    found = training.thresholds(spectrum, bernoulli)
    assert found is not None and found[-1] > 6.0 and (np.diff(found) > 0).all()
    assert found[0] < (1.0 if bernoulli else 12.0 / 256)


def test_it_is_asked_for_where_it_is_cheap_beside_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SMALL_FLOPS", 0)
    long, short = (unresolved({"train.epochs": epochs, "preflight.pilot": "auto"}) for epochs in (10_000, 1))
    assert training.is_asked(long, 1000) and not training.is_asked(short, 1000)
    monkeypatch.setattr(training, "SMALL_FLOPS", 1e12)
    assert training.is_asked(short, 1000)  # a matter of seconds
    assert not training.is_asked(unresolved({"preflight.pilot": False}), 1000)
    monkeypatch.setattr(training, "SMALL_FLOPS", 0)
    assert training.is_asked(unresolved({"train.epochs": 1, "preflight.pilot": True}), 1000)


def test_it_sees_averages_where_it_would_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"data.image_size": 64, "model.widths": [32, 64, 128, 256], "preflight.pilot": "auto"}
    long, short = (unresolved(changes | {"train.epochs": epochs}) for epochs in (100_000, 1))
    assert training.averaging(long, 1000) == 1 and training.is_asked(long, 1000)
    assert training.averaging(short, 1000) == 4 and training.is_asked(short, 1000)  # a matter of seconds
    monkeypatch.setattr(training, "SMALL_FLOPS", 0)
    assert training.averaging(short, 1000) == 4 and not training.is_asked(short, 1000)


class Constant(torch.nn.Module):
    """Decodes grey, whatever the image; its latents are those of N(0, 1)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k, self.vae = k, SimpleNamespace(latent_dim=2)

    def forward(self, x: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.full_like(x, 0.5), torch.zeros_like(noise), torch.zeros_like(noise)


def test_what_is_finer_than_the_averages_is_an_error_that_stays() -> None:
    """An error of averages counts for all their pixels, so that both add up to that of the mean image."""
    random = np.random.default_rng(0)
    coarse, fine = random.uniform(0.2, 0.8, (400, 4, 4, 1)), random.uniform(-0.2, 0.2, (400, 8, 8, 1))
    images = np.rint(255 * (coarse.repeat(2, 1).repeat(2, 2) + fine)).astype(np.uint8)
    p = unresolved()
    spectrum = linear_theory.spectrum_for(p, images)
    for k in (1, 2):
        found = training.measured(p, Constant(k), spectrum, np.array([0.1, 1.0]), images, CPU)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.measured_error, spectrum.total, rtol=0.02)


def test_all_that_is_asked_for_is_a_curve() -> None:
    p = unresolved({"preflight.pilot": False})
    spectrum = linear_theory.spectrum_for(p, TRAIN)
    assert training.curve_of(p, spectrum, TRAIN) is spectrum
