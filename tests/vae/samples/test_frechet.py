"""The Fréchet distance against its closed form, and its influence values against its derivative."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from vae.samples.frechet import frechet


def drawn(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Points whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (count - 1))).T
    return mean + x @ np.linalg.cholesky(covariance).T


def covariance(features: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((features, features))
    return a @ a.T + 0.1 * np.eye(features)


@pytest.mark.parametrize("features", [1, 2, 7])
def test_of_two_gaussians_it_is_the_closed_form(features: int) -> None:
    m, n = np.linspace(-1, 1, features), np.linspace(2, 0, features)
    s, t = covariance(features, 0), covariance(features, 1)
    expected = ((m - n) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet(drawn(m, s, 40, 2), drawn(n, t, 31, 3))[0] == pytest.approx(expected, rel=1e-9)


def test_of_commuting_covariances_it_compares_standard_deviations() -> None:
    s, t = np.array([1.0, 4, 9]), np.array([4.0, 4, 0.25])
    found, _, _ = frechet(drawn(np.zeros(3), np.diag(s), 20, 0), drawn(np.array([0.0, 3, 0]), np.diag(t), 20, 1))
    assert found == pytest.approx(9 + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum(), rel=1e-9)


def test_fewer_points_than_features_need_no_correction() -> None:
    """A space of 3 dimensions within 50, with 5 points more than dimensions in the one and 50 in the other."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 3)))
    s, t = covariance(3, 1), covariance(3, 2)
    x, y = drawn(np.zeros(3), s, 8, 3), drawn(np.ones(3), t, 12, 4)
    assert frechet(x @ basis.T, y @ basis.T)[0] == pytest.approx(frechet(x, y)[0], rel=1e-9)
    assert frechet(x @ basis.T, x @ basis.T)[0] == pytest.approx(0, abs=1e-9)
    assert frechet(x @ basis.T, x @ basis.T + 2 * basis[:, 0])[0] == pytest.approx(4, rel=1e-9)


def test_influence_values_are_its_derivative_to_the_share_of_a_point() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2000, 4)), 1.5 * random.standard_normal((2000, 4)) + 0.3
    value, of_x, of_y = frechet(x, y)
    assert of_x.shape == of_y.shape == (2000,)
    assert of_x.mean() == pytest.approx(0, abs=1e-9) and of_y.mean() == pytest.approx(0, abs=1e-9)
    for i in (0, 1, 2):  # a point more is a share of 1/N more
        assert frechet(np.concatenate([x, x[i : i + 1]]), y)[0] - value == pytest.approx(
            of_x[i] / 2000, rel=0.05, abs=1e-5
        )
        assert frechet(x, np.concatenate([y, y[i : i + 1]]))[0] - value == pytest.approx(
            of_y[i] / 2000, rel=0.05, abs=1e-5
        )
