"""One sentence has one cause: a model that exploded is not called collapsed, nor one whose rate is high.

Tried, on the digits: learning rates of 0.3, 1, 3 and 10, without batch norm, with a Bernoulli likelihood, with mean
reduction; 1e-6 (`not_learning`, as before). Was wrong: `collapsed … carry next to nothing (3.3e+04 nats per image)`.
"""

import pytest
from helpers import trainings
from helpers.trainings import CPU, TRAIN, VALID
from helpers.verdicts import USUAL, evidence, history, measurement, params

from vae.collapse import linear_theory
from vae.collapse.diagnosis import judge
from vae.collapse.restarts import attempts
from vae.config.resolved import usual_learning_rate
from vae.training.history import why_stop


@pytest.mark.parametrize("changes", [{}, {"objective.likelihood": "bernoulli"}, {"model.batch_norm": False}])
def test_a_training_with_far_too_large_steps_has_exploded(changes: dict) -> None:
    p = trainings.params({"train.learning_rate": 10.0, "train.epochs": 3, "train.remedy_attempts": 0, **changes})
    spectrum = linear_theory.spectrum(TRAIN, p.model.latent_dim, False)
    (only,) = attempts(p, spectrum, TRAIN, VALID, CPU, lambda now, number, reason: trainings.run(now))
    assert only.verdict.verdict == "diverged", only.verdict
    assert only.verdict.remedy["train.learning_rate"] == usual_learning_rate(p.train)


@pytest.mark.parametrize(
    "found",
    [
        {"valid": measurement(kl=11_156.0, mse=539.0, active=0)},  # learning rate 10
        {"valid": measurement(kl=123.5, mse=0.12, active=0)},  # learning rate 3
        {"valid": measurement(kl=69_810.0, mse=0.125)},  # mean reduction, learning rate 5
        {"valid": measurement(kl=296.9, mse=2e19, active=0)},  # without batch norm
    ],
)
def test_a_model_that_exploded_is_called_so_and_gets_a_lower_learning_rate(found: dict) -> None:
    rows = history(kls=[found["valid"].rate] * 40)
    verdict = judge(params({"train.learning_rate": 10.0}), evidence(**found, history=rows))
    assert verdict.verdict == "diverged" and "exploded" in verdict.summary
    assert verdict.remedy["train.learning_rate"] == USUAL
    assert f"{found['valid'].mse_sampled:.3g}" in verdict.reasons[0]


def test_a_posterior_without_rate_and_one_that_ignores_the_image_are_told_apart() -> None:
    low = judge(params(), evidence(valid=measurement(kl=0.2, active=0)))
    constant = judge(params(), evidence(valid=measurement(kl=15.0, active=0)))
    assert low.verdict == constant.verdict == "collapsed"
    assert "carry next to nothing (0.2 nats" in low.summary
    assert "the same for every image, 15 nats from the prior" in constant.summary


def test_the_reason_to_stop_tells_them_apart_too() -> None:
    flat = {"valid/active_units": 0.0}
    rows = [row | flat for row in history(kls=[900.0] * 40)]
    assert str(why_stop(rows, params())).startswith("the posterior is the same for every image: a KL of 900 nats")
    rows = [row | flat for row in history(kls=[0.01] * 40)]
    assert str(why_stop(rows, params())).startswith("collapsed: a KL of 0.01 nats")
