"""Each verdict from evidence made for it, with its numbers and its remedy."""

import dataclasses
import math
from typing import Any

import pytest
from helpers.parameters import Changes
from helpers.verdicts import FALLING, GROWING, LATENTS, USUAL, WRONG, evidence, history, measurement, params, predicted
from ruamel.yaml import YAML

from vae.collapse.diagnosis import Verdict, judge
from vae.collapse.remedies import SMALL_LEARNING_RATE, short
from vae.config.resolved import CONSTANT


def judged(changes: Changes | None = None, **found: Any) -> Verdict:
    """With these parameters changed, and this of the evidence."""
    return judge(params(changes), evidence(**found))


def test_healthy() -> None:
    got = judged()
    assert got.verdict == "healthy" and got.recommendations == []
    assert "20.0 nats" in got.summary and "4 informative units" in got.summary
    assert "22" in got.reasons[0] and "0.02" in got.reasons[1] and "0.08" in got.reasons[1]


JITTER = [(-1) ** (epoch + 1) - 0.01 * epoch for epoch in range(35)]


@pytest.mark.parametrize(
    ("verdict", "found"),
    [
        ("diverged", {"history": history(12, **{"train/loss": math.inf})}),
        ("diverged", {"history": history(12, **{"valid/kl": 2e5})}),
        ("diverged", {"history": history(1, **{"train/kl": math.nan}), "kept_epoch": 0}),
        ("collapsed", {"valid": measurement(kl=0.99)}),
        ("collapsed", {"valid": measurement(active=0)}),
        ("diverged", {"valid": measurement(mse=1.1)}),
        ("diverged", {"valid": measurement(mse=0.08, kl=23, active=0)}),
        ("diverged", {"valid": measurement(mse=0.08, kl=221)}),
        # a loss that only jitters after the ramp is flat
        ("partly_collapsed", WRONG["partly_collapsed"] | {"history": history(losses=[500, 100, 60, 30, 10, *JITTER])}),
        # just short of a verdict
        ("healthy", {"valid": measurement(kl=1.0), "predicted": predicted(kl=2.4)}),
        ("healthy", {"valid": measurement(mse=0.0759)}),
        ("not_learning", {"valid": measurement(mse=0.08, kl=219)}),
        ("collapsed", {"valid": measurement(mse=0.08, kl=21, active=0)}),
        ("healthy", {"valid": measurement(kl=8.9)}),
        ("healthy", {"valid": measurement(kl=5.0), "kept_epoch": 9}),
        ("healthy", {"valid": measurement(kl=5.0), "history": history(14), "kept_epoch": 14}),
        ("healthy", {"valid": measurement(kl=5.0), "history": history(losses=FALLING, kls=GROWING)}),
        ("healthy", {"valid": measurement(variance=6.9)}),
        ("healthy", {"train": {"elbo": 350.0, "mean_image_elbo": 50.0}}),
        ("healthy", {"train": {"elbo": 20.0, "mean_image_elbo": 50.0}}),
    ],
)
def test_each_verdict_and_just_short_of_it(verdict: str, found: Changes) -> None:
    assert judged(**found).verdict == verdict


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("diverged", ["valid/kl", "epoch 12"]),
        ("collapsed", ["0.02 nats", "0 active units", "22 nats"]),
        ("not_learning", ["0.078", "0.08"]),
        ("partly_collapsed", ["5 nats", "33 epochs past the ramp"]),
        ("under_regularised", ["70.6 nats", "3.53"]),
        ("overfitted", ["500", "280", "0.489"]),
    ],
)
def test_reasons_carry_the_numbers(verdict: str, words: list[str]) -> None:
    got = judged(**WRONG[verdict])
    assert got.verdict == verdict and got.summary.endswith(".") and got.recommendations
    for word in words:
        assert word in " ".join(got.reasons)


def test_a_low_kl_that_grows_no_more_is_settled_though_the_loss_falls_on() -> None:
    """Over the last five epochs against the five before: 1.04 is settled, 1.06 is not."""
    for growth, verdict in ((1.04, "partly_collapsed"), (1.06, "healthy")):
        kls = [4.0] * 35 + [4.0 * growth] * 5
        low = WRONG["partly_collapsed"] | {"history": history(losses=FALLING, kls=kls)}
        assert judged(**low).verdict == verdict
    flat = judged(**(low | {"history": history(losses=FALLING)}))
    assert "with a flat KL" in flat.reasons[0]


def test_a_learned_prior_that_saves_nats_is_no_collapse() -> None:
    """8 nats where N(0, I) would cost 20: linear theory, which expects 22, speaks of the latter."""
    saves = dataclasses.replace(measurement(kl=20.0), rate=8.0, learned_prior=True)
    assert saves.gaussian_rate == pytest.approx(20.0) and saves.elbo == 292.0
    assert judged(valid=saves).verdict == "healthy"
    assert judged(valid=dataclasses.replace(measurement(kl=8.0), learned_prior=True)).verdict == "partly_collapsed"
    assert judged(valid=dataclasses.replace(measurement(kl=20.0), rate=0.02, learned_prior=True)).verdict == "collapsed"


def test_too_small_an_effective_beta_is_under_regularised() -> None:
    """w·N/(2·Z·MSE) = w·256/(2·4·0.02) = 1600·w."""
    for weight, verdict in ((0.00003, "under_regularised"), (0.00004, "healthy")):
        changes = {"objective.reduction": "mean", "kl.max_weight": weight}
        assert judged(changes, predicted=predicted(calibrated=0.0006)).verdict == verdict


def test_a_ramp_that_never_left_0() -> None:
    """A training of one step is kept at weight 0."""
    found = judged({}, history=history(1, kl_weight=0.0), kept_epoch=1)
    assert found.verdict == "under_regularised" and "the weight reached 0 of its final value" in found.reasons[-1]


def test_the_first_rule_that_holds_names_the_verdict() -> None:
    """With everything wrong at once, and then one thing less at a time."""
    wrong = {**WRONG["diverged"], **WRONG["overfitted"]}
    for verdict, less in (
        ("diverged", {"valid": measurement(kl=0.02, mse=0.078, active=0, variance=40.0)}),
        ("collapsed", {"history": history()}),
        ("not_learning", {"valid": measurement(kl=5.0, mse=0.078, variance=40.0)}),
        ("partly_collapsed", {"valid": measurement(kl=5.0, variance=40.0)}),
        ("under_regularised", {"valid": measurement(kl=20.0, variance=40.0)}),
        ("overfitted", {"valid": measurement()}),
    ):
        wrong |= less
        assert judged(**wrong).verdict == verdict


def test_thresholds_of_the_parameters_are_used() -> None:
    assert judged({"monitor.active_unit_threshold": 1.5}).verdict == "collapsed"
    assert "0 informative units" in judged({"monitor.informative_unit_nats": 6.0}).summary


def test_recommendations_are_the_remedy_in_words_and_then_the_advice() -> None:
    remedy = {
        "model.batch_norm": True, "kl.max_weight": 0.5, "train.epochs": 9, "model.widths": [4, 2],
        "kl.capacity": None, "objective.sigma": "optimal",
    }  # fmt: skip
    *lines, advice = Verdict("collapsed", "", [], remedy, ["add images"]).recommendations
    assert lines[0] == "set model.batch_norm to true" and advice == "add images"
    words = [line.split(maxsplit=3) for line in lines]
    assert {name: YAML(typ="safe").load(value) for _, name, _, value in words} == remedy


MEAN, SLOWER = {"objective.reduction": "mean"}, {"train.learning_rate": short(USUAL / 4)}
FEW, OF_MEAN = {"collapse": 0.8, "calibrated": 0.00123}, {"collapse": 0.03, "calibrated": 0.00123}


@pytest.mark.parametrize(
    ("changes", "theory", "remedy"),
    [
        # By its weight: the ELBO's own, sum reduction and the sigma that fits best; what is not so already.
        ({"kl.max_weight": 40.0}, {}, {"kl.max_weight": 1}),
        ({"objective.sigma": 3.0}, FEW, {"objective.sigma": "optimal"}),
        (MEAN | {"kl.max_weight": 0.04}, OF_MEAN, {"objective.reduction": "sum", "kl.max_weight": 1}),
        (MEAN | {"objective.likelihood": "bernoulli"}, FEW, {"kl.max_weight": 0.0012}),
        ({}, {"collapse": 0.8}, {"kl.max_weight": 0.2}),  # of such images the ELBO keeps less than 1 nat
        # Though the weight is low enough: a gentler start, with a ramp that ends in the first half.
        ({"model.batch_norm": False}, {}, SLOWER | {"kl.annealing_epochs": 10, "model.batch_norm": True}),
        (
            {"kl.schedule": "constant", "kl.annealing_epochs": 0},
            {},
            SLOWER | {"kl.annealing_epochs": 5, "kl.schedule": "linear", "kl.free_bits": 0.1},
        ),
        (
            {"kl.annealing_epochs": 30},
            {},
            SLOWER | {"kl.annealing_epochs": 60, "train.epochs": 120, "kl.free_bits": 0.1},
        ),
    ],
)
def test_remedies_of_a_collapse(changes: Changes, theory: Changes, remedy: Changes) -> None:
    got = judged(changes, **WRONG["collapsed"], predicted=predicted(**theory))
    assert got.remedy == remedy
    assert not theory or f"kl.max_weight = {params(changes).kl.max_weight:g} " in got.reasons[1]


SMALL = SMALL_LEARNING_RATE * USUAL
LONGER = {"train.epochs": 4 * params().train.epochs}
STEADY_RATE = {"train.learning_rate_schedule": "constant"}


@pytest.mark.parametrize(
    ("verdict", "changes", "found", "remedy"),
    [
        ("under_regularised", {"kl.max_weight": 0.01}, {}, {"kl.max_weight": 1}),
        ("under_regularised", {}, {}, {"kl.max_weight": 2}),
        # While the aggregate posterior still moves, a higher KL weight would be the wrong advice.
        ("under_regularised", {}, {"history": history(losses=FALLING[:8]), "kept_epoch": 8}, LONGER),
        ("not_learning", {}, {"history": history(losses=FALLING)}, LONGER),
        ("not_learning", {"train.learning_rate": 0.9 * SMALL}, {}, {"train.learning_rate": USUAL}),
        ("not_learning", {"train.learning_rate": 1.1 * USUAL}, {}, {"train.learning_rate": USUAL}),
        ("not_learning", {"train.learning_rate": 1.00001 * USUAL}, {}, LONGER),  # copied from the advice, rounded
        ("not_learning", {"train.learning_rate": 1.1 * SMALL}, {"history": history(losses=FALLING)}, LONGER),
        # Where the learning rate falls, a flat loss says nothing of it.
        ("not_learning", {}, {}, LONGER),
        ("not_learning", STEADY_RATE, {}, LONGER | {"train.learning_rate": short(CONSTANT * USUAL / 4)}),
    ],
)
def test_remedies_of_other_verdicts(verdict: str, changes: Changes, found: Changes, remedy: Changes) -> None:
    got = judged(changes, **(WRONG[verdict] | found))
    assert (got.verdict, got.remedy, got.advice) == (verdict, remedy, [])


@pytest.mark.parametrize(("images", "doubted"), [(1000, False), (3 * LATENTS, True)])
def test_where_images_are_few_the_expectation_itself_is_doubted(images: int, doubted: bool) -> None:
    train = {"images": images, "elbo": 285.0, "mean_image_elbo": 50.0}
    got = judged(**WRONG["partly_collapsed"], train=train)
    assert got.verdict == "partly_collapsed"
    assert any("too few images" in reason for reason in got.reasons) is doubted
