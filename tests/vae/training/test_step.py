"""What a step trains on, and how far it goes."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.parameters import Changes
from helpers.trainings import CPU, RECIPE, TRAIN, params, run
from torch.nn import functional

from vae.compute.augmentation import oriented
from vae.config.errors import InputError
from vae.models.vae import build
from vae.training.loop import Epoch
from vae.training.step import draw

IMAGES = torch.from_numpy(TRAIN)


def test_flips_turn_left_and_right_only() -> None:
    p = params({"data.augment": "flip"})
    x, noise = draw(p, IMAGES[:64], 3, CPU.device)
    plain, same_noise = draw(params(), IMAGES[:64], 3, CPU.device)
    assert torch.equal(noise, same_noise) and noise.shape == (1, 64, 3)
    flipped = [torch.equal(a, b.flip(2)) and not torch.equal(a, b) for a, b in zip(x, plain, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(x, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 16 < sum(flipped) < 48
    assert not torch.equal(draw(p, IMAGES[:64], 4, CPU.device)[0], x)


def test_symmetries_of_a_square_are_all_drawn() -> None:
    drawn, _ = draw(params({"data.augment": "dihedral"}), IMAGES[:64], 3, CPU.device)
    plain, _ = draw(params(), IMAGES[:64], 3, CPU.device)
    found = [
        [number for number in range(8) if torch.equal(a, oriented(b[None], number)[0])]
        for a, b in zip(drawn, plain, strict=True)
    ]
    assert all(found) and {number for numbers in found for number in numbers} == set(range(8))


def test_shifts_move_each_image_on_its_own() -> None:
    p = params({"data.shift": 2})
    drawn, again, later = (draw(p, IMAGES[:64], step, CPU.device)[0] for step in (3, 3, 4))
    plain, _ = draw(params(), IMAGES[:64], 3, CPU.device)
    assert torch.equal(drawn, again) and not torch.equal(drawn, later)
    found = []
    for a, b in zip(drawn, plain, strict=True):
        padded = functional.pad(b, (2, 2, 2, 2), mode="reflect")
        windows = padded.unfold(1, b.shape[1], 1).unfold(2, b.shape[2], 1)  # (C, 5, 5, H, W)
        found.append([(i, j) for i in range(5) for j in range(5) if torch.equal(windows[:, i, j], a)])
    assert all(found) and len({place for places in found for place in places}) > 15


def test_dynamic_binarisation_draws_anew_at_every_step() -> None:
    p = params({"data.binarise": "dynamic", "objective.likelihood": "bernoulli"})
    images = torch.from_numpy(np.tile(TRAIN[:1], (4000, 1, 1, 1)))
    drawn, again, later = (draw(p, images, step, CPU.device)[0] for step in (0, 0, 1))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    expected = torch.from_numpy(TRAIN[0, ..., 0] / 255).float()
    torch.testing.assert_close(drawn.mean(0)[0], expected, atol=0.04, rtol=0)
    assert torch.equal(again, drawn) and not torch.equal(later, drawn)


def test_the_noise_is_of_the_step_the_purpose_and_each_sample() -> None:
    p = params({"objective.importance_samples_train": 2, "objective.sigma": 0.3})
    noises = [draw(p, IMAGES[:4], *which)[1] for which in ((0, CPU.device), (1, CPU.device), (0, CPU.device, "a."))]
    assert noises[0].shape == (2, 4, 3)
    assert len({float(sample[0, 0]) for noise in noises for sample in noise}) == 6


@pytest.mark.parametrize("recipe", [{}, RECIPE])
def test_gradient_clipping_acts(recipe: Changes) -> None:
    start = build(params()).posterior.weight

    def moved(clip: float | None) -> float:
        changes = {"train.gradient_clip": clip, "train.epochs": 1, "train.weight_decay": 0.0}
        ends: list[float] = []  # before the latents are standardised

        def measured(epoch: Epoch) -> None:
            ends.append(float((epoch.model.posterior.weight - start).detach().norm()))

        run(params(recipe | changes), on_epoch=measured)
        return ends[0]

    assert moved(1e-12) < 0.1 * moved(None)  # the epsilons of both optimisers make tiny gradients tiny steps


@pytest.mark.parametrize("where", ["step.ELBOLoss.__call__", "validation.measure"])
def test_a_gpu_without_memory_names_the_parameter(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def exhausted(*arguments: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(f"vae.training.{where}", exhausted)
    with pytest.raises(InputError, match=r"train\.batch_size = 16 needs more memory .* try 8, or smaller"):
        run(params())
