"""Each verdict from evidence made for it, with its numbers and its remedy."""

import math
from typing import Any

import pytest
from helpers.verdicts import (
    COLLAPSED,
    DIVERGED,
    FALLING,
    GROWING,
    LATENTS,
    NOT_LEARNING,
    OVERFITTED,
    PARTLY,
    UNDER,
    evidence,
    history,
    measurement,
    params,
    predicted,
)
from ruamel.yaml import YAML

from vae.collapse.diagnosis import Verdict, judge


def test_healthy() -> None:
    got = judge(params(), evidence())
    assert got.verdict == "healthy" and got.recommendations == []
    assert "20.0 nats" in got.summary and "4 informative units" in got.summary
    assert "22" in got.reasons[0] and "0.02" in got.reasons[1] and "0.08" in got.reasons[1]


@pytest.mark.parametrize(
    ("verdict", "changes"),
    [
        ("diverged", DIVERGED),
        ("diverged", {"history": history(12, **{"train/loss": math.inf})}),
        ("diverged", {"history": history(12, **{"valid/kl": 2e5})}),
        ("diverged", {"history": history(1, **{"train/kl": math.nan}), "kept_epoch": 0}),
        ("collapsed", COLLAPSED),
        ("collapsed", {"valid": measurement(kl=0.99)}),
        ("collapsed", {"valid": measurement(active=0)}),
        ("not_learning", NOT_LEARNING),
        ("partly_collapsed", PARTLY),
        ("under_regularised", UNDER),
        ("overfitted", OVERFITTED),
    ],
)
def test_each_verdict(verdict: str, changes: dict[str, Any]) -> None:
    got = judge(params(), evidence(**changes))
    assert got.verdict == verdict
    assert got.summary.endswith(".") and got.reasons and got.recommendations


@pytest.mark.parametrize(
    "changes",
    [
        {"valid": measurement(kl=1.0), "predicted": predicted(kl=2.4)},
        {"valid": measurement(mse=0.0759)},
        {"valid": measurement(kl=8.9)},
        {"valid": measurement(kl=5.0), "kept_epoch": 9},
        {"valid": measurement(kl=5.0), "history": history(14), "kept_epoch": 14},
        {"valid": measurement(kl=5.0), "history": history(losses=FALLING, kls=GROWING)},
        {"valid": measurement(variance=6.9)},
        {"train": {"elbo": 350.0, "mean_image_elbo": 50.0}},
        {"train": {"elbo": 20.0, "mean_image_elbo": 50.0}},
    ],
)
def test_just_short_of_a_verdict_is_healthy(changes: dict[str, Any]) -> None:
    assert judge(params(), evidence(**changes)).verdict == "healthy"


def test_a_loss_that_only_jitters_after_the_ramp_is_flat() -> None:
    jitter = [(-1) ** (epoch + 1) - 0.01 * epoch for epoch in range(35)]
    falling = [500.0, 100, 60, 30, 10]
    assert judge(params(), evidence(**PARTLY, history=history(losses=falling + jitter))).verdict == (
        "partly_collapsed"
    )


def test_a_low_kl_that_grows_no_more_is_settled_though_the_loss_falls_on() -> None:
    """Over the last five epochs against the five before: 1.04 is settled, 1.06 is not."""
    for growth, verdict in ((1.04, "partly_collapsed"), (1.06, "healthy")):
        kls = [4.0] * 35 + [4.0 * growth] * 5
        got = judge(params(), evidence(**PARTLY, history=history(losses=FALLING, kls=kls)))
        assert got.verdict == verdict
    flat = judge(params(), evidence(**PARTLY, history=history(losses=FALLING)))
    assert "with a flat KL" in flat.reasons[0]


def test_too_small_an_effective_beta_is_under_regularised() -> None:
    """w·N/(2·Z·MSE) = w·256/(2·4·0.02) = 1600·w."""
    for weight, verdict in ((0.00003, "under_regularised"), (0.00004, "healthy")):
        p = params({"objective.reduction": "mean", "kl.max_weight": weight})
        assert judge(p, evidence(predicted=predicted(calibrated=0.0006))).verdict == verdict


def test_the_first_rule_that_holds_names_the_verdict() -> None:
    """With everything wrong at once, and then one thing less at a time."""
    everything = measurement(kl=0.02, mse=0.078, active=0, variance=40.0)
    wrong = {**DIVERGED, **OVERFITTED, "valid": everything}
    assert judge(params(), evidence(**wrong)).verdict == "diverged"
    wrong["history"] = history()
    assert judge(params(), evidence(**wrong)).verdict == "collapsed"
    wrong["valid"] = measurement(kl=5.0, mse=0.078, variance=40.0)
    assert judge(params(), evidence(**wrong)).verdict == "not_learning"
    wrong["valid"] = measurement(kl=5.0, variance=40.0)
    assert judge(params(), evidence(**wrong)).verdict == "partly_collapsed"
    wrong["valid"] = measurement(kl=20.0, variance=40.0)
    assert judge(params(), evidence(**wrong)).verdict == "under_regularised"
    wrong["valid"] = measurement()
    assert judge(params(), evidence(**wrong)).verdict == "overfitted"


def test_reasons_carry_the_numbers() -> None:
    def reason(**changes: Any) -> str:
        return " ".join(judge(params(), evidence(**changes)).reasons)

    assert "valid/kl" in reason(**DIVERGED) and "epoch 12" in reason(**DIVERGED)
    assert "0.02 nats" in reason(**COLLAPSED) and "0 active units" in reason(**COLLAPSED)
    assert "22 nats" in reason(**COLLAPSED)
    assert "kl.max_weight = 1 " in reason(**COLLAPSED, predicted=predicted(collapse=0.8, calibrated=0.01))
    assert "0.078" in reason(**NOT_LEARNING) and "0.08" in reason(**NOT_LEARNING)
    assert "5 nats" in reason(**PARTLY) and "33 epochs past the ramp" in reason(**PARTLY)
    assert "70.6 nats" in reason(**UNDER) and "3.53" in reason(**UNDER)
    assert "500" in reason(**OVERFITTED) and "280" in reason(**OVERFITTED) and "0.49" in reason(**OVERFITTED)


def test_thresholds_of_the_parameters_are_used() -> None:
    p = params({"monitor.active_unit_threshold": 1.5})
    assert judge(p, evidence()).verdict == "collapsed"
    p = params({"monitor.informative_unit_nats": 6.0})
    assert "0 informative units" in judge(p, evidence()).summary


def test_recommendations_are_the_remedy_in_words_and_then_the_advice() -> None:
    remedy = {
        "model.batch_norm": True, "kl.max_weight": 0.5, "train.epochs": 9, "model.widths": [4, 2],
        "kl.capacity": None, "objective.sigma": "optimal",
    }  # fmt: skip
    *lines, advice = Verdict("collapsed", "", [], remedy, ["add images"]).recommendations
    assert lines[0] == "set model.batch_norm to true" and advice == "add images"
    words = [line.split(maxsplit=3) for line in lines]
    assert {name: YAML(typ="safe").load(value) for _, name, _, value in words} == remedy


@pytest.mark.parametrize(
    ("changes", "theory", "remedy"),
    [
        # By its weight: the ELBO's own, sum reduction and the sigma that fits best; what is not so already.
        ({"kl.max_weight": 40.0}, {}, {"kl.max_weight": 1}),
        ({"objective.sigma": 3.0}, {"collapse": 0.8, "calibrated": 0.00123}, {"objective.sigma": "optimal"}),
        (
            {"objective.reduction": "mean", "kl.max_weight": 0.04},
            {"collapse": 0.03, "calibrated": 0.00123},
            {"objective.reduction": "sum", "kl.max_weight": 1},
        ),
        ({}, {"collapse": 0.8}, {"kl.max_weight": 0.2}),  # of such images the ELBO keeps less than 1 nat
        (
            {"objective.likelihood": "bernoulli", "objective.reduction": "mean"},
            {"collapse": 0.8, "calibrated": 0.00123},
            {"kl.max_weight": 0.0012},
        ),
        # Though the weight is low enough: a gentler start, with a ramp that ends in the first half.
        (
            {"model.batch_norm": False},
            {},
            {"train.learning_rate": 0.0005, "kl.annealing_epochs": 10, "model.batch_norm": True},
        ),
        (
            {"kl.schedule": "constant", "kl.annealing_epochs": 0},
            {},
            {
                "train.learning_rate": 0.0005, "kl.annealing_epochs": 5, "kl.schedule": "linear",
                "kl.free_bits": 0.1,
            },
        ),
        (
            {"kl.annealing_epochs": 30},
            {},
            {
                "train.learning_rate": 0.0005, "kl.annealing_epochs": 60, "train.epochs": 120,
                "kl.free_bits": 0.1,
            },
        ),
    ],
)  # fmt: skip
def test_what_a_collapse_is_met_with(
    changes: dict[str, Any], theory: dict[str, float], remedy: dict[str, Any]
) -> None:
    assert judge(params(changes), evidence(**COLLAPSED, predicted=predicted(**theory))).remedy == remedy


@pytest.mark.parametrize(("weight", "larger"), [(0.01, 1), (1.0, 2)])
def test_under_regularised_is_met_with_a_larger_weight(weight: float, larger: float) -> None:
    assert judge(params({"kl.max_weight": weight}), evidence(**UNDER)).remedy == {"kl.max_weight": larger}


def test_a_young_model_far_from_the_prior_is_told_to_train_longer() -> None:
    """Its aggregate posterior still moves: a higher KL weight would be the wrong advice."""
    p = params()
    falling = history(8)
    for row in falling:
        row["train/loss"] = -100.0 * row["epoch"]
    young = judge(p, evidence(**UNDER, history=falling, kept_epoch=8))
    assert young.verdict == "under_regularised"
    assert young.recommendations == [f"set train.epochs to {4 * p.train.epochs}"]
    settled = judge(p, evidence(**UNDER))
    assert all("kl.max_weight" in line for line in settled.recommendations)


def test_a_training_too_short_wants_time_and_a_flat_one_smaller_steps() -> None:
    falling = evidence(**NOT_LEARNING, history=history(40, FALLING))
    assert judge(params(), falling).remedy == {"train.epochs": 4 * params().train.epochs}
    flat = judge(params(), evidence(**NOT_LEARNING)).remedy
    assert flat["train.learning_rate"] == pytest.approx(params().train.learning_rate / 4)


@pytest.mark.parametrize(("images", "doubted"), [(1000, False), (3 * LATENTS, True)])
def test_where_images_are_few_the_expectation_itself_is_doubted(images: int, doubted: bool) -> None:
    train = {"images": images, "elbo": 285.0, "mean_image_elbo": 50.0}
    verdict = judge(params(), evidence(valid=measurement(kl=5.0), train=train))
    assert verdict.verdict == "partly_collapsed"
    assert any("want of images" in reason for reason in verdict.reasons) is doubted
