"""Maps of latents as features: means over squares of places that keep N(0, I) as it is."""

import numpy as np
import pytest

from vae.metrics.pooled import MOST, pooled


def test_a_vector_and_a_small_map_stay_as_they_are() -> None:
    z = np.random.default_rng(0).normal(size=(3, 48))
    assert pooled(z, None) is z
    np.testing.assert_array_equal(pooled(z, (3, 4, 4)), z)


@pytest.mark.parametrize("shape", [(4, 32, 32), (4, 64, 64), (16, 32, 32), (3, 24, 40), (2048, 4, 4)])
def test_a_large_map_becomes_few_numbers_of_the_same_distribution(shape: tuple[int, int, int]) -> None:
    c, h, w = shape
    z = np.random.default_rng(0).normal(size=(200, c * h * w))
    found = pooled(z, shape)
    assert len(found) == 200 and found.shape[1] <= max(MOST, c) and found.shape[1] % c == 0
    assert found.std() == pytest.approx(1, rel=0.02)


def test_squares_are_means_of_their_places() -> None:
    z = np.arange(4 * 64 * 64, dtype=np.float64).reshape(1, 4, 64, 64)
    found = pooled(z.reshape(1, -1), (4, 64, 64)).reshape(4, 16, 16)
    assert found[2, 3, 5] == pytest.approx(4 * z[0, 2, 12:16, 20:24].mean())
