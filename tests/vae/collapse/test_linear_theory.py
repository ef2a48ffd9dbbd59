"""Linear theory against a linear VAE that is optimised, closed forms of probabilistic PCA, and eigenvalues of data."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.parameters import Changes, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from vae.collapse import kl_weights, linear_theory, rate_distortion
from vae.collapse.expectations import expectations, of_remedied
from vae.collapse.linear_theory import Spectrum
from vae.config.beta_elbo import BetaELBO
from vae.config.constants import SMALLEST_SIGMA
from vae.config.parameters import Parameters
from vae.config.resolved import changed, resolve
from vae.losses.elbo import kl_per_latent
from vae.models.likelihood import gaussian_log_prob

PIXELS, LATENTS = 64, 3
ALL = np.array([3.0, 1.1, 0.6, 0.25, 0.1, 0.06, 0.03, 0.02])  # eigenvalues of the covariance that are not 0


def spectrum_of(latents: int = LATENTS) -> Spectrum:
    return Spectrum(ALL[:latents], float(ALL.sum()), PIXELS, 1000)


def params(latents: int = LATENTS, changes: Changes | None = None, **objective: Any) -> Parameters:
    named = {f"objective.{name}": value for name, value in objective.items()}
    return parse({"data.image_size": 8, "model.latent_dim": latents} | named | (changes or {}))


def predict(p: Parameters, weight: float, spectrum: Spectrum) -> rate_distortion.Prediction:
    return rate_distortion.predict(spectrum, BetaELBO.of(p, weight))


def trained_linear_vae(p: Parameters, weight: float) -> tuple[float, float, float]:
    """KL, mean squared error and loss of a linear VAE at the optimum of its expected loss.

    x ~ N(0, S); q(z|x) = N(Vx, diag d); the decoder is Wz. The expectations are exact, so nothing is sampled.
    All that varies lies in a space of 8 dimensions: the other pixels need no weights.
    """
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    turn = torch.linalg.qr(drawn(8, 8)).Q
    covariance = turn @ torch.diag(torch.from_numpy(ALL)) @ turn.T
    encoder = (0.3 * drawn(LATENTS, 8)).requires_grad_()
    decoder = (0.3 * drawn(8, LATENTS)).requires_grad_()
    logvar = torch.zeros(LATENTS, dtype=torch.float64, requires_grad=True)

    def terms() -> tuple[torch.Tensor, torch.Tensor]:
        second_moment = encoder @ covariance @ encoder.T
        left = torch.eye(8, dtype=torch.float64) - decoder @ encoder
        error = torch.trace(left @ covariance @ left.T) + (decoder.square().sum(0) * logvar.exp()).sum()
        kl = kl_per_latent(second_moment.diagonal().sqrt(), logvar).sum()  # E μ² stands for μ²
        return error, kl

    def loss() -> torch.Tensor:
        error, kl = terms()
        if p.objective.reduction == "mean":
            return error / PIXELS + weight * kl / LATENTS
        variance = error / PIXELS if p.objective.sigma == "optimal" else p.objective.sigma**2
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
    ("objective", "weight"),
    [
        ({"sigma": 0.3}, 1.0),
        ({"sigma": 0.3}, 4.0),
        ({"sigma": 0.3}, 0.2),
        ({"sigma": "optimal"}, 1.0),
        ({"sigma": "optimal"}, 2.0),
        ({"sigma": "optimal"}, 0.3),
        ({"reduction": "mean"}, 0.3 / 8),
        ({"reduction": "mean"}, 0.05 / 8),
        ({"reduction": "mean"}, 0.01 / 8),
    ],
)
def test_a_trained_linear_vae_gives_what_was_predicted(objective: Changes, weight: float) -> None:
    p = params(**objective)
    predicted = predict(p, weight, spectrum_of())
    kl, mse, _ = trained_linear_vae(p, weight)
    assert kl == pytest.approx(predicted.kl, abs=2e-3)
    assert mse == pytest.approx(predicted.mse, rel=2e-3)
    if objective.get("sigma") == "optimal":
        assert predicted.sigma == pytest.approx(math.sqrt(mse), rel=1e-3)


def test_its_elbo_is_the_evidence_of_probabilistic_pca() -> None:
    predicted = predict(params(), 1.0, spectrum_of())
    discarded = PIXELS - LATENTS
    sigma2 = ALL[LATENTS:].sum() / discarded  # Tipping & Bishop 1999, equations 7 and 8
    log_determinant = np.log(ALL[:LATENTS]).sum() + discarded * math.log(sigma2)
    evidence = -0.5 * (PIXELS * math.log(2 * math.pi) + log_determinant + PIXELS)
    error = torch.tensor(predicted.mse * PIXELS, dtype=torch.float64)
    assert predicted.sigma is not None and predicted.sigma**2 == pytest.approx(sigma2)
    bound = float(gaussian_log_prob(error, PIXELS, predicted.sigma**2)) - predicted.kl
    assert bound == pytest.approx(evidence)
    assert -trained_linear_vae(params(), 1.0)[2] == pytest.approx(evidence, abs=1e-4)


def test_known_values_of_a_prediction() -> None:
    fixed, spectrum = params(4, sigma=0.5), spectrum_of(4)
    got = predict(fixed, 2.0, spectrum)  # s = 2 · 0.25
    expected = [0.5 * math.log(6), 0.5 * math.log(2.2), 0.5 * math.log(1.2), 0]
    np.testing.assert_allclose(got.kl_per_latent, expected)
    assert got.active_units == 3 and got.sigma == 0.5
    assert got.mse == pytest.approx((0.5 + 0.5 + 0.5 + 0.25 + ALL[4:].sum()) / PIXELS)
    assert rate_distortion.threshold(spectrum, BetaELBO.of(fixed, 2.0)) == pytest.approx(0.5)

    mean = BetaELBO.of(params(4, reduction="mean"), 0.1)
    assert rate_distortion.threshold(spectrum, mean) == pytest.approx(0.1 * PIXELS / (2 * 4))
    assert rate_distortion.predict(spectrum, mean).sigma == pytest.approx(mean.sigma)

    bernoulli = predict(params(4, likelihood="bernoulli"), 0.6, spectrum)
    np.testing.assert_allclose(bernoulli.kl_per_latent[:2], [0.5 * math.log(5), 0.5 * math.log(1.1 / 0.6)])
    assert bernoulli.active_units == 2 and bernoulli.sigma is None and math.isnan(bernoulli.mse)


def test_with_more_latents_than_the_images_have_the_noise_is_the_smallest() -> None:
    flat = Spectrum(np.array([1.0, 0.5]), 1.5, 100, 50)
    assert rate_distortion.optimal_variance(flat, 1.0) == SMALLEST_SIGMA**2
    assert predict(params(2), 1.0, flat).kl < 20


OBJECTIVES: list[dict[str, Any]] = [
    {"sigma": "optimal"},
    {"sigma": "learned"},
    {"sigma": 0.1},
    {"reduction": "mean"},
    {"likelihood": "bernoulli"},
    {"likelihood": "bernoulli", "reduction": "mean"},
]
spectra = st.builds(
    lambda leading, rest, latents: Spectrum(
        np.sort(leading)[::-1][:latents].copy(), float(np.sum(leading) + rest), PIXELS, 100
    ),
    st.lists(st.floats(1e-3, 10), min_size=1, max_size=12),
    st.floats(1e-3, 2),
    st.integers(1, 12),
)


@settings(deadline=None)
@given(spectra, st.sampled_from(OBJECTIVES))
def test_the_last_latent_dies_at_the_critical_weight(spectrum: Spectrum, objective: Changes) -> None:
    p = params(len(spectrum.eigenvalues), **objective)
    critical = kl_weights.critical(p, spectrum)
    assert predict(p, critical * (1 + 1e-6), spectrum).kl == pytest.approx(0, abs=1e-9)
    assert predict(p, critical, spectrum).kl == pytest.approx(0, abs=1e-6)
    assert predict(p, critical * 0.999, spectrum).kl > 1e-6
    # A mean that varies by less than 0.01 is not active yet.
    assert predict(p, critical * 0.98, spectrum).active_units >= 1


@settings(deadline=None, max_examples=25)
@given(spectra, st.sampled_from(OBJECTIVES), st.sampled_from([1.0, 0.5]))
def test_one_nat_is_left_at_collapse(spectrum: Spectrum, objective: Changes, nats: float) -> None:
    p = params(len(spectrum.eigenvalues), **objective)
    weight = kl_weights.of_rate(p, spectrum, nats)
    assert 0 < weight < kl_weights.critical(p, spectrum)
    assert predict(p, weight, spectrum).kl == pytest.approx(nats, abs=1e-6)


@settings(deadline=None)
@given(spectra, st.floats(1e-3, 30))
def test_the_optimal_variance_solves_its_equation(spectrum: Spectrum, beta: float) -> None:
    variance = rate_distortion.optimal_variance(spectrum, beta)
    explained = np.minimum(spectrum.eigenvalues, beta * variance).sum()
    assert spectrum.pixels * variance == pytest.approx(explained + spectrum.rest, rel=1e-6)
    assert predict(params(), beta, spectrum).mse == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_calibrated_weight_is_a_beta_of_one(objective: Changes) -> None:
    p, spectrum = params(4, **objective), spectrum_of(4)
    weight = kl_weights.of_beta(p, spectrum)
    elbo, prediction = BetaELBO.of(p, weight), predict(p, weight, spectrum)
    assert elbo.effective_beta(prediction.mse) == pytest.approx(1, rel=1e-6)
    if elbo.likelihood == "gaussian":
        best = ALL[4:].sum() / (PIXELS - 4)
        assert rate_distortion.threshold(spectrum, elbo) == pytest.approx(best, rel=1e-6)
        assert prediction.mse == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_images_have_nothing_to_say(objective: Changes) -> None:
    p = params(**objective)
    spectrum = linear_theory.spectrum_for(p, np.full((6, 8, 8, 1), 77, np.uint8))
    assert spectrum.total == pytest.approx(0, abs=1e-12)
    assert kl_weights.of_rate(p, spectrum) == pytest.approx(0, abs=1e-9)
    assert predict(p, 1.0, spectrum).kl == 0


def low_rank_images(count: int, side: int, rank: int = 6) -> np.ndarray:
    """Grey images of a few patterns with falling strengths, and the rounding to 256 levels."""
    random = np.random.default_rng(0)
    patterns = np.linalg.qr(random.normal(size=(side * side, rank)))[0].T
    strengths = side * 0.25 * 0.6 ** np.arange(rank)
    values = 0.5 + (random.normal(size=(count, rank)) * strengths) @ patterns
    return (values.clip(0, 1) * 255).round().astype(np.uint8).reshape(count, side, side, 1)


SMALL = np.random.default_rng(0).integers(0, 256, (1500, 4, 3, 3), dtype=np.uint8)
LARGE = low_rank_images(60, 50)  # 2500 pixels: beyond the exact way, and fewer images than those


@pytest.mark.parametrize(("images", "latents", "rtol"), [(SMALL, 7, 1e-9), (SMALL, 100, 1e-9), (LARGE, 10, 1e-2)])
def test_the_spectrum_is_that_of_the_covariance(images: np.ndarray, latents: int, rtol: float) -> None:
    centred = images.reshape(len(images), -1) / 255
    expected = np.linalg.svd(centred - centred.mean(0), compute_uv=False) ** 2 / len(images)
    got, again = (linear_theory.spectrum(images, latents, bernoulli=False) for _ in range(2))
    np.testing.assert_allclose(got.eigenvalues, expected[:latents], rtol=rtol)
    np.testing.assert_allclose(got.eigenvalues[:6], expected[:6], rtol=min(rtol, 1e-4))
    np.testing.assert_array_equal(got.eigenvalues, again.eigenvalues)
    assert got.total == pytest.approx(expected.sum())
    assert got.rest == pytest.approx(expected[latents:].sum(), rel=max(rtol, 1e-6), abs=1e-9)
    assert (got.pixels, got.images) == (centred.shape[1], len(images))


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
def test_drawn_pixels(monkeypatch: pytest.MonkeyPatch, exact_up_to: int, bernoulli: bool) -> None:
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


def test_expectations_are_those_of_the_weight_and_of_the_calibrated_one() -> None:
    p, s = params(sigma=0.3), spectrum_of()
    got, best = expectations(p, 4.0, s), kl_weights.of_beta(p, s)
    for name, weight in (("predicted", 4.0), ("calibrated", best)):
        prediction = predict(p, weight, s)
        assert (got[f"{name}_kl"], got[f"{name}_mse"]) == (prediction.kl, prediction.mse)
    assert got["predicted_active_units"] == predict(p, 4.0, s).active_units
    assert (got["kl_weight"], got["calibrated_kl_weight"]) == (4, best)
    # of any other weight the same: it says what could be, not what was asked for
    other = expectations(p, 0.1, s)
    assert all(other[name] == got[name] for name in ("calibrated_kl", "calibrated_mse"))
    assert other["predicted_kl"] > got["predicted_kl"]


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"kl.capacity": 2.0}, "predicted_kl", 2.0),
        ({"kl.target_kl": 2.0}, "predicted_kl", 2.0),
        ({"kl.reconstruction_target": 0.2, "objective.sigma": 0.1}, "predicted_mse", 0.04),
        ({}, "predicted_kl", None),
    ],
)
def test_expectations_of_a_control(changes: Changes, name: str, value: float | None) -> None:
    weight = 20.0 if changes else 0.0
    expected = expectations(params(changes={"kl.max_weight": weight, **changes}), weight, spectrum_of())[name]
    assert expected is None if value is None else expected == pytest.approx(value)


def test_a_report_gives_its_spectrum_back_and_is_made_anew_for_a_remedy() -> None:
    p = resolve(params(), 1)
    report = {**expectations(p, 1.0, spectrum_of()), "warnings": ["close to the edge"]}
    assert of_remedied(report, p, {}, PIXELS) == report
    changes = {"kl.max_weight": 0.7, "objective.sigma": 0.3, "model.latent_dim": 2}
    remedied = of_remedied(report, changed(p, changes), changes, PIXELS)
    expected = expectations(params(2, sigma=0.3), 0.7, spectrum_of(2))
    assert remedied == {**expected, "warnings": ["close to the edge"]}


def test_a_calibrated_weight_becomes_its_number_and_a_number_stays() -> None:
    p, s = params(changes={"kl.max_weight": "calibrated"}, reduction="mean"), spectrum_of()
    weight = kl_weights.resolved(p, s)
    assert weight == pytest.approx(kl_weights.of_beta(p, s), rel=1e-5) and len(str(weight)) < 12
    assert kl_weights.resolved(params(changes={"kl.max_weight": 0.7}), s) == 0.7


@pytest.mark.parametrize(
    ("critical", "weight"), [(1.0, 1.0), (1.0, 1e-9), (1.0, 1e6), (0.0, 0.1), (3.0, 0.0), (0.0, 0.0)]
)
def test_a_curve_over_weights_spans_collapse_and_this_run(critical: float, weight: float) -> None:
    weights = kl_weights.of_interest(critical, weight)
    assert np.all(np.diff(weights) > 0)
    for value in (critical, weight):
        assert value == 0 or weights[0] < value < weights[-1]


@pytest.mark.parametrize("value", [0, 77, 255])
def test_images_that_are_all_the_same_have_no_variance_not_a_rounding_error(value: int) -> None:
    found = linear_theory.spectrum(np.full((300, 6, 5, 1), value, np.uint8), 4, bernoulli=False)
    assert found.total == 0 and found.eigenvalues.tolist() == [0] * 4
