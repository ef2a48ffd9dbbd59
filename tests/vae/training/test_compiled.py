"""A compiled loss with wrong gradients trains nothing."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.trainings import CPU, TRAIN, VALID, assert_same_bits, params, run
from torch import Tensor, nn

from vae.losses.elbo import Terms
from vae.training.compiled import wrong_gradient
from vae.training.loop import train

COMPILED = replace(CPU, compiled=True)
CASES: list[dict[str, Any]] = [
    {},
    {"model.batch_norm": False, "kl.target_kl": 3.0},
    {"objective.importance_samples_train": 2, "objective.sigma": 0.3},
]


def test_the_worst_weight_is_named_and_the_buffers_stay() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), torch.randn(8, 4)
    mean = model[1].running_mean.clone()

    def plain() -> Tensor:
        return model(x).square().mean()

    def wrong() -> Tensor:
        return plain() + 10 * model[2].weight.sum()

    def not_a_number() -> Tensor:
        return plain() * float("nan")

    def nearly() -> Tensor:
        return plain() * 1.1

    assert wrong_gradient(model, plain, plain) is None and wrong_gradient(model, nearly, plain) is None
    assert wrong_gradient(model, wrong, plain) == "2.weight"
    assert wrong_gradient(model, not_a_number, plain) == "0.weight"
    assert torch.equal(model[1].running_mean, mean)
    assert wrong_gradient(model, lambda: 0 * plain(), lambda: 0 * plain()) is None, "no gradient at all is none wrong"


def miscompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Right values, wrong gradients: those of the first term are left out."""

    def run(*arguments: Any) -> Any:
        first, *rest = terms = function(*arguments)
        return type(terms)(*[first.detach(), *rest]) if hasattr(terms, "_fields") else (first.detach() + rest[1], *rest)

    return run


@pytest.mark.parametrize("changes", CASES)
def test_a_miscompiled_loss_is_not_trained_with(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p = params(changes)
    monkeypatch.setattr(torch, "compile", miscompiled)
    with caplog.at_level(logging.WARNING):
        found = train(p, TRAIN, VALID, COMPILED)
    assert "torch.compile gets the gradient of" in caplog.text
    assert_same_bits(found, run(p))


@pytest.mark.parametrize("control", [{}, {"kl.target_kl": 2.0}, {"kl.reconstruction_target": 0.1}])
def test_a_wrong_gradient_of_the_rate_alone_is_noticed(
    control: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a control too, whose first weight comes with the first rate."""

    def without_the_rate(function: Callable[..., Terms]) -> Callable[..., Terms]:
        def run(*given: Any) -> Terms:
            terms = function(*given)
            return terms._replace(penalised_rate=terms.penalised_rate.detach())

        return run

    p = params({"objective.sigma": 0.3, "train.epochs": 1, **control})
    monkeypatch.setattr(torch, "compile", without_the_rate)
    with caplog.at_level(logging.WARNING):
        found = train(p, TRAIN, VALID, COMPILED)
    assert "torch.compile gets the gradient of" in caplog.text
    assert_same_bits(found, run(p))


@pytest.mark.parametrize("changes", CASES)
def test_a_right_one_changes_nothing(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    p, calls = params(changes), []
    monkeypatch.setattr(torch, "compile", lambda function: lambda *given: calls.append(1) or function(*given))
    assert_same_bits(train(p, TRAIN, VALID, COMPILED), run(p))
    assert "torch.compile" not in caplog.text
    assert len(calls) == 1 + p.train.epochs * p.train.steps_per_epoch(len(TRAIN))
