"""Linear theory against a linear VAE that is optimised, closed forms of probabilistic PCA, and eigenvalues of data."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import params
from hypothesis import given, settings
from hypothesis import strategies as st
from vae.losses.objective import Objective, effective_beta

from vae.collapse import linear_theory
from vae.collapse.linear_theory import Spectrum
from vae.config import parameters
from vae.config.constants import SMALLEST_SIGMA
from vae.losses.elbo import kl_per_latent
from vae.models.likelihood import gaussian_log_prob

PIXELS = 8
ALL = np.array([3.0, 1.1, 0.6, 0.25, 0.1, 0.06, 0.03, 0.02])  # eigenvalues of the whole covariance


def spectrum_of(latents: int, eigenvalues: np.ndarray = ALL) -> Spectrum:
    return Spectrum(eigenvalues[:latents], float(eigenvalues.sum()), len(eigenvalues), 1000)


def objective(latents: int, weight: float = 1.0, **changes: Any) -> Objective:
    given = {"likelihood": "gaussian", "sigma": "optimal", "reduction": "sum", "pixels": PIXELS}
    return Objective(**{**given, "latents": latents, "final_weight": weight, **changes})


def trained_linear_vae(
    o: Objective, weight: float, eigenvalues: np.ndarray = ALL
) -> tuple[float, float, float]:
    """KL, mean squared error and loss of a linear VAE at the optimum of its expected loss.

    x ~ N(0, S); q(z|x) = N(Vx, diag d); the decoder is Wz. The expectations are exact, so nothing is sampled.
    """
    random = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(PIXELS, PIXELS, generator=random, dtype=torch.float64)).Q
    covariance = turn @ torch.diag(torch.from_numpy(eigenvalues)) @ turn.T
    encoder = (0.3 * torch.randn(o.latents, PIXELS, generator=random, dtype=torch.float64)).requires_grad_()
    decoder = (0.3 * torch.randn(PIXELS, o.latents, generator=random, dtype=torch.float64)).requires_grad_()
    logvar = torch.zeros(o.latents, dtype=torch.float64, requires_grad=True)

    def terms() -> tuple[torch.Tensor, torch.Tensor]:
        second_moment = encoder @ covariance @ encoder.T
        left = torch.eye(PIXELS, dtype=torch.float64) - decoder @ encoder
        error = torch.trace(left @ covariance @ left.T) + (decoder.square().sum(0) * logvar.exp()).sum()
        kl = kl_per_latent(second_moment.diagonal().sqrt(), logvar).sum()  # E μ² stands for μ²
        return error, kl

    def loss() -> torch.Tensor:
        error, kl = terms()
        if o.reduction == "mean":
            return error / PIXELS + weight * kl / o.latents
        variance = error / PIXELS if o.sigma == "optimal" else o.sigma**2
        return -gaussian_log_prob(error, PIXELS, variance) + weight * kl

    optimiser = torch.optim.LBFGS(
        [encoder, decoder, logvar], max_iter=600, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe", history_size=30,
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    error, kl = (float(term.detach()) for term in terms())
    return kl, error / PIXELS, float(loss().detach())


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        ({"sigma": 0.3}, 1.0),
        ({"sigma": 0.3}, 4.0),
        ({"sigma": 0.3}, 0.2),
        ({"sigma": "optimal"}, 1.0),
        ({"sigma": "optimal"}, 2.0),
        ({"sigma": "optimal"}, 0.3),
        ({"reduction": "mean"}, 0.3),
        ({"reduction": "mean"}, 0.05),
        ({"reduction": "mean"}, 0.01),
    ],
)
@pytest.mark.parametrize("latents", [3])
def test_a_trained_linear_vae_gives_what_was_predicted(
    changes: dict[str, Any], weight: float, latents: int
) -> None:
    o = objective(latents, weight, **changes)
    predicted = linear_theory.predict(spectrum_of(latents), o, weight)
    kl, mse, _ = trained_linear_vae(o, weight)
    assert kl == pytest.approx(predicted.kl, abs=2e-3)
    assert mse == pytest.approx(predicted.mse, rel=2e-3)
    if changes.get("sigma") == "optimal":
        assert predicted.sigma == pytest.approx(math.sqrt(mse), rel=1e-3)


def test_its_elbo_is_the_evidence_of_probabilistic_pca() -> None:
    latents = 3
    o = objective(latents)
    predicted = linear_theory.predict(spectrum_of(latents), o, 1.0)
    sigma2 = ALL[latents:].mean()  # Tipping & Bishop 1999, equations 7 and 8
    evidence = -0.5 * (
        PIXELS * math.log(2 * math.pi)
        + np.log(ALL[:latents]).sum()
        + (PIXELS - latents) * math.log(sigma2)
        + PIXELS
    )
    error = torch.tensor(predicted.mse * PIXELS, dtype=torch.float64)
    assert predicted.sigma is not None and predicted.sigma**2 == pytest.approx(sigma2)
    assert float(gaussian_log_prob(error, PIXELS, predicted.sigma**2)) - predicted.kl == pytest.approx(
        evidence
    )
    assert -trained_linear_vae(o, 1.0)[2] == pytest.approx(evidence, abs=1e-4)


def test_known_values_of_a_prediction() -> None:
    o = objective(4, sigma=0.5)
    got = linear_theory.predict(spectrum_of(4), o, 2.0)  # s = 2 · 0.25
    np.testing.assert_allclose(
        got.kl_per_latent, [0.5 * math.log(6), 0.5 * math.log(2.2), 0.5 * math.log(1.2), 0]
    )
    assert got.active_units == 3 and got.sigma == 0.5
    assert got.mse == pytest.approx((0.5 + 0.5 + 0.5 + 0.25 + ALL[4:].sum()) / 8)
    assert linear_theory.threshold(spectrum_of(4), o, 2.0) == pytest.approx(0.5)

    mean = objective(4, 0.1, reduction="mean")
    assert linear_theory.threshold(spectrum_of(4), mean, 0.1) == pytest.approx(0.1 * 8 / (2 * 4))
    assert linear_theory.predict(spectrum_of(4), mean, 0.1).sigma == pytest.approx(mean.equivalent_sigma)

    bernoulli = linear_theory.predict(spectrum_of(4), objective(4, likelihood="bernoulli"), 0.6)
    np.testing.assert_allclose(bernoulli.kl_per_latent[:2], [0.5 * math.log(5), 0.5 * math.log(1.1 / 0.6)])
    assert bernoulli.active_units == 2 and bernoulli.sigma is None and math.isnan(bernoulli.mse)


def test_with_more_latents_than_the_images_have_the_noise_is_the_smallest() -> None:
    flat = Spectrum(np.array([1.0, 0.5]), 1.5, 100, 50)
    assert linear_theory.optimal_variance(flat, 1.0) == SMALLEST_SIGMA**2
    assert linear_theory.predict(flat, objective(2, pixels=100), 1.0).kl < 20


OBJECTIVES = [
    {"sigma": "optimal"},
    {"sigma": "learned"},
    {"sigma": 0.1},
    {"reduction": "mean"},
    {"likelihood": "bernoulli"},
    {"likelihood": "bernoulli", "reduction": "mean"},
]
spectra = st.builds(
    lambda leading, rest, latents: Spectrum(
        np.sort(leading)[::-1][:latents].copy(), float(np.sum(leading) + rest), len(leading) + 5, 100
    ),
    st.lists(st.floats(1e-3, 10), min_size=1, max_size=12),
    st.floats(1e-3, 2),
    st.integers(1, 12),
)


@settings(deadline=None)
@given(spectra, st.sampled_from(OBJECTIVES))
def test_the_last_latent_dies_at_the_critical_weight(spectrum: Spectrum, changes: dict[str, Any]) -> None:
    o = objective(len(spectrum.eigenvalues), pixels=spectrum.pixels, **changes)
    critical = linear_theory.critical_weight(spectrum, o)
    assert linear_theory.predict(spectrum, o, critical * (1 + 1e-6)).kl == pytest.approx(0, abs=1e-9)
    assert linear_theory.predict(spectrum, o, critical).kl == pytest.approx(0, abs=1e-6)
    below = linear_theory.predict(spectrum, o, critical * 0.999)
    assert below.kl > 1e-6 and below.active_units >= 1


@settings(deadline=None, max_examples=25)
@given(spectra, st.sampled_from(OBJECTIVES))
def test_one_nat_is_left_at_the_collapse_weight(spectrum: Spectrum, changes: dict[str, Any]) -> None:
    o = objective(len(spectrum.eigenvalues), pixels=spectrum.pixels, **changes)
    collapse = linear_theory.collapse_weight(spectrum, o)
    assert 0 < collapse < linear_theory.critical_weight(spectrum, o)
    assert linear_theory.predict(spectrum, o, collapse).kl == pytest.approx(1.0, abs=1e-6)
    half = linear_theory.collapse_weight(spectrum, o, nats=0.5)
    assert collapse < half and linear_theory.predict(spectrum, o, half).kl == pytest.approx(0.5, abs=1e-6)


@settings(deadline=None)
@given(spectra, st.sampled_from(OBJECTIVES), st.floats(1e-4, 50), st.floats(1.01, 10))
def test_a_larger_weight_never_leaves_more(
    spectrum: Spectrum, changes: dict[str, Any], weight: float, factor: float
) -> None:
    o = objective(len(spectrum.eigenvalues), pixels=spectrum.pixels, **changes)
    less, more = (linear_theory.predict(spectrum, o, w).kl for w in (weight, factor * weight))
    assert more <= less + 1e-9


@settings(deadline=None)
@given(spectra, st.floats(1e-3, 30))
def test_the_optimal_variance_solves_its_equation(spectrum: Spectrum, beta: float) -> None:
    variance = linear_theory.optimal_variance(spectrum, beta)
    explained = np.minimum(spectrum.eigenvalues, beta * variance).sum()
    assert spectrum.pixels * variance == pytest.approx(explained + spectrum.rest, rel=1e-6)
    o = objective(len(spectrum.eigenvalues), pixels=spectrum.pixels)
    assert linear_theory.predict(spectrum, o, beta).mse == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize("changes", OBJECTIVES)
def test_the_calibrated_weight_is_a_beta_of_one(changes: dict[str, Any]) -> None:
    spectrum = spectrum_of(4)
    weight = linear_theory.calibrated_weight(spectrum, objective(4, **changes))
    o = objective(4, weight, **changes)
    if o.likelihood == "bernoulli":
        assert o.beta(weight) == pytest.approx(1)
        return
    best = ALL[4:].mean()
    assert linear_theory.threshold(spectrum, o, weight) == pytest.approx(best, rel=1e-6)
    prediction = linear_theory.predict(spectrum, o, weight)
    assert prediction.mse == pytest.approx(best, rel=1e-6)
    assert effective_beta(o, prediction.mse) == pytest.approx(1, rel=1e-6)


def test_formulas_of_the_critical_weight() -> None:
    spectrum = spectrum_of(4)
    assert linear_theory.critical_weight(spectrum, objective(4)) == pytest.approx(8 * 3.0 / ALL.sum())
    assert linear_theory.critical_weight(spectrum, objective(4, sigma=0.5)) == pytest.approx(12)
    assert linear_theory.critical_weight(spectrum, objective(4, reduction="mean")) == pytest.approx(
        2 * 4 * 3 / 8
    )
    assert linear_theory.critical_weight(spectrum, objective(4, likelihood="bernoulli")) == pytest.approx(3)


@pytest.mark.parametrize("changes", OBJECTIVES)
def test_equal_images_have_nothing_to_say(changes: dict[str, Any]) -> None:
    images = np.full((6, 4, 4, 1), 77, np.uint8)
    o = objective(3, pixels=16, **changes)
    spectrum = linear_theory.spectrum(images, 3, bernoulli=o.likelihood == "bernoulli")
    assert spectrum.total == pytest.approx(0, abs=1e-12)
    assert linear_theory.collapse_weight(spectrum, o) == pytest.approx(0, abs=1e-9)
    assert linear_theory.predict(spectrum, o, 1.0).kl == 0


def low_rank_images(count: int, side: int, rank: int = 6) -> np.ndarray:
    """Grey images of a few patterns with falling strengths, and the rounding to 256 levels."""
    random = np.random.default_rng(0)
    patterns = np.linalg.qr(random.normal(size=(side * side, rank)))[0].T
    strengths = side * 0.25 * 0.6 ** np.arange(rank)
    values = 0.5 + (random.normal(size=(count, rank)) * strengths) @ patterns
    return (values.clip(0, 1) * 255).round().astype(np.uint8).reshape(count, side, side, 1)


def eigenvalues(images: np.ndarray) -> np.ndarray:
    """By the singular values of the centred images."""
    centred = images.reshape(len(images), -1) / 255
    centred = centred - centred.mean(0)
    return np.linalg.svd(centred, compute_uv=False) ** 2 / len(images)


def test_the_spectrum_is_that_of_the_covariance() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1500, 4, 3, 3), dtype=np.uint8)
    expected = np.linalg.eigvalsh(np.cov(images.reshape(1500, -1) / 255, rowvar=False, bias=True))[::-1]
    got = linear_theory.spectrum(images, 7, bernoulli=False)
    np.testing.assert_allclose(got.eigenvalues, expected[:7], rtol=1e-9)
    assert got.total == pytest.approx(expected.sum())
    assert got.rest == pytest.approx(expected[7:].sum())
    assert (got.pixels, got.images) == (36, 1500)
    many = linear_theory.spectrum(images, 100, bernoulli=False)
    assert len(many.eigenvalues) == 36 and many.rest == pytest.approx(0, abs=1e-9)


def test_subspace_iteration_agrees_with_the_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    images = low_rank_images(300, 20)
    exact = linear_theory.spectrum(images, 8, bernoulli=False)
    monkeypatch.setattr(linear_theory, "EXACT_UP_TO", 10)
    iterated = linear_theory.spectrum(images, 8, bernoulli=False)
    np.testing.assert_allclose(iterated.eigenvalues, exact.eigenvalues, rtol=1e-3)
    assert iterated.total == pytest.approx(exact.total)


def test_large_images() -> None:
    images = low_rank_images(60, 50)  # 2500 pixels: beyond the exact way, and fewer images than those
    got = linear_theory.spectrum(images, 10, bernoulli=False)
    np.testing.assert_allclose(got.eigenvalues, eigenvalues(images)[:10], rtol=1e-2)
    np.testing.assert_allclose(got.eigenvalues[:6], eigenvalues(images)[:6], rtol=1e-4)
    again = linear_theory.spectrum(images, 10, bernoulli=False)
    np.testing.assert_array_equal(got.eigenvalues, again.eigenvalues)


@pytest.mark.parametrize("exact_up_to", [2048, 10])
def test_bernoulli_pixels_are_whitened(monkeypatch: pytest.MonkeyPatch, exact_up_to: int) -> None:
    monkeypatch.setattr(linear_theory, "EXACT_UP_TO", exact_up_to)
    images = (np.random.default_rng(0).random((800, 5, 5, 1)) < 0.3).astype(np.uint8) * 255
    images[:, :, 3] = images[:, :, 2]  # two columns always equal
    images[:, 0, 0], images[0, 0, 0] = 0, 255  # a pixel that is white once: p is clipped to 0.01
    x = images.reshape(800, -1) / 255
    p = x.mean(0).clip(0.01, 0.99)
    whitened = (x - x.mean(0)) / np.sqrt(p * (1 - p))
    expected = np.linalg.eigvalsh(whitened.T @ whitened / 800)[::-1]
    got = linear_theory.spectrum(images, 6, bernoulli=True)
    np.testing.assert_allclose(got.eigenvalues, expected[:6], rtol=1e-3)
    assert got.eigenvalues[0] == pytest.approx(2, abs=0.3)
    assert got.total == pytest.approx(expected.sum()) == pytest.approx(24, abs=0.2)


@pytest.mark.parametrize("exact_up_to", [2048, 10])
@pytest.mark.parametrize("bernoulli", [True, False])
def test_drawn_pixels_have_the_covariance_of_draws(
    monkeypatch: pytest.MonkeyPatch, exact_up_to: int, bernoulli: bool
) -> None:
    monkeypatch.setattr(linear_theory, "EXACT_UP_TO", exact_up_to)
    monkeypatch.setattr(linear_theory, "MOST_IMAGES", 30_000)  # all of the draws
    images = low_rank_images(100, 6, rank=3)
    random = np.random.default_rng(1)
    repeated = np.tile(images, (300, 1, 1, 1))
    draws = (random.random(repeated.shape) < repeated / 255).astype(np.uint8) * 255
    predicted = linear_theory.spectrum(images, 5, bernoulli, drawn=True)
    measured = linear_theory.spectrum(draws, 5, bernoulli)
    np.testing.assert_allclose(predicted.eigenvalues, measured.eigenvalues, rtol=0.04)
    assert predicted.total == pytest.approx(measured.total, rel=0.01)
    undrawn = linear_theory.spectrum(images, 5, bernoulli)
    assert undrawn.total < 0.8 * predicted.total


def parameters_of(**changes: Any) -> parameters.Parameters:
    return params({name.replace("__", "."): value for name, value in changes.items()})


def test_expectations_are_those_of_the_weight_and_of_the_calibrated_one() -> None:
    p = parameters_of(objective__sigma=0.3, kl__max_weight=4.0)
    s = Spectrum(ALL[:3], float(ALL.sum()), 64, 1000)
    o = Objective.of(p)
    got = linear_theory.expectations(p, s)
    prediction = linear_theory.predict(s, o, 4.0)
    assert (got["predicted_kl"], got["predicted_mse"]) == (prediction.kl, prediction.mse)
    assert got["predicted_active_units"] == prediction.active_units and got["kl_weight"] == 4
    best = linear_theory.calibrated_weight(s, o)
    assert got["calibrated_kl_weight"] == best
    assert (got["calibrated_kl"], got["calibrated_mse"]) == (
        linear_theory.predict(s, o, best).kl,
        linear_theory.predict(s, o, best).mse,
    )
    # of any other weight the same: it says what could be, not what was asked for
    other = linear_theory.expectations(parameters_of(objective__sigma=0.3, kl__max_weight=0.1), s)
    assert [other[k] for k in ("calibrated_kl", "calibrated_mse")] == [
        got[k] for k in ("calibrated_kl", "calibrated_mse")
    ]
    assert other["predicted_kl"] > got["predicted_kl"]


def test_expectations_of_a_control_are_its_target_and_of_no_kl_term_nothing() -> None:
    s = Spectrum(ALL[:3], float(ALL.sum()), 64, 1000)
    assert linear_theory.expectations(parameters_of(kl__capacity=2.0), s)["predicted_kl"] == pytest.approx(
        2.0
    )
    assert linear_theory.expectations(parameters_of(kl__max_weight=0.0), s)["predicted_kl"] is None


def test_a_model_of_fewer_latents_expects_less_of_the_same_spectrum() -> None:
    s = Spectrum(ALL[:3], float(ALL.sum()), 64, 1000)
    fewer = linear_theory.expectations(parameters_of(model__latent_dim=2), s)
    assert fewer == linear_theory.expectations(
        parameters_of(model__latent_dim=2), Spectrum(ALL[:2], float(ALL.sum()), 64, 1000)
    )
    assert len(fewer["kl_per_latent"]) == 2


def test_a_spectrum_comes_back_from_the_report() -> None:
    p = parameters_of(kl__max_weight=0.7)
    s = Spectrum(ALL[:3], float(ALL.sum()), 64, 1000)
    report = linear_theory.expectations(p, s)
    back = linear_theory.spectrum_of(report, 64)
    np.testing.assert_array_equal(back.eigenvalues, s.eigenvalues)
    assert (back.total, back.pixels, back.images) == (s.total, s.pixels, s.images)
    assert linear_theory.expectations(p, back) == report


def test_a_calibrated_weight_becomes_its_number_and_a_number_stays() -> None:
    s = Spectrum(ALL[:3], float(ALL.sum()), 64, 1000)
    p = parameters_of(kl__max_weight="calibrated", objective__reduction="mean")
    o = Objective.of(parameters_of(kl__max_weight=1.0, objective__reduction="mean"))
    got = linear_theory.with_calibrated_weight(p, s)
    assert got.kl.weight == pytest.approx(linear_theory.calibrated_weight(s, o), rel=1e-5)
    assert linear_theory.expectations(got, s)["calibrated_kl_weight"] == pytest.approx(
        got.kl.weight, rel=1e-5
    )
    number = parameters_of(kl__max_weight=0.7)
    assert linear_theory.with_calibrated_weight(number, s) is number


@pytest.mark.parametrize(
    ("critical", "weight"), [(1.0, 1.0), (1.0, 1e-9), (1.0, 1e6), (0.0, 0.1), (3.0, 0.0), (0.0, 0.0)]
)
def test_a_curve_over_weights_goes_beyond_collapse_and_has_this_runs_weight(
    critical: float, weight: float
) -> None:
    weights = linear_theory.weights_of_interest(critical, weight)
    assert np.all(np.diff(weights) > 0)
    for value in (critical, weight):
        assert value == 0 or weights[0] < value < weights[-1]
