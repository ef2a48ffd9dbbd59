"""The aggressive encoder phase against algorithm 1 of He 2019, written out by hand."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from helpers.trainings import CPU, STEPS, TRAIN, VALID, params, run
from torch.distributions import Normal, kl_divergence

from vae.compute.batches import epoch_order
from vae.metrics.measurement import encode
from vae.metrics.mutual_information import MutualInformation, mutual_information
from vae.models.vae import build
from vae.training import aggressive
from vae.training.aggressive import AVERAGED, MOST_SUB_STEPS, Phase, converge, halves, random_batch
from vae.training.loop import Epoch
from vae.training.step import draw

AGGRESSIVE: dict[str, Any] = {"train.aggressive_encoder": True, "kl.schedule": "constant"}


@pytest.mark.parametrize(
    ("averages", "made"),
    [
        ([5.0, 4.0, 3.0, 3.0], 40),
        ([5.0, 4.0, 4.5, 1.0], 30),
        ([1.0, 2.0], 20),
        ([math.nan], 10),
        ([3.0, math.nan], 20),
        ([-float(i) for i in range(50)], MOST_SUB_STEPS),
    ],
)
def test_sub_steps_end_when_their_average_loss_stops_improving(averages: list[float], made: int) -> None:
    calls: list[int] = []

    def sub_step(number: int) -> torch.Tensor:
        calls.append(number)
        wobble = 0.3 * (-1) ** number  # single losses go up and down
        return torch.tensor(averages[number // AVERAGED] + wobble)

    assert converge(sub_step) == made
    assert calls == list(range(made))


def test_the_phase_lasts_while_mutual_information_climbs() -> None:
    first = Phase(True).after(MutualInformation(0.0, 0.1, None))
    assert first == Phase(True, 0.0)
    assert first.after(MutualInformation(0.2, 0.1, None)) == Phase(True, 0.2)
    for value in (0.0, -0.1, math.nan):
        assert not first.after(MutualInformation(value, 0.1, None)).on
    assert not first.after(MutualInformation(None, None, 9.2)).on
    assert not Phase(False, 0.0).after(MutualInformation(0.2, 0.1, None)).on


@pytest.mark.parametrize("architecture", ["conv", "residual", "mlp", "gated_mlp", "autoregressive"])
def test_every_trained_parameter_is_in_one_half(architecture: str) -> None:
    changes = {"model.mean_batch_norm": 0.5, "objective.sigma": "learned"}
    model = build(params({**changes, "model.architecture": architecture}))
    phi, theta = (set(half) for half in halves(model))
    assert not phi & theta
    assert phi | theta == {w for w in model.parameters() if w.requires_grad}
    assert theta == {model.log_sigma, *(w for w in model.decoder.parameters() if w.requires_grad)}


def test_batches_of_sub_steps_differ_and_follow_the_seed() -> None:
    drawn = {tuple(random_batch(0, step, sub, 70, 16).tolist()) for step in range(3) for sub in range(3)}
    assert len(drawn) == 9
    assert all(len(set(batch)) == 16 for batch in drawn)
    assert torch.equal(random_batch(0, 1, 2, 70, 16), random_batch(0, 1, 2, 70, 16))
    assert not torch.equal(random_batch(1, 1, 2, 70, 16), random_batch(0, 1, 2, 70, 16))


def decaying(half: list[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """The weights of layers decay, biases do not."""
    layers, biases = ([w for w in half if (w.dim() > 1) is layer] for layer in (True, False))
    return [{"params": layers, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]


def test_two_steps_are_those_of_algorithm_1() -> None:
    """Two optimisers, one for each half, and a loss by torch.distributions."""
    p = params({
        **AGGRESSIVE, "train.epochs": 1, "train.batch_size": 35, "model.batch_norm": False, "objective.sigma": 0.2,
        "kl.max_weight": 0.7, "train.gradient_clip": None, "train.weight_decay": 0.1,
    })  # fmt: skip
    images, model = torch.from_numpy(TRAIN), build(p)
    phi, theta = halves(model)
    encoder, decoder = (torch.optim.AdamW(decaying(half, 0.1), lr=3e-3) for half in (phi, theta))

    def descend(batch: tuple[torch.Tensor, torch.Tensor], optimiser: torch.optim.Optimizer) -> float:
        x, noise = batch
        mu, logvar = model.encode(x)
        posterior = Normal(mu, (0.5 * logvar).exp())
        z = mu + posterior.scale * noise[0]
        elbo = Normal(model.decode(z), 0.2).log_prob(x).flatten(1).sum(1)
        elbo = elbo - 0.7 * kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
        model.zero_grad()
        (-elbo.mean()).backward()
        optimiser.step()
        return -float(elbo.detach().mean())

    made = []
    for step in range(2):
        before, sub = math.inf, 0
        while sub < 100:
            losses = []
            for _ in range(10):
                chosen = random_batch(0, step, sub, 70, 35)
                batch = draw(p, images[chosen], step, CPU.device, f"aggressive{sub}.")
                losses.append(descend(batch, encoder))
                sub += 1
            if sum(losses) / 10 >= before:
                break
            before = sum(losses) / 10
        made.append(sub)
        order = epoch_order(0, 0, 70)[35 * step :][:35]
        descend(draw(p, images[order], step, CPU.device), decoder)

    found: dict[str, torch.Tensor] = {}  # before the latents are standardised
    run(p, on_epoch=lambda epoch: found.update(copy.deepcopy(epoch.model.state_dict())))
    assert min(made) > 10
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=2e-4)


def test_when_the_phase_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    p = params({**AGGRESSIVE, "kl.max_weight": 12.0, "train.epochs": 12, "train.on_collapse": "continue"})
    made: list[int] = []
    monkeypatch.setattr(aggressive, "converge", lambda sub_step: made.append(converge(sub_step)))
    seen: list[tuple[float | None, int]] = []

    def look(epoch: Epoch) -> None:
        seen.append((mutual_information(*encode(epoch.model, VALID, CPU), p.seed).value, len(made)))

    run(p, on_epoch=look)
    information, steps = zip(*seen, strict=True)
    pairs = enumerate(itertools.pairwise(information), 2)
    last = next(epoch for epoch, (before, now) in pairs if now is None or now <= before)
    assert 1 < last < 12
    assert list(steps) == [STEPS * min(epoch, last) for epoch in range(1, 13)]
    assert caplog.messages == [f"the aggressive encoder phase ends with epoch {last}"]
