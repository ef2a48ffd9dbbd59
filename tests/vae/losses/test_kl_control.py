"""The controls of the rate against their equations, and that they reach their targets in a training."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.parameters import Changes, parse
from helpers.trainings import CPU, assert_same_bits, interrupted, params, run
from sklearn.datasets import load_digits

from vae.config.resolved import ResolvedKL, resolve
from vae.losses.kl_control import AVERAGED, GECO_RATE, KLControl
from vae.training.history import RATE_TOLERANCE
from vae.training.loop import train


def control(**kl: Any) -> KLControl:
    return KLControl(ResolvedKL(schedule="constant", **kl), pixels=10, device=torch.device("cpu"))


def update(c: KLControl, rate: float = 0.0, mse: float = 0.0) -> None:
    c.update(torch.tensor(rate, dtype=torch.float64), torch.tensor(mse, dtype=torch.float64))


def loss(c: KLControl, d: float, r: float, mse: float = 0.0, beta: float = 1.0) -> float:
    return float(c.loss(*(torch.tensor(value, dtype=torch.float64) for value in (d, r, mse)), beta))


def test_capacity_is_burgess_equation_8() -> None:
    c = control(max_weight=20.0, capacity=6.0)
    assert loss(c, d=3, r=4, beta=1) == 3 + 20 * abs(4 - 6)
    assert loss(c, d=3, r=4, beta=0.25) == 3 + 20 * abs(4 - 6 / 4)
    assert loss(c, d=3, r=4, beta=0) == 3 + 20 * 4
    assert c.effective_weight(0.1, None) == 20


def test_pi_steers_the_logarithm_of_the_weight_by_the_relative_error() -> None:
    c = control(target_kl=5.0, max_weight=2.0, min_weight=0.1, proportional_gain=0.3, integral_gain=0.2)
    total = 0.0
    for rate in (5.5, 6.0, 5.2, 4.9, 7.0, 30.0):
        error = min(rate / 5 - 1, 1)
        total += 0.2 * error
        expected = math.exp(total + 0.3 * error)
        assert 0.1 < expected < 2  # inside its bounds, so that the plain equations hold
        update(c, rate)
        assert c.effective_weight(9.0, None) == pytest.approx(expected)
        assert loss(c, d=3, r=4, beta=9.0) == pytest.approx(3 + 4 * expected, rel=1e-6)


@pytest.mark.parametrize(("rate", "bound"), [(100.0, 2.0), (0.0, 0.1)])
def test_the_integral_does_not_wind_up_at_a_bound(rate: float, bound: float) -> None:
    c = control(target_kl=5.0, max_weight=2.0, min_weight=0.1, integral_gain=0.01)
    for _ in range(1000):
        update(c, rate)
    before = float(c.state[1])
    assert before == pytest.approx(bound)
    for _ in range(60):  # the error changes sign: β leaves the bound at once
        update(c, 5.0 + math.copysign(1.0, 5.0 - rate))
    assert abs(math.log(float(c.state[1]) / before)) > 60 * 0.01 * 0.2 * 0.99


@pytest.mark.parametrize("highest", [30.0, 1e6])
@pytest.mark.parametrize("target", [5.0, 50.0, 500.0])
def test_the_same_gains_meet_any_target_in_a_few_hundred_steps_and_do_not_swing(target: float, highest: float) -> None:
    """On latents as linear theory has them, which follow the weight after some 20 steps."""
    eigenvalues = torch.logspace(0, -3, int(target), dtype=torch.float64) * 8 * math.e**2
    c, s, rates = control(target_kl=target, max_weight=highest), torch.tensor(1e3, dtype=torch.float64), []
    for _ in range(400):
        rates.append(float(0.5 * (eigenvalues / s).clamp_min(1).log().sum()))
        update(c, rates[-1])
        s *= (c.state[1] / s) ** (1 / 20)
    assert rates[-1] == pytest.approx(target, rel=0.02)
    assert all(rate == pytest.approx(target, rel=0.1) for rate in rates[250:])
    assert max(rates[100:]) < 1.5 * target


def test_geco_is_rezende_viola() -> None:
    def after(*errors: float) -> KLControl:
        c = control(reconstruction_target=0.1)
        for mse in errors:
            update(c, mse=mse)
        return c

    assert loss(after(), d=99, r=4, mse=0.05) == pytest.approx(4 + 1 * 10 * (0.05 - 0.01))  # λ = 1, N = 10
    missed, met = after(0.015), after(0.005)  # by half of κ²
    assert float(missed.state[1]) == pytest.approx(GECO_RATE * 0.5) == -float(met.state[1])
    assert float(after(0.015, 0.01).state[0]) == pytest.approx(AVERAGED * 0.5)  # the moving average remembers
    expected = 1 / (2 * 0.04 * math.exp(GECO_RATE * 0.5))
    assert missed.effective_weight(1, sigma=0.2) == pytest.approx(expected)


LONG = {"train.epochs": 100, "train.batch_size": 8}  # 800 steps
CAPACITY = {"kl.max_weight": 20.0, "train.epochs": 14}
PI = LONG | {"kl.target_kl": 5.0, "kl.max_weight": 50.0}
GECO = LONG | {"kl.reconstruction_target": 0.07, "objective.sigma": 0.1}


@pytest.mark.parametrize(
    ("changes", "column", "target"),
    [
        (CAPACITY | {"kl.capacity": 3.0}, "train/kl", pytest.approx(3.0, abs=0.7)),
        (CAPACITY | {"kl.capacity": 6.0}, "train/kl", pytest.approx(6.0, abs=0.7)),
        (PI, "train/kl", pytest.approx(5.0, abs=0.5)),
        (GECO, "valid/mse_sampled", pytest.approx(0.07**2, rel=0.3)),
    ],
)
def test_a_training_reaches_the_target_of_its_control(changes: Changes, column: str, target: Any) -> None:
    last = run(params(changes)).history[-1]
    assert last[column] == target
    assert changes is not PI or last["kl_weight"] > 2  # it had to hold the rate down


@pytest.mark.parametrize(("target", "highest"), [(5.0, 1e3), (20.0, 20.0), (40.0, 20.0)])
def test_the_digits_meet_a_target_in_a_usual_training(target: float, highest: float) -> None:
    images = (load_digits().images * 255 / 16).round().astype(np.uint8)[..., None]
    size = {"data.image_size": 8, "model.architecture": "mlp", "model.widths": [64]}
    p = resolve(parse(size | {"kl.target_kl": target, "kl.max_weight": highest}), steps_per_epoch=22)
    trained = train(p, images[:1439], images[1439:], CPU)
    assert [row["valid/kl"] for row in trained.history[-5:]] == pytest.approx([target] * 5, rel=0.1)
    kept = trained.history[trained.kept_epoch - 1]
    assert kept["valid/kl"] == pytest.approx(target, rel=RATE_TOLERANCE)


@pytest.mark.parametrize(("name", "target"), [("target_kl", 5.0), ("reconstruction_target", 0.1)])
def test_a_steered_training_resumes_to_the_same_bits(tmp_path: Path, name: str, target: float) -> None:
    p = params({f"kl.{name}": target, "kl.max_weight": 2.0, "objective.sigma": 0.1})
    assert_same_bits(interrupted(p, tmp_path / "state.pt", [], [3]), run(p))
