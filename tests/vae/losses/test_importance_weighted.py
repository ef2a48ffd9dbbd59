"""The importance-weighted bound against torch.distributions (Burda 2016, equation 8)."""

import pytest
import torch
from helpers.trainings import params, run
from torch.distributions import Normal, kl_divergence

from vae.losses.importance_weighted import ImportanceWeightedLoss
from vae.models.vae import build


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_it_is_the_log_of_an_average_weight(beta: float) -> None:
    p = params({"objective.sigma": 0.3, "objective.importance_samples_train": 7, "model.batch_norm": False})
    model, random = build(p), torch.Generator().manual_seed(0)
    x, noise = torch.rand(9, 1, 8, 8, generator=random), torch.randn(7, 9, 3, generator=random)
    loss, logs = ImportanceWeightedLoss(p.elbo)(model, x, noise, beta)

    mu, logvar = model.encode(x)
    posterior, prior = Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)
    z = mu + posterior.scale * noise
    likelihood = torch.stack([Normal(model.decode(s), 0.3).log_prob(x).flatten(1).sum(1) for s in z])
    weights = likelihood + beta * (prior.log_prob(z) - posterior.log_prob(z)).sum(2)
    bound = weights.double().exp().mean(0).log().mean()
    expected = {
        "loss": -bound.float(), "reconstruction": -likelihood.mean(),
        "kl": kl_divergence(posterior, prior).sum(1).mean(),
    }  # fmt: skip
    torch.testing.assert_close(logs, expected, rtol=1e-4, atol=0)
    assert loss.requires_grad and loss == logs["loss"]


def test_training_on_it_learns() -> None:
    history = run(
        params({"objective.sigma": 0.15, "train.epochs": 12, "objective.importance_samples_train": 10})
    ).history
    last = history[-1]
    assert last["valid/elbo"] > history[2]["valid/elbo"] + 10
    # at the final weight of 1 the bound is above the ELBO (Jensen)
    assert last["train/loss"] < last["train/reconstruction"] + last["train/kl"]
