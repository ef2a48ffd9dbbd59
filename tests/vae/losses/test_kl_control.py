"""The controls of the rate against their equations, and that they reach their targets in a training."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainings import TRAIN, VALID, params

from vae.compute import devices
from vae.config.errors import InputError
from vae.config.parameters import KL, Parameters
from vae.losses import kl_control
from vae.training import loop
from vae.training.loop import Epoch, Trained

CPU = torch.device("cpu")


def kl(**values: Any) -> KL:
    return KL.model_validate({"schedule": "constant", "max_weight": 1.0, "annealing_epochs": 0, **values})


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def loss(
    k: KL, state: torch.Tensor, *, d: float, r: float, mse: float = 0.0, beta: float = 0.5, share: float = 1
) -> float:
    return float(kl_control.loss(k, state, tensor(d), tensor(r), tensor(mse), tensor(beta), share, pixels=10))


def test_a_schedule_alone_weighs_the_rate() -> None:
    assert loss(kl(), kl_control.start(kl(), CPU), d=3, r=4, beta=0.5) == 5


def test_capacity_is_burgess_equation_8() -> None:
    k = kl(max_weight=20.0, capacity=6.0)
    state = kl_control.start(k, CPU)
    assert loss(k, state, d=3, r=4, share=1) == 3 + 20 * abs(4 - 6)
    assert loss(k, state, d=3, r=4, share=0) == 3 + 20 * 4
    assert kl_control.effective_weight(k, state, 0.1, None) == 20


def test_pi_is_shao_equations_9_to_11() -> None:
    k = kl(target_kl=5.0, max_weight=2.0, min_weight=0.1, proportional_gain=0.3, integral_gain=0.2)
    state, total = kl_control.start(k, CPU), 0.0
    for rate in (5.5, 6.0, 5.2, 4.9, 7.0):
        error = 5 - rate
        total -= 0.2 * error
        expected = 0.3 / (1 + math.exp(error)) + total + 0.1
        assert 0.1 < expected < 2  # inside its bounds, so that the plain equations hold
        state = kl_control.update(k, state, tensor(rate), tensor(0.0))
        assert float(state[1]) == pytest.approx(expected)
        assert loss(k, state, d=3, r=4) == pytest.approx(3 + 4 * expected, rel=1e-6)


@pytest.mark.parametrize(("rate", "bound"), [(100.0, 2.0), (0.0, 0.1)])
def test_the_integral_does_not_wind_up_at_a_bound(rate: float, bound: float) -> None:
    k = kl(target_kl=5.0, max_weight=2.0, min_weight=0.1, integral_gain=0.01)
    state = kl_control.start(k, CPU)
    for _ in range(1000):
        state = kl_control.update(k, state, tensor(rate), tensor(0.0))
    assert float(state[1]) == pytest.approx(bound)
    turned = 5.0 + (5.0 - rate) / abs(5.0 - rate)  # the error changes sign: β leaves the bound at once
    before = float(state[1])
    for _ in range(60):
        state = kl_control.update(k, state, tensor(turned), tensor(0.0))
    assert abs(float(state[1]) - before) > 0.3


def test_geco_is_rezende_viola() -> None:
    k = kl(reconstruction_target=0.1)
    state = kl_control.start(k, CPU)
    assert loss(k, state, d=99, r=4, mse=0.05) == pytest.approx(4 + 1 * 10 * (0.05 - 0.01))  # λ = 1, N = 10
    higher = kl_control.update(k, state, tensor(0), tensor(0.015))
    assert float(higher[1]) == pytest.approx(kl_control.GECO_RATE * 0.5)  # missed by half of κ²
    lower = kl_control.update(k, state, tensor(0), tensor(0.005))
    assert float(lower[1]) == pytest.approx(-kl_control.GECO_RATE * 0.5)
    again = kl_control.update(k, higher, tensor(0), tensor(0.01))  # the moving average remembers
    assert float(again[0]) == pytest.approx(kl_control.AVERAGED * 0.5)
    assert kl_control.effective_weight(k, higher, 1, sigma=0.2) == pytest.approx(
        1 / (2 * 0.04 * math.exp(float(higher[1])))
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"capacity": 3.0, "target_kl": 2.0}, "exclude one another"),
        ({"target_kl": 2.0, "reconstruction_target": 0.1}, "exclude one another"),
        ({"target_kl": 2.0, "free_bits": 0.1}, "free bits exclude"),
        ({"target_kl": 2.0, "min_weight": 1.0}, "min_weight = 1 must be below max_weight = 1"),
        ({"free_bits": 0.1, "free_bits_total": 1.0}, "set one of them to 0"),
    ],
)
def test_controls_that_exclude_one_another_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        params({f"kl.{name}": value for name, value in values.items()})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kl.reconstruction_target": 0.1}, "GECO.*needs a Gaussian likelihood whose objective.sigma"),
        ({"kl.capacity": 3.0, "objective.reduction": "mean"}, "they need objective.reduction = sum"),
        ({"objective.importance_samples_train": 5}, "importance_samples_train = 5 needs an objective.sigma"),
        (
            {"objective.importance_samples_train": 5, "objective.sigma": 0.1, "kl.free_bits": 0.1},
            "goes with a schedule alone",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        params(values)


def trained(values: dict[str, Any]) -> list[dict[str, float]]:
    return train(params(values)).history


def test_capacity_holds_the_rate_in_a_training() -> None:
    rates = [
        trained({"kl.capacity": c, "kl.max_weight": 20.0, "kl.annealing_epochs": 2, "train.epochs": 14})[-1][
            "train/kl"
        ]
        for c in (3.0, 6.0)
    ]
    assert rates == pytest.approx([3.0, 6.0], abs=0.7)


LONG = {"train.epochs": 100, "train.batch_size": 8}  # 800 steps


def test_pi_holds_the_rate_in_a_training() -> None:
    history = trained({"kl.target_kl": 5.0, "kl.max_weight": 50.0, "kl.integral_gain": 0.02, **LONG})
    assert history[-1]["train/kl"] == pytest.approx(5.0, abs=0.5)
    assert history[-1]["kl_weight"] > 2  # it had to hold the rate down


def test_geco_reaches_its_reconstruction_in_a_training() -> None:
    loose, tight = (
        trained({"kl.reconstruction_target": target, "objective.sigma": 0.1, **LONG})[-1]
        for target in (0.1, 0.07)
    )
    assert loose["valid/mse_sampled"] == pytest.approx(0.1**2, rel=0.3)
    assert tight["valid/mse_sampled"] == pytest.approx(0.07**2, rel=0.3)
    assert tight["train/kl"] > loose["train/kl"] + 0.5


def test_a_steered_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    for name, target in (("target_kl", 5.0), ("capacity", 5.0), ("reconstruction_target", 0.1)):
        p = params({f"kl.{name}": target, "kl.max_weight": 2.0, "objective.sigma": 0.1, "train.epochs": 5})
        whole = train(p)

        def interrupt(epoch: Epoch) -> None:
            if epoch.row["epoch"] == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(p, tmp_path / name, interrupt)
        resumed = train(p, tmp_path / name)
        assert resumed.history == whole.history
        assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


def train(
    p: Parameters, path: Path | None = None, on_epoch: Callable[[Epoch], None] = lambda e: None
) -> Trained:
    return loop.train(
        p, TRAIN, VALID, devices.choose(p.train), path, on_epoch=on_epoch, on_message=lambda line: None
    )


def weights(trained: Trained) -> list[torch.Tensor]:
    return list(trained.model.state_dict().values())
