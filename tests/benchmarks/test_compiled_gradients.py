"""The distances are those of the compiled loss; nothing is compiled here."""

from typing import Any

import pytest
import torch

from benchmarks.compiled import gradients as bench
from vae.losses.elbo import elbo_terms


def test_a_right_compilation_is_as_near_as_can_be_and_bf16_nearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    rounding, apart, _ = bench.distances({"architecture": "mlp", "widths": [16], "batch_norm": True})
    assert apart == 0 and 0 < rounding < 0.2


def test_a_wrong_one_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_distortion(*given: Any) -> Any:
        return elbo_terms(*given)._replace(distortion=torch.zeros(()))

    monkeypatch.setattr(torch, "compile", lambda function: without_distortion)
    _, apart, weight = bench.distances({"architecture": "mlp", "widths": [16]})
    assert apart > 0.25 and weight
