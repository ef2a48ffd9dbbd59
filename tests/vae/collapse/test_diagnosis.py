"""Each verdict from evidence made for it, with its numbers and its remedy."""

import dataclasses
import math
from typing import Any

import pytest
from helpers.parameters import Changes
from helpers.verdicts import (
    FALLING, GROWING, LATENTS, POOR, USUAL, WRONG, evidence, history, measurement, params, predicted, quality, samples,
)  # fmt: skip
from ruamel.yaml import YAML

from vae.collapse.diagnosis import Verdict, is_poor, judge
from vae.collapse.remedies import SMALL_LEARNING_RATE, short
from vae.config.resolved import CONSTANT
from vae.metrics.free_running import FreeRunning
from vae.samples.bootstrap import Estimate


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
        ("healthy", {"valid": measurement(variance=40.0)}),  # moments alone are no verdict
        ("healthy", {"samples": samples(fitted=POOR)}),  # N(0, I) will do
        ("healthy", {"samples": samples(standard=POOR)}),  # the fitted prior will
        ("healthy", {"samples": samples(kl=99.0)}),
        ("prior_mismatch", {"samples": samples(fitted=POOR, kl=99.0)}),
        ("healthy", {"samples": samples(fitted=POOR, kl=2.19, error=0.1)}),
        ("prior_mismatch", {"samples": samples(fitted=POOR, kl=2.21, error=0.1)}),
        ("healthy", {"train": {"elbo": 350.0, "mean_image_elbo": 50.0}}),
        ("healthy", {"train": {"elbo": 20.0, "mean_image_elbo": 50.0}}),
    ],
)
def test_each_verdict_and_just_short_of_it(verdict: str, found: Changes) -> None:
    assert judged(**found).verdict == verdict


@pytest.mark.parametrize(
    ("verdict", "drawn"),
    [
        ("partly_collapsed", FreeRunning(mse=0.09, mean_image_mse=0.08, gain=0.0)),
        ("partly_collapsed", FreeRunning(mse=0.0761, mean_image_mse=0.08, gain=46.9)),
        # 285 − 50 nats were learnt over the mean image
        ("healthy", FreeRunning(mse=0.09, mean_image_mse=0.08, gain=47.1)),
        ("healthy", FreeRunning(mse=0.0759, mean_image_mse=0.08, gain=0.0)),
        ("healthy", None),
    ],
)
def test_an_autoregressive_decoder_has_to_use_its_latents(verdict: str, drawn: FreeRunning | None) -> None:
    """The teacher-forced error, a quarter of the mean image's, says nothing about that."""
    got = judged({"model.architecture": "autoregressive", "kl.max_weight": 4.0}, free_running=drawn)
    assert got.verdict == verdict
    if drawn is not None and verdict == "partly_collapsed":
        assert f"{drawn.mse:.3g} without the preceding pixels" in got.reasons[0]
        assert f"{drawn.gain:.3g} of the 235 nats" in got.reasons[1]
        assert got.remedy["kl.max_weight"] < 4


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("diverged", ["valid/kl", "epoch 12"]),
        ("collapsed", ["0.02 nats", "0 active units", "22 nats"]),
        ("not_learning", ["0.078", "0.08"]),
        ("partly_collapsed", ["5 nats", "33 epochs past the ramp"]),
        ("under_regularised", ["effective beta of 0.01", "below 0.05", "the ramp ends after epoch 5"]),
        ("prior_mismatch", ["precision 0.30 / 0.30 / 0.90", "recall 0.20 / 0.20 / 0.80", "at least 7.6 ± 0.4 nats"]),
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
    wrong = {**WRONG["diverged"], **WRONG["overfitted"], **WRONG["prior_mismatch"]}
    for verdict, less, weight in (
        ("diverged", {"valid": measurement(kl=0.02, mse=0.078, active=0)}, 0.01),
        ("collapsed", {"history": history()}, 0.01),
        ("not_learning", {"valid": measurement(kl=5.0, mse=0.078)}, 0.01),
        ("partly_collapsed", {"valid": measurement(kl=5.0)}, 0.01),
        ("under_regularised", {"valid": measurement()}, 0.01),
        ("prior_mismatch", {}, 1.0),
        ("overfitted", {"samples": samples()}, 1.0),
        ("healthy", {"train": evidence().train}, 1.0),
    ):
        wrong |= less
        assert judged({"kl.max_weight": weight}, **wrong).verdict == verdict


@pytest.mark.parametrize("measure", ["precision", "recall", "coverage"])
def test_samples_are_poor_by_any_measure_that_falls_short_of_reconstructions(measure: str) -> None:
    """Of those, precision is 0.9, recall 0.8 and coverage 0.85: at 0.6 of that they are just good enough."""
    reached = {"precision": 0.9, "recall": 0.8, "coverage": 0.85}[measure]
    for share, poor in ((0.59, True), (0.61, False), (1.2, False)):
        assert is_poor(quality(**{measure: share * reached}), samples()) is poor
    # Where reconstructions are poor themselves, the decoder is at fault and not the prior.
    blurred = dataclasses.replace(samples(), reconstructions=quality(**{measure: 0.1}))
    assert not is_poor(quality(**{measure: 0.1}), blurred)


def test_density_and_frechet_distance_decide_nothing() -> None:
    far = Estimate(1e3, 1e3, 1e3)
    assert not is_poor(dataclasses.replace(quality(), density=Estimate(0.0, 0.0, 0.0), frechet=far), samples())


def test_a_healthy_model_says_what_to_sample_from_where_n_0_i_will_not_do() -> None:
    plain = judged(samples=samples())
    assert "Sample" not in plain.summary and "samples of the fitted prior" in plain.reasons[-2]
    for found in (samples(standard=POOR, kl=3.14), samples(kl=3.14)):
        got = judged(samples=found, prior="mixture of 5 Gaussians")
        assert got.verdict == "healthy" and got.recommendations == []
        assert "Sample from its fitted prior (a mixture of 5 Gaussians)" in got.summary
        assert "at least 3.1 nats" in got.summary and "at least 3.14 ± 0.1 nats" in got.reasons[-1]
    assert judged().reasons == plain.reasons[:2], "without samples nothing is said of them"


def test_no_prior_gives_good_samples() -> None:
    got = judged(**WRONG["prior_mismatch"])
    assert got.summary == "Samples are poor, from N(0, I) and from a mixture of 5 Gaussians fitted to the latents alike."
    same = judged(samples=samples(POOR, POOR, kl=0.0, error=0.0))
    assert same.verdict == "prior_mismatch"
    assert same.summary == "Samples from N(0, I) are poor, and no other prior fits the latents better."


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
        ("under_regularised", {}, {}, {"kl.annealing_epochs": 6.7}),  # a sixth of the epochs
        # Of few latents by a higher weight, of many by fewer.
        ("prior_mismatch", {}, {}, {"kl.max_weight": 2}),
        ("prior_mismatch", {"kl.max_weight": 0.5}, {}, {"kl.max_weight": 1}),
        ("prior_mismatch", {"model.latent_dim": 31}, {}, {"kl.max_weight": 2}),
        ("prior_mismatch", {"model.latent_dim": 32}, {}, {"model.latent_dim": 16}),
        (
            "prior_mismatch",
            {"model.latent_dim": 64, "objective.reduction": "mean", "kl.max_weight": 0.03},
            {},
            {"model.latent_dim": 32, "kl.max_weight": 0.015},
        ),
        # While the aggregate posterior still moves, either would be the wrong advice.
        ("prior_mismatch", {}, {"history": history(losses=FALLING)}, LONGER),
        ("prior_mismatch", {"model.latent_dim": 64}, {"history": history(8), "kept_epoch": 8}, LONGER),
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


@pytest.mark.parametrize(
    ("verdict", "changes", "found"),
    [
        ("under_regularised", {"objective.sigma": 0.02}, {}),  # 0.02²/0.02 of the β of the best σ
        ("prior_mismatch", {}, WRONG["prior_mismatch"]),
    ],
)
def test_a_control_is_to_be_relaxed(verdict: str, changes: Changes, found: Changes) -> None:
    got = judged({"kl.capacity": 30.0, **changes}, **found)
    assert (got.verdict, got.remedy) == (verdict, {})
    assert got.recommendations[0].startswith("relax the target of the control (kl.capacity)")


@pytest.mark.parametrize(("images", "doubted"), [(1000, False), (3 * LATENTS, True)])
def test_where_images_are_few_the_expectation_itself_is_doubted(images: int, doubted: bool) -> None:
    train = {"images": images, "elbo": 285.0, "mean_image_elbo": 50.0}
    got = judged(**WRONG["partly_collapsed"], train=train)
    assert got.verdict == "partly_collapsed"
    assert any("too few images" in reason for reason in got.reasons) is doubted
