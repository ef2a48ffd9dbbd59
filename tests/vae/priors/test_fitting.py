"""Which prior is fitted to which latents."""

import numpy as np
import pytest
import torch
from helpers.priors import two_clusters

from vae.priors import fitting, flow
from vae.priors.aggregate import Posteriors, draw, kl_to_prior, rate
from vae.priors.fitting import FEWEST_IMAGES, Fitted
from vae.priors.flow import Flow
from vae.priors.mixture import Mixture
from vae.priors.standard import STANDARD, StandardNormal


def standard(images: int, latents: int, own: float = 0.5, seed: int = 700) -> tuple[Posteriors, Posteriors]:
    """Of q(z) = N(0, I), of whose variance the posteriors have their own share."""
    means = np.random.default_rng(seed).standard_normal((images, latents))
    mu = (np.sqrt(1 - own) * means).astype(np.float32)
    return mu, np.full_like(mu, np.log(own))


def test_two_clusters_choose_a_mixture_that_other_images_confirm() -> None:
    fitted = fitting.fit(*two_clusters(400), seed=0)
    assert isinstance(fitted.prior, Mixture) and fitted.name.startswith("mixture of ")
    found = fitted.log_likelihood
    assert found[fitted.name] == max(found.values()) > found["Gaussian"] + 0.5 > found[STANDARD] + 0.5
    others = two_clusters(400, seed=9)
    assert rate(*others, fitted.prior, seed=0) < rate(*others, StandardNormal(3), seed=0) - 5


@pytest.mark.parametrize("own", [0.1, 0.5, 0.99])
@pytest.mark.parametrize(("images", "latents"), [(40, 2), (200, 32), (1000, 16)])
def test_latents_of_a_standard_normal_keep_it(images: int, latents: int, own: float) -> None:
    """Posteriors of nearly the whole variance are those of a collapsed model: their noise is no structure."""
    fitted = fitting.fit(*standard(images, latents, own), seed=0)
    assert (fitted.prior, fitted.name) == (StandardNormal(latents), STANDARD), fitted.log_likelihood
    assert len(fitted.log_likelihood) > 1, "others were tried"


def test_shifted_latents_choose_a_gaussian() -> None:
    mu, logvar = standard(300, 3)
    fitted = fitting.fit(mu + np.float32(2), logvar, seed=0)
    assert fitted.name == "Gaussian"
    moved = standard(300, 3, seed=9)[0] + np.float32(2)
    bound = kl_to_prior(moved, logvar, StandardNormal(3), fitted.prior, seed=0)
    assert bound.value == pytest.approx(3 * 0.5 * 2.0**2, abs=4 * bound.standard_error + 0.1)


def test_what_cannot_be_fitted_has_a_standard_normal() -> None:
    mu, logvar = two_clusters(100)
    none = Fitted(StandardNormal(3), STANDARD, {})
    assert fitting.fit(mu[: FEWEST_IMAGES - 1], logvar[: FEWEST_IMAGES - 1], seed=0) == none
    assert fitting.fit(mu[:FEWEST_IMAGES], logvar[:FEWEST_IMAGES], seed=0).log_likelihood
    for broken in (np.nan, np.inf):
        damaged = mu.copy()
        damaged[7, 1] = broken
        assert fitting.fit(damaged, logvar, seed=0) == none
        assert fitting.fit(mu, damaged, seed=0) == none


def test_many_latents_of_few_images_are_not_worse_off_than_with_a_standard_normal() -> None:
    """Full covariances of 200 images in 64 latents would give a rate of 287,000 nats on other images."""
    random = np.random.default_rng(8)
    mu = (3 * random.normal(size=(400, 64))).astype(np.float32)
    logvar = np.full_like(mu, -3.0)
    fitted = fitting.fit(mu[:200], logvar[:200], seed=0)
    assert fitted.name != STANDARD
    assert rate(mu[200:], logvar[200:], fitted.prior, 0) < rate(mu[200:], logvar[200:], StandardNormal(64), 0) - 50


def test_clusters_in_a_few_of_many_directions_are_found() -> None:
    """What 64 latents of 300 images hide from a mixture over all of them, it finds in the leading directions."""
    random = np.random.default_rng(8)
    side = 3 * random.normal(size=(4, 64))
    mu = (side[np.arange(600) % 4] + 0.3 * random.normal(size=(600, 64))).astype(np.float32)
    logvar = np.full_like(mu, -3.0)
    fitted = fitting.fit(mu[:300], logvar[:300], seed=0)
    assert "Gaussians in 8 of 64 directions" in fitted.name
    others = rate(mu[300:], logvar[300:], fitted.prior, 0)
    gaussian = fitting.mixture.fit_gaussian(
        fitting.PrincipalAxes.of(mu[:300].astype(np.float64), logvar[:300].astype(np.float64))
    )
    assert others < rate(mu[300:], logvar[300:], gaussian, 0) - 1


@pytest.mark.parametrize("damage", ["equal latents", "an outlier"])
def test_latents_that_rounding_makes_singular_have_a_prior(damage: str) -> None:
    """As of a model whose latents could not be standardised."""
    mu = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    if damage == "an outlier":
        mu[-1] = 1e15
    else:
        mu[:] = 1e5 * mu[:, :1]
    fitted = fitting.fit(mu, np.full_like(mu, -20), seed=0)
    assert fitted.log_likelihood and np.isfinite(list(fitted.log_likelihood.values())).all()


def test_the_likelihood_of_the_chosen_prior_is_its_own() -> None:
    """Three tight clusters ask for little smoothing, and every smoothing of a mixture has the same name."""
    random = np.random.default_rng(3)
    mu = 2 * random.normal(size=(3, 4))[np.arange(2400) % 3] + 0.01 * random.normal(size=(2400, 4))
    mu, logvar = mu.astype(np.float32), np.full(mu.shape, -6.0, np.float32)
    fitted = fitting.fit(mu[:400], logvar[:400], seed=0)
    reached = fitting.likelihood(fitted.prior, draw(mu[400:], logvar[400:], seed=9))
    assert reached == pytest.approx(fitted.log_likelihood[fitted.name], abs=0.5)


def test_a_fit_repeats_to_the_bit_and_follows_the_seed() -> None:
    latents = two_clusters(300)
    one, other, third = (fitting.fit(*latents, seed) for seed in (0, 0, 1))
    assert isinstance(one.prior, Mixture) and isinstance(other.prior, Mixture)
    assert (one.name, one.log_likelihood) == (other.name, other.log_likelihood)
    for name, tensor in one.prior.tensors().items():
        assert torch.equal(tensor, other.prior.tensors()[name]), name
    assert one.log_likelihood != third.log_likelihood


def test_one_latent_can_have_a_prior() -> None:
    fitted = fitting.fit(*two_clusters(200, latents=1), seed=0)
    assert isinstance(fitted.prior, Mixture) and fitted.prior.is_valid(1)


def test_a_flow_is_tried_where_images_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring, which a flow bends a Gaussian to, where mixtures of 5 at most are allowed."""
    monkeypatch.setattr(fitting, "FLOW_IMAGES", 1_800)  # the tenth image is held out
    monkeypatch.setattr(fitting, "COMPONENTS", (2, 5))
    monkeypatch.setattr(flow, "STEPS", 600)
    random = np.random.default_rng(3)
    angle, radius = random.uniform(0, 2 * np.pi, 2_000), 3 + 0.05 * random.standard_normal(2_000)
    mu = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    logvar = np.full_like(mu, -5.0)
    fitted = fitting.fit(mu, logvar, seed=0)
    assert isinstance(fitted.prior, Flow) and fitted.name == "masked autoregressive flow"
    assert fitting.fit(mu[:1_990], logvar[:1_990], seed=0).name.startswith("mixture")
