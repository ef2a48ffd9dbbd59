"""Orientations of images: the symmetries of a square, each as likely as the others."""

import itertools

import numpy as np
import pytest
import torch

from vae.compute.orientation import ORIENTATIONS, each_oriented, oriented, random_orientations

IMAGES = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_eight_are_those_of_a_square() -> None:
    """All different, one that changes nothing, and no further one by composition: the group D₄."""
    all_of_them = [oriented(IMAGES, number) for number in range(8)]
    assert torch.equal(all_of_them[0], IMAGES)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(all_of_them, 2))
    for first, second in itertools.product(range(8), repeat=2):
        composed = oriented(oriented(IMAGES, first), second)
        assert sum(torch.equal(composed, one) for one in all_of_them) == 1
    np.testing.assert_array_equal(all_of_them[4], np.rot90(IMAGES, 2, (2, 3)))


@pytest.mark.parametrize("count", ORIENTATIONS.values())
def test_every_image_gets_its_own(count: int) -> None:
    orientation = random_orientations(len(IMAGES), count, torch.Generator().manual_seed(1))
    assert set(orientation.tolist()) == set(range(count))
    found = each_oriented(IMAGES, orientation, count)
    for image, number, got in zip(IMAGES, orientation.tolist(), found, strict=True):
        assert torch.equal(got, oriented(image[None], number)[0])


@pytest.mark.parametrize("count", ORIENTATIONS.values())
def test_all_are_as_likely(count: int) -> None:
    draws = random_orientations(40_000, count, torch.Generator().manual_seed(2))
    share = np.bincount(draws, minlength=count) / len(draws)
    np.testing.assert_allclose(share, 1 / count, atol=5 * np.sqrt(0.25 / len(draws)))
