import itertools

import torch

from vae.compute.random import generator


def test_a_generator_is_for_one_purpose_at_one_step() -> None:
    uses = list(itertools.product((0, 1), ("noise", "flip"), (0, 1, 10)))
    first, again = ([tuple(torch.randn(4, generator=generator(*use)).tolist()) for use in uses] for _ in range(2))
    assert first == again and len(set(first)) == len(uses)
