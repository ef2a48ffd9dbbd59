"""Priors that are learned with the model: their densities against scipy, and what a training makes of them."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import trainings
from helpers.models import config
from helpers.parameters import Changes
from helpers.trainings import CPU, RECIPE, STEPS, TRAIN, VALID, assert_same_bits, params, run
from scipy.special import logsumexp
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from vae.compute.batches import epoch_order, full_batches
from vae.evaluation import evaluate
from vae.evaluation.importance_weighted import importance_weighted_bound
from vae.inference.scoring import elbo_per_image
from vae.losses.elbo import ELBOLoss, sampled_rate
from vae.losses.importance_weighted import ImportanceWeightedLoss
from vae.metrics.measurement import encode, measure
from vae.models import saved
from vae.models.likelihood import Likelihood, gaussian_log_prob, squared_error
from vae.models.saved import Saved
from vae.models.vae import VAE, build, to_device
from vae.priors import aggregate, fitting
from vae.priors.learned import DiagonalMixture, LearnedFlow, LearnedMixture, VampPrior
from vae.priors.standard import StandardNormal
from vae.samples.evidence import sample_evidence
from vae.schedules.kl import ramp
from vae.training.loop import Trained, train
from vae.training.optimiser import Optimiser
from vae.training.standardise import standardise
from vae.training.state import TrainState
from vae.training.step import draw

PRIORS = ("mixture", "vamp", "flow")
LATENTS = 3


def learned(prior: str, changes: Changes | None = None) -> Changes:
    return {"model.prior": prior, "model.prior_components": 12} | (changes or {})


def some_model(prior: str, changes: Changes | None = None, seed: int = 5) -> VAE:
    """Its prior is anything but N(0, I)."""
    p = params(learned(prior, changes))
    model = TrainState(p, TRAIN, CPU.device, None).model
    assert model.prior is not None
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.prior.parameters():
            size = 0.05 if prior == "flow" else 0.3  # a flow of larger weights is too sharp for a grid
            parameter.add_(size * torch.randn(parameter.shape, generator=random))
        model.posterior.weight.mul_(2)
    return model.eval()


def density(model: VAE) -> DiagonalMixture | LearnedFlow:
    found = model.density()
    assert found is not None
    return found


def likelihood() -> Likelihood:
    return Likelihood("gaussian", 0.2)


# Densities


def test_a_mixture_is_scipys() -> None:
    random = np.random.default_rng(0)
    weights, means, logvars = random.dirichlet(np.ones(4)), random.normal(size=(4, 3)), random.uniform(-4, 2, (4, 3))
    mixture = DiagonalMixture(*(torch.from_numpy(a).float() for a in (np.log(weights), means, logvars)))
    z = 3 * random.standard_normal((2, 5, 3))
    densities = [norm(m, np.exp(v / 2)).logpdf(z).sum(-1) for m, v in zip(means, logvars, strict=True)]
    expected = logsumexp(densities, axis=0, b=weights[:, None, None])
    np.testing.assert_allclose(mixture.log_prob(torch.from_numpy(z)), expected, rtol=1e-5)


def test_a_narrow_component_far_from_0_loses_no_digits() -> None:
    """σ = e^−8 at μ = 5: the products that cancel are of the order of 10⁸."""
    one = torch.zeros(1)
    mixture = DiagonalMixture(one, torch.full((1, 2), 5.0), torch.full((1, 2), -16.0))
    z = torch.tensor([[5.0, 5.0], [5.0, 5.0 + math.exp(-8)]])
    expected = norm(5.0, math.exp(-8)).logpdf(z.double().numpy()).sum(1)
    np.testing.assert_allclose(mixture.log_prob(z), expected, rtol=1e-5)


def test_a_vamp_prior_is_the_mean_of_the_posteriors_of_its_pseudo_inputs() -> None:
    model = some_model("vamp")
    assert isinstance(model.prior, VampPrior)
    mu, logvar = model.encode(model.prior.pseudo_inputs.clamp(0, 1))
    z = torch.randn(7, LATENTS, generator=torch.Generator().manual_seed(0))
    each = Normal(mu, (0.5 * logvar).exp()).log_prob(z[:, None]).sum(2)
    torch.testing.assert_close(density(model).log_prob(z).float(), each.exp().mean(1).log(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", PRIORS)
def test_a_density_integrates_to_one_and_samples_follow_it(prior: str) -> None:
    model = some_model(prior, {"model.latent_dim": 2})
    fixed = model.own_prior()
    side = torch.linspace(-14, 14, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    mass = fixed.log_prob(grid).exp() * float(side[1] - side[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=0.01)
    drawn = fixed.sample(20_000, torch.Generator().manual_seed(0)).double()
    assert drawn.shape == (20_000, 2)
    mean = mass @ grid
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.var(0), mass @ grid.square() - mean.square(), atol=0.3, rtol=0.1)
    assert torch.equal(*(fixed.sample(5, torch.Generator().manual_seed(1)) for _ in range(2)))


def test_a_mixture_starts_with_the_moments_of_a_standard_normal() -> None:
    torch.manual_seed(0)
    start = LearnedMixture(4, 2000).density()
    torch.testing.assert_close(start.means.mean(0), torch.zeros(4), atol=0.1, rtol=0)
    torch.testing.assert_close(start.means.var(0) + start.logvars.exp().mean(0), torch.ones(4), atol=0.1, rtol=0)


# The loss


def test_the_sampled_rate_is_the_kl_on_average() -> None:
    standard = DiagonalMixture(torch.zeros(1), torch.zeros(1, LATENTS), torch.zeros(1, LATENTS))
    mu, logvar = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[-1.0, 0.3, -2.0]])
    noise = torch.randn(100_000, LATENTS, generator=torch.Generator().manual_seed(0))
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum()
    assert float(sampled_rate(standard, mu, logvar, noise).mean()) == pytest.approx(float(expected), rel=0.01)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_losses_are_written_out_and_reach_every_parameter_of_the_prior(prior: str) -> None:
    p = params(learned(prior, {"objective.sigma": 0.3, "model.batch_norm": False}))
    model = some_model(prior, {"model.batch_norm": False}).train()
    random = torch.Generator().manual_seed(0)
    x, noise = torch.rand(9, 1, 8, 8, generator=random), torch.randn(5, 9, LATENTS, generator=random)
    mu, logvar = model.encode(x)
    posterior = Normal(mu, (0.5 * logvar).exp())
    z = mu + posterior.scale * noise
    log_ratio = density(model).log_prob(z).float() - posterior.log_prob(z).sum(2)
    log_likelihood = torch.stack([Normal(model.decode(s), 0.3).log_prob(x).flatten(1).sum(1) for s in z])

    state = TrainState(p, TRAIN, CPU.device, None)
    loss, logs = ELBOLoss(p.elbo, state.control)(model, x, noise[:1], 0.7)
    torch.testing.assert_close(logs["kl"], -log_ratio[0].mean())
    torch.testing.assert_close(loss, (-log_likelihood[0] - 0.7 * log_ratio[0]).mean())
    bound, of_bound = ImportanceWeightedLoss(p.elbo)(model, x, noise, 0.7)
    weights = log_likelihood.double() + 0.7 * log_ratio.double()
    torch.testing.assert_close(bound.double(), -(weights.logsumexp(0) - math.log(5)).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(of_bound["kl"], -log_ratio.mean())

    assert model.prior is not None
    for one in (loss, bound):
        model.zero_grad()
        one.backward(retain_graph=True)
        for name, parameter in model.prior.named_parameters():
            assert parameter.grad is not None and float(parameter.grad.norm()) > 0, name


def test_a_control_sees_the_rate_against_the_learned_prior() -> None:
    p = params(learned("mixture", {"kl.target_kl": 5.0, "kl.max_weight": 2.0}))
    model, state = some_model("mixture"), TrainState(p, TRAIN, CPU.device, None)
    seen: list[float] = []
    state.control.update = lambda rate, mse: seen.append(float(rate.detach()))  # type: ignore[method-assign]
    x, noise = draw(p, torch.from_numpy(TRAIN[:8]), 0, CPU.device)
    _, logs = ELBOLoss(p.elbo, state.control)(model, x, noise, 1.0)
    assert seen == [float(logs["kl"])]


def test_total_free_bits_hide_the_rate_of_a_learned_prior() -> None:
    p = params(learned("flow", {"kl.free_bits_total": 1e4}))
    model, state = some_model("flow"), TrainState(p, TRAIN, CPU.device, None)
    x, noise = draw(p, torch.from_numpy(TRAIN[:8]), 0, CPU.device)
    _, logs = ELBOLoss(p.elbo, state.control)(model, x, noise, 1.0)
    assert float(logs["loss"]) == pytest.approx(float(logs["reconstruction"]) + 1e4)


def test_pseudo_inputs_leave_batch_norm_alone() -> None:
    """In training they are encoded by the running statistics, as in evaluation, and do not change them."""
    model = some_model("vamp").train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running" in name for name in before)
    in_training = density(model)
    assert isinstance(in_training, DiagonalMixture)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(module.training for module in model.modules())
    in_evaluation = density(model.eval())
    assert isinstance(in_evaluation, DiagonalMixture) and torch.equal(in_training.means, in_evaluation.means)


def test_batches_that_change_the_running_statistics_do_not_change_the_gradient_of_pseudo_inputs() -> None:
    p, model = params(learned("vamp", {"objective.sigma": 0.3})), some_model("vamp").train()
    x, noise = draw(p, torch.from_numpy(TRAIN[:16]), 0, CPU.device)

    def loss_of(moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        same = copy.deepcopy(model)  # with the same statistics at every call
        assert isinstance(same.prior, VampPrior)
        same.prior.pseudo_inputs.data.add_(moved)
        control = TrainState(p, TRAIN, CPU.device, None).control
        return ELBOLoss(p.elbo, control)(same, x, noise, 1.0)[0], same.prior.pseudo_inputs

    assert isinstance(model.prior, VampPrior)
    with torch.no_grad():
        model.prior.pseudo_inputs.clamp_(0.2, 0.8)  # within the bounds of the clamp, which has a kink there
    loss, pseudo_inputs = loss_of(torch.zeros(()))
    (gradient,) = torch.autograd.grad(loss, pseudo_inputs)
    step = 0.05 * gradient / gradient.norm()
    difference = (loss_of(step)[0] - loss_of(-step)[0]).item()
    assert difference / 0.1 == pytest.approx(float(gradient.norm()), rel=0.02)


def test_a_pixel_that_a_step_moved_out_of_its_bounds_can_return() -> None:
    model = some_model("vamp")
    assert isinstance(model.prior, VampPrior)
    with torch.no_grad():
        model.prior.pseudo_inputs.copy_(torch.where(model.prior.pseudo_inputs < 0.5, -3.0, 3.0))
    density(model).log_prob(torch.zeros(1, LATENTS)).sum().backward()
    assert set(model.prior.pseudo_inputs.detach().unique().tolist()) == {0.0, 1.0}
    assert model.prior.pseudo_inputs.grad is not None
    assert float((model.prior.pseudo_inputs.grad != 0).float().mean()) > 0.9


def test_pseudo_inputs_start_as_training_images_and_move_within_the_pixels() -> None:
    p = params(learned("vamp", {"model.prior_components": 100}))
    state = TrainState(p, TRAIN, CPU.device, None)
    assert isinstance(state.model.prior, VampPrior)
    start = state.model.prior.images()
    pixels = torch.from_numpy(TRAIN).permute(0, 3, 1, 2).float() / 255
    nearest = (start[:, None] - pixels).abs().flatten(2).amax(2).min(1)
    assert float(nearest.values.detach().max()) == 0 and set(nearest.indices.tolist()) == set(range(len(TRAIN)))
    trained = run(p).model.prior
    assert isinstance(trained, VampPrior)
    assert not torch.equal(trained.images(), start)
    assert float(trained.images().min()) >= 0 and float(trained.images().max()) <= 1


# Trainings


def test_the_standard_prior_trains_by_the_closed_form_to_the_bit() -> None:
    """The plainest loop with the KL of two Gaussians gives the weights of a training with N(0, I)."""
    p = params({"objective.sigma": 0.1, "model.batch_norm": False, "train.epochs": 2, "train.select": "last"})
    model = to_device(build(p), CPU.device).train()
    optimiser = Optimiser(model, p.train)
    images = torch.from_numpy(TRAIN)
    for epoch in range(2):
        for batch, chosen in enumerate(full_batches(images, epoch_order(0, epoch, len(TRAIN)), 16, CPU.device)):
            number = epoch * STEPS + batch
            x, noise = draw(p, chosen, number, CPU.device)
            output, mu, logvar = model(x, noise[0])
            rate = (0.5 * (mu.square() + logvar.exp() - 1 - logvar)).mean(0).sum()
            loss = -gaussian_log_prob(squared_error(x, output).mean(), p.elbo.pixels, 0.1**2)
            loss = loss + ramp(p.kl, number / STEPS, 2) * rate
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            optimiser.step()
    trained = run(p)
    standardise(model, measure(model, TRAIN, trained.likelihood, CPU, p.seed))
    weights = trained.model.state_dict()
    assert not any(name.startswith("prior") for name in weights) and trained.model.density() is None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_the_networks_of_one_seed_start_alike_with_every_prior() -> None:
    plain = build(params()).state_dict()
    for prior in PRIORS:
        weights = build(params(learned(prior))).state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_belongs_to_adamw_and_does_not_decay(prior: str, optimizer: str) -> None:
    p = params(learned(prior, {"train.optimizer": optimizer, "train.weight_decay": 0.5}))
    model = build(p)
    assert model.prior is not None
    groups = [(part, group) for part in Optimiser(model, p.train).parts for group in part.param_groups]
    for parameter in model.prior.parameters():
        (found,) = [(part, group) for part, group in groups if any(w is parameter for w in group["params"])]
        assert isinstance(found[0], torch.optim.AdamW) and found[1]["weight_decay"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        learned("vamp", RECIPE),
        learned("vamp", {"train.ema": 0.9, "model.architecture": "gated_mlp", "model.batch_norm": False}),
        learned("mixture", RECIPE | {"objective.importance_samples_train": 3, "objective.sigma": 0.1}),
        learned("mixture", {"train.aggressive_encoder": True, "kl.schedule": "constant"}),
        learned("flow", RECIPE | {"train.ema": 0.9, "kl.target_kl": 5.0, "kl.max_weight": 2.0}),
    ],
)
def test_interruptions_change_no_bit(tmp_path: Path, changes: Changes) -> None:
    p = params(changes)
    undisturbed = run(p)
    assert_same_bits(trainings.interrupted(p, tmp_path / "state.pt", [2, STEPS + 1], [2, 3]), undisturbed)
    assert all(math.isfinite(row["valid/elbo"]) for row in undisturbed.history)


def clusters(count: int, seed: int) -> np.ndarray:
    """One of eight pictures, with a little noise: the latents of any good model lie in eight clusters."""
    kinds = np.random.default_rng(0).integers(0, 2, (8, 8, 8, 1)) * 160 + 40
    random = np.random.default_rng(seed)
    return (kinds[random.integers(0, 8, count)] + random.normal(0, 6, (count, 8, 8, 1))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def of_clusters() -> dict[str, Trained]:
    network = {"model.architecture": "mlp", "model.widths": [32], "model.batch_norm": False}
    changes = RECIPE | network | {"train.epochs": 20, "objective.sigma": 0.1}
    found = {}
    for prior in ("standard", *PRIORS):
        p = params(changes | learned(prior))
        found[prior] = train(p, clusters(320, 1), clusters(200, 2), CPU)
    return found


@pytest.mark.parametrize("prior", PRIORS)
def test_a_learned_prior_beats_the_standard_one_where_latents_are_clustered(
    of_clusters: dict[str, Trained], prior: str
) -> None:
    """Eight kinds of pictures cost ln 8 = 2.1 nats, and a Gaussian has no clusters."""
    standard, better = of_clusters["standard"].history[-1], of_clusters[prior].history[-1]
    assert better["valid/elbo"] > standard["valid/elbo"] + 3
    assert better["valid/kl"] < standard["valid/kl"] - 3


@pytest.mark.parametrize("prior", PRIORS)
def test_of_a_trained_model_all_say_the_same(of_clusters: dict[str, Trained], prior: str) -> None:
    trained, images = of_clusters[prior], clusters(400, 3)
    model = trained.model
    found = measure(model, images, trained.likelihood, CPU, seed=0)
    bound = importance_weighted_bound(model, images, trained.likelihood, CPU, samples=50, seed=0)
    assert found.elbo < bound < found.elbo + 5
    scores = elbo_per_image(model, images, trained.likelihood, CPU)
    assert scores.mean() == pytest.approx(found.elbo, abs=1)
    # An analytic rate is not at hand; another estimate of it is.
    rate = aggregate.rate(*encode(model, images, CPU), model.own_prior(), seed=0)
    assert found.rate == pytest.approx(rate, abs=0.2)
    assert found.learned_prior and 0 < found.active_units() <= LATENTS
    # The latents are standardised, with their prior.
    np.testing.assert_allclose(trained.train.aggregate_mean, 0, atol=1e-3)
    np.testing.assert_allclose(trained.train.aggregate_variance, 1, atol=1e-3)


def test_the_kl_of_a_latent_is_that_against_the_moments_of_its_aggregate() -> None:
    model = some_model("mixture")
    mu, logvar = encode(model, TRAIN, CPU)
    expected = 0.5 * (np.log(mu.var(0) + np.exp(logvar).mean(0)) - logvar.mean(0))
    assert expected.max() > 0.1
    got = measure(model, TRAIN, likelihood(), CPU, seed=0)
    np.testing.assert_allclose(got.kl_per_latent, expected, rtol=1e-3, atol=1e-5)


def test_a_flow_standardised_twice_is_the_same_density() -> None:
    torch.manual_seed(0)
    density, z = LearnedFlow(3), torch.randn(5, 3)
    before, volume = density.log_prob(z).detach(), torch.zeros(())
    for seed in (1, 2):
        torch.manual_seed(seed)
        mean, deviation = torch.randn(3), 0.5 + torch.rand(3)
        density.standardise(mean, deviation)
        z, volume = (z - mean) / deviation, volume + deviation.log().sum()
    torch.testing.assert_close(density.log_prob(z).detach(), before + volume.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
def test_standardised_latents_change_no_elbo(prior: str) -> None:
    model = some_model(prior, {"model.batch_norm": False})
    before = measure(model, TRAIN, likelihood(), CPU, seed=0)
    assert standardise(model, before)
    after = measure(model, TRAIN, likelihood(), CPU, seed=0)
    assert after.rate == pytest.approx(before.rate, abs=1e-3) and after.elbo == pytest.approx(before.elbo, abs=1e-3)
    np.testing.assert_allclose(after.kl_per_latent, before.kl_per_latent, atol=1e-4)
    np.testing.assert_allclose(after.aggregate_variance, 1, atol=1e-4)


def test_a_dead_latent_costs_nothing_whatever_its_scale() -> None:
    model = some_model("mixture", {"model.batch_norm": False})
    with torch.no_grad():
        model.posterior.weight[[1, 1 + LATENTS]] = 0
        model.posterior.bias[[1, 1 + LATENTS]] = torch.tensor([7.0, -5.0])
    found = measure(model, VALID, likelihood(), CPU, seed=0)
    assert found.kl_per_latent[1] == pytest.approx(0, abs=1e-5)
    assert found.kl_per_latent[0] > 0.01 and found.active_units() == found.active().sum() == 2
    assert found.gaussian_rate == pytest.approx(found.kl_per_latent.sum())


# After training


@pytest.mark.parametrize("prior", PRIORS)
def test_a_saved_model_is_read_with_its_prior(tmp_path: Path, prior: str) -> None:
    p, model = params(learned(prior)), some_model(prior)
    made = config((1, 8, 8), p.model)
    saved.save(tmp_path, model, made)
    read = saved.load(tmp_path)
    z = torch.randn(20, LATENTS, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(read.prior.log_prob(z), model.own_prior().log_prob(z))
    torch.testing.assert_close(read.own_prior.log_prob(z), read.prior.log_prob(z))
    assert read.model.prior_name == model.prior_name != ""


@pytest.mark.parametrize("prior", PRIORS)
def test_a_config_that_asks_for_a_huge_prior_is_refused(tmp_path: Path, prior: str) -> None:
    model = build(params()) if prior == "flow" else some_model(prior)
    asked = params({"model.prior": prior, "model.prior_components": 10_000}).model
    saved.save(tmp_path, model, config((1, 8, 8), asked))
    with pytest.raises(saved.InputError, match="fewer weights than such a model needs"):
        saved.load(tmp_path)


def two_clusters(images: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    side = np.where(np.arange(images) % 2, 3.0, -3.0)[:, None]
    mu = side + 0.5 * random.standard_normal((images, LATENTS))
    return mu.astype(np.float32), np.full((images, LATENTS), -2.0, np.float32)


def test_the_models_own_prior_stays_unless_a_fitted_one_is_better() -> None:
    mu, logvar = two_clusters(400)
    variance = math.log(0.25 + math.exp(-2))
    sides = torch.tensor([[3.0] * LATENTS, [-3.0] * LATENTS])
    good = DiagonalMixture(torch.full((2,), math.log(0.5)), sides, torch.full((2, LATENTS), variance))
    bad = DiagonalMixture(good.log_weights, 0.3 * sides, good.logvars)
    kept = fitting.fit(mu, logvar, 0, ("learned", good))
    assert kept.name == "learned" and kept.prior is good
    assert kept.log_likelihood["learned"] > kept.log_likelihood["N(0, I)"]
    assert fitting.fit(mu, logvar, 0, ("learned", bad)).name not in ("learned", "N(0, I)")
    few = fitting.fit(mu[:10], logvar[:10], 0, ("learned", bad))
    assert few.name == "learned" and few.prior is bad


def test_the_bound_on_a_priors_mismatch_is_0_of_the_same_prior() -> None:
    mu, logvar = two_clusters(100)
    model = some_model("mixture")
    own = model.own_prior()
    assert aggregate.kl_to_prior(mu, logvar, own, own, 0) == aggregate.LowerBound(0.0, 0.0)


@pytest.mark.parametrize("prior", PRIORS)
def test_samples_of_a_learned_prior_are_those_of_its_elbo(of_clusters: dict[str, Trained], prior: str) -> None:
    trained = of_clusters[prior]
    own, images = trained.model.own_prior(), (clusters(320, 1), clusters(200, 2))
    found, other = (
        sample_evidence(trained.model, trained.likelihood, fitted, *images, CPU, seed=0)
        for fitted in (own, StandardNormal(LATENTS))
    )
    assert found is not None and other is not None
    assert found.standard == other.standard and found.fitted != other.fitted
    assert found.aggregate_kl.value == 0 and other.aggregate_kl.value < -0.5  # N(0, I) fits these latents worse


def test_evaluation_says_which_prior_its_numbers_are_of(of_clusters: dict[str, Trained]) -> None:
    trained, p = of_clusters["vamp"], params(learned("vamp", {"evaluate.importance_samples": 20}))
    dead = copy.deepcopy(trained.model)
    with torch.no_grad():
        dead.posterior.weight[[0, LATENTS]] = 0
    images = {"train": clusters(320, 1), "valid": clusters(60, 2), "test": clusters(80, 3)}
    labels = {split: np.resize(np.array(["a", "b"], dtype=object), len(some)) for split, some in images.items()}
    for model in (trained.model, dead):
        made = config((1, 8, 8), p.model, likelihood=trained.likelihood)
        read = Saved(model, made, model.own_prior(), "0" * 64)
        found = evaluate.evaluate(read, images, labels, p, CPU)["test"].metrics
        assert found["elbo"] < -found["nll"]
        assert found["fitted_prior_kl"] == pytest.approx(found["kl"], abs=0.5)
        # A learned prior cannot do without some of its latents.
        assert (found["nll_pruned"] is None) is (model is dead) and (found["active_units"] == 2) is (model is dead)
