from functools import partial

import numpy as np
import pytest
from helpers import data_sets

from vae.validation import fingerprints
from vae.validation.fingerprints import fingerprint, near_duplicates, perceptual_hash

pictures = partial(data_sets.pictures, height=32, width=40, channels=3)


def test_statistics_are_those_of_the_pixels() -> None:
    images = pictures(5)
    print_ = fingerprint(images)
    x = images / 255
    np.testing.assert_allclose(print_.mean, x.mean(axis=(1, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(print_.std, x.std(axis=(1, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(print_.contrast, np.sqrt(x.var(axis=(1, 2)).mean(axis=1)), rtol=1e-10)


def test_the_largest_image_does_not_overflow() -> None:
    image = np.full((1, 256, 256, 3), 255, dtype=np.uint8)
    image[0, :128] = 0
    print_ = fingerprint(image)
    assert (print_.mean[0], print_.std[0], print_.contrast[0]) == (0.5, 0.5, 0.5)


def test_a_single_colour_has_a_spread_but_no_contrast() -> None:
    print_ = fingerprint(np.full((1, 8, 8, 3), (200, 0, 0), dtype=np.uint8))
    assert print_.std[0] > 0.3 and print_.contrast[0] == 0


def test_binary_means_only_0_and_255() -> None:
    images = np.full((2, 8, 8, 1), 255, dtype=np.uint8)
    images[:, 0, 0], images[1, 0, 1] = 0, 254
    assert fingerprint(images).binary.tolist() == [True, False]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(7)
    whole = fingerprint(images)
    monkeypatch.setattr(fingerprints, "CHUNK_PIXELS", 2 * images[0].size)
    for name, values in vars(fingerprint(images)).items():
        np.testing.assert_array_equal(values, getattr(whole, name))


def test_equal_pixels_and_only_they_have_one_hash() -> None:
    images = pictures(1).repeat(3, axis=0)
    images[2, -1, -1, -1] ^= 1
    a, b, c = fingerprint(images).pixels
    assert a == b != c


def test_the_perceptual_hash_survives_brightness_and_tells_pictures_apart() -> None:
    images = pictures(20)
    hashes = perceptual_hash(images)
    lighter = perceptual_hash((images * 0.8 + 30).astype(np.uint8))
    assert np.bitwise_count(hashes ^ lighter).max() <= 4
    apart = np.bitwise_count(hashes[:, None] ^ hashes)
    assert apart[~np.eye(20, dtype=bool)].min() > 4


def test_candidates_are_all_pairs_within_three_bits() -> None:
    """Against the full table of distances."""
    rng = np.random.default_rng(0)
    among = rng.integers(0, 2**63, 50, dtype=np.uint64)
    flips = np.uint64(1) << rng.integers(0, 63, (200, 5), dtype=np.uint64)
    of = among[rng.integers(0, 50, 200)]
    for column, keep in zip(flips.T, rng.random((5, 200)) < 0.6, strict=True):
        of = np.where(keep, of ^ column, of)
    expected = np.argwhere(np.bitwise_count(of[:, None] ^ among) <= 3)
    assert 20 < len(expected) < 200
    np.testing.assert_array_equal(np.column_stack(fingerprints._candidates(of, among)), expected)


def test_one_picture_in_many_copies_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a film: without bounds, the pairs would be the square of the frames."""
    monkeypatch.setattr(fingerprints, "CROWD", 10)
    compared = []
    count = np.bitwise_count
    monkeypatch.setattr(fingerprints.np, "bitwise_count", lambda x: (compared.append(len(x)), count(x))[1])
    same = np.zeros(500, dtype=np.uint64)
    rows, others = fingerprints._candidates(same, same)
    assert len(rows) == 500 * fingerprints.CANDIDATES
    np.testing.assert_array_equal(others[:8], range(8))
    assert compared == [10] * 500


def test_near_duplicates_are_found_and_equal_or_blank_images_are_not() -> None:
    others = pictures(30, seed=1)
    images = pictures(10, seed=2)
    images[3] = (others[17] * 0.9 + 12).astype(np.uint8)
    images[4] = others[18]
    images[5] = others[5] = 90
    images[6] = others[6] = 91
    others[6] = 40
    rows, other_rows, r = near_duplicates(images, fingerprint(images), others, fingerprint(others), correlation=0.99)
    assert (rows.tolist(), other_rows.tolist()) == ([3], [17])
    a, b = images[3].ravel(), others[17].ravel()
    assert r[0] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)


def test_pictures_with_the_same_hash_are_distinguished_by_their_pixels() -> None:
    """The same coarse shape under another fine texture: the hashes agree, the pixels do not."""
    coarse = data_sets.pictures(1, seed=3, height=64, width=64) // 4
    i, j = np.indices((64, 64))[..., None]
    a = (coarse + 150 * ((i + j) % 2)).astype(np.uint8)
    b = (coarse + 150 * (i % 2)).astype(np.uint8)
    print_a, print_b = fingerprint(a), fingerprint(b)
    assert np.bitwise_count(print_a.perceptual ^ print_b.perceptual)[0] <= fingerprints.BITS_APART
    assert len(near_duplicates(a, print_a, b, print_b, correlation=0.99)[0]) == 0
    assert len(near_duplicates(a, print_a, b, print_b, correlation=0.01)[0]) == 1
