"""Orientations of images, the symmetries of a square, each as likely as the others; and moves."""

import itertools

import numpy as np
import pytest
import torch

from vae.compute.augmentation import (
    ORIENTATIONS,
    each_oriented,
    oriented,
    random_orientations,
    random_shifts,
    shifted,
)

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


@pytest.mark.parametrize("most", [1, 3])
def test_a_moved_image_is_a_window_of_its_mirrored_border(most: int) -> None:
    down, right = (torch.arange(64) % (2 * most + 1) - most, torch.arange(64) % 2 - 1)
    found = shifted(IMAGES, down, right)
    for image, d, r, got in zip(IMAGES.numpy(), down.tolist(), right.tolist(), found.numpy(), strict=True):
        padded = np.pad(image, [(0, 0), (most, most), (most, most)], mode="reflect")
        np.testing.assert_array_equal(got, padded[:, most - d :, most - r :][:, :4, :4])


def test_all_moves_are_as_likely() -> None:
    draws = random_shifts(40_000, 2, torch.Generator().manual_seed(2))
    assert draws.shape == (2, 40_000)
    for direction in draws:
        share = np.bincount(direction + 2, minlength=5) / 40_000
        np.testing.assert_allclose(share, 1 / 5, atol=5 * np.sqrt(0.25 / 40_000))
