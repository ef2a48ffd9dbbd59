"""Each verdict from evidence made for it, with its numbers and its remedy."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from helpers.parameters import Changes
from helpers.verdicts import (
    FALLING,
    GROWING,
    LATENTS,
    POOR,
    TRAIN,
    USUAL,
    WRONG,
    evidence,
    history,
    measurement,
    params,
    predicted,
    quality,
    samples,
)  # fmt: skip
from ruamel.yaml import YAML

from vae.collapse.diagnosis import judge
from vae.collapse.evidence import Verdict, effective_beta
from vae.collapse.remedies import SMALL_LEARNING_RATE, short
from vae.collapse.sample_rules import is_poor
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
        # by the rate in training: that of the kept model lost what lay in the moments of its latents
        ("diverged", {"valid": measurement(mse=0.08, active=0), "history": history(kls=[23.0] * 40)}),
        ("diverged", {"valid": measurement(mse=0.08), "history": history(kls=[221.0] * 40)}),
        # a loss that only jitters after the ramp is flat
        ("partly_collapsed", WRONG["partly_collapsed"] | {"history": history(losses=[500, 100, 60, 30, 10, *JITTER])}),
        # just short of a verdict
        ("healthy", {"valid": measurement(kl=1.0), "predicted": predicted(kl=2.4)}),
        ("healthy", {"valid": measurement(mse=0.0759)}),
        ("not_learning", {"valid": measurement(mse=0.08), "history": history(kls=[219.0] * 40)}),
        ("collapsed", {"valid": measurement(mse=0.08, active=0), "history": history(kls=[21.0] * 40)}),
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


def test_a_control_that_met_its_target_left_nothing_collapsed() -> None:
    """20 nats in training, as asked for, of which standardised latents keep the 5 that tell images apart."""
    found = {"valid": measurement(kl=5.0), "predicted": predicted(kl=20.0)}
    assert judged(**found).verdict == "partly_collapsed"
    for control in ("kl.capacity", "kl.target_kl"):
        assert judged({control: 20.0}, **found).verdict == "healthy"
        low = judged({control: 20.0}, history=history(kls=[5.0] * 40), **found)
        assert low.verdict == "partly_collapsed" and "KL of 5 nats" in low.reasons[0]


@pytest.mark.parametrize(
    ("kl", "dead"), [([0.2, 0.2, 9.8, 9.8], "upper"), ([9.8, 9.8, 0.2, 0.2], "lower"), ([0.6, 0.6, 9.4, 9.4], None)]
)
def test_a_level_of_latents_that_carries_nothing_is_named(kl: list[float], dead: str | None) -> None:
    valid = dataclasses.replace(measurement(), kl_per_latent=np.array(kl), top=2)
    got = judged({"model.lower_latents": 2}, valid=valid)
    if dead is None:
        assert got.verdict == "healthy"
        return
    assert got.verdict == "partly_collapsed" and got.summary.startswith(f"The {dead} level of latents collapsed")
    assert got.reasons[0].startswith(f"KL of 0.4 nats in the {dead} level, 19.6 in the")
    assert got.remedy == {"kl.free_bits_total": 2.0}
    for free, more in (({"kl.free_bits_total": 3.0}, 6.0), ({"kl.free_bits": 0.3}, 0.6)):
        assert list(judged({"model.lower_latents": 2} | free, valid=valid).remedy.items()) == [(*free, more)]
    assert bool(got.advice) is (dead == "lower")


def test_a_control_that_starves_a_level_is_switched_off_or_its_target_relaxed() -> None:
    """Neither free bits nor a ramp go with a controller, and 1.8 nats leave one of two levels less than one."""
    valid = dataclasses.replace(measurement(kl=1.8), kl_per_latent=np.array([0.7, 0.7, 0.2, 0.2]), top=2)
    for control in ("target_kl", "capacity"):
        got = judged({"model.lower_latents": 2, f"kl.{control}": 1.8, "kl.max_weight": 50.0}, valid=valid)
        assert got.remedy == {f"kl.{control}": None, "kl.max_weight": 1.0}
        assert got.reasons[1] == f"the control (kl.{control}) was asked for 1.8 nats: under 1 for each level"
    more = judged({"model.lower_latents": 2, "kl.target_kl": 9.0}, valid=valid)
    assert not more.remedy and more.advice[0] == "relax the target of the control (kl.target_kl)"
    assert "kl.annealing_epochs" in judged({"model.lower_latents": 2, "kl.capacity": 9.0}, valid=valid).remedy


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


FIXED = {"objective.sigma": 0.5}  # at an error of 0.02 an effective beta of 12.5 times the weight


@pytest.mark.parametrize(
    ("changes", "mse", "verdict"),
    [
        ({"kl.max_weight": 7.9}, 0.0199 * 2, "healthy"),
        ({"kl.max_weight": 8.1}, 0.0199 * 2, "over_regularised"),
        ({"kl.max_weight": 8.1}, 0.0199, "healthy"),  # a quarter of the mean image's error: it cost little
        ({"kl.max_weight": 4.0}, 0.07, "healthy"),  # Higgins' β
        (FIXED, 0.03, "over_regularised"),
        (FIXED, 0.032, "healthy"),  # 0.25/0.032 is below 8
        ({"kl.max_weight": 20.0, "kl.target_kl": 20.0}, 0.04, "healthy"),  # the rate was asked for
    ],
)
def test_too_large_an_effective_beta_that_costs_much_is_over_regularised(
    changes: Changes, mse: float, verdict: str
) -> None:
    got = judged(changes, valid=measurement(mse=mse), history=history(kl_weight=20.0), kept_epoch=40)
    assert got.verdict == verdict
    if verdict == "over_regularised":
        assert f"{mse / 0.08:.0%} of the mean image's error" in got.summary
        assert got.remedy == ({"objective.sigma": "optimal"} if changes is FIXED else {"kl.max_weight": 1})


def steered(weight: float = 10.0, kl: float = 20.0, error: float = 0.1, **found: Any) -> dict[str, Any]:
    """A training that ends at this weight, rate and root mean squared error."""
    rows = history(kls=[20.0] * 36 + [kl] * 4)
    for row in rows:
        row |= {"kl_weight": weight, "valid/mse_sampled": error**2}
    return {"history": rows, "kept_epoch": 40, "valid": measurement(kl=kl)} | found


PI, CAPACITY = {"kl.target_kl": 20.0, "kl.max_weight": 30.0}, {"kl.capacity": 20.0, "kl.max_weight": 10.0}
GECO = {"kl.reconstruction_target": 0.1, "objective.sigma": 0.1}
MISSED, UNREACHABLE = TRAIN | {"mse_sampled": 0.12**2}, predicted() | {"predicted_kl": None}
TWICE = {"train.epochs": 2 * params().train.epochs}


@pytest.mark.parametrize(
    ("changes", "found", "remedy"),
    [
        (PI, steered(kl=16.1), None),
        (PI, steered(kl=23.9), None),
        (PI, steered(kl=24.5), TWICE),
        (PI, steered(kl=15.5), TWICE),
        (PI | {"kl.integral_gain": 0.0001}, steered(kl=15.5), {"kl.integral_gain": 0.05}),
        (PI, steered(30.0, kl=24.5), {"kl.max_weight": 60}),  # at its bound; linear theory asks for 4
        (PI | {"kl.min_weight": 0.5}, steered(0.5, kl=15.5), {"kl.min_weight": 0}),
        (CAPACITY, steered(kl=23.9), None),
        (CAPACITY, steered(kl=24.5), {"kl.max_weight": 20}),
        (CAPACITY | {"kl.max_weight": 1.0}, steered(1.0, kl=24.5), {"kl.max_weight": 16}),  # 4 × what theory asks for
        (CAPACITY, steered(kl=15.5), TWICE),
        (GECO, steered(error=0.109), None),
        (GECO, steered(error=0.05), None),
        (GECO, steered(error=0.12), None),  # met in training: it generalises no better
        (GECO, steered(error=0.12, train=MISSED), TWICE),
        (
            GECO,
            steered(error=0.12, train=TRAIN | {"mse_sampled": 0.12**2}, predicted=predicted() | {"predicted_kl": None}),
            {},
        ),
    ],
)
def test_a_control_that_misses_its_target(changes: Changes, found: Changes, remedy: Changes | None) -> None:
    got = judged(changes, **({"train": TRAIN | {"mse_sampled": 0.1**2}} | found))
    if remedy is None:
        assert got.verdict == "healthy"
    else:
        assert (got.verdict, got.remedy) == ("target_missed", remedy)
        assert remedy or "set kl.reconstruction_target to 0.12" in got.advice[0]


def test_a_target_is_not_judged_within_the_ramp() -> None:
    assert judged(CAPACITY | {"kl.annealing_epochs": 50}, **steered(kl=30.0)).verdict == "healthy"


@pytest.mark.parametrize(
    ("changes", "weight", "beta"),
    [
        ({}, 1.0, 1.0),
        ({"kl.max_weight": 4.0}, 4.0, 4.0),
        (PI, 0.076, 0.076),
        (PI | {"objective.sigma": 0.2}, 3.0, 3.0 * 0.04 / 0.02),
        (GECO, 0.3, 0.3 * 0.01 / 0.02),
        (CAPACITY | {"kl.capacity": 12.0}, 10.0, 10.0),  # the rate stays above: the next nat costs γ
        (CAPACITY, 10.0, None),  # met: anything up to γ
    ],
)
def test_the_effective_beta_is_that_of_the_weight_which_the_control_ended_with(
    changes: Changes, weight: float, beta: float | None
) -> None:
    got = effective_beta(params(changes), evidence(**steered(weight)))
    assert got is None if beta is None else got == pytest.approx(beta)


def test_a_control_that_gives_up_the_prior_is_under_regularised() -> None:
    got = judged(PI, **steered(0.04))
    assert got.verdict == "under_regularised" and got.remedy == {} and "kl.target_kl" in got.advice[0]


def test_no_verdict_rests_on_an_error_that_linear_theory_cannot_reach() -> None:
    found = steered(kl=5.0, predicted=UNREACHABLE)
    assert judged(GECO, **found).verdict == "healthy"
    assert "inf" not in " ".join(judged(GECO, **found).reasons)
    collapse = judged(GECO, **(found | WRONG["collapsed"]))
    assert collapse.verdict == "collapsed" and "inf" not in " ".join(collapse.reasons)


def test_near_the_collapse_weight_the_weight_is_at_fault_and_not_the_optimisation() -> None:
    for collapse, remedy in ((25.3, {"kl.max_weight": 1}), (49.0, {"kl.max_weight": 1}), (51.0, None)):
        got = judged({"kl.max_weight": 25.0}, **WRONG["collapsed"], predicted=predicted(1.04, collapse))
        assert (got.remedy == remedy) is (remedy is not None)
        assert ("is close to" in got.reasons[-1]) is (remedy is not None)
    assert "train.learning_rate" in judged({}, **WRONG["collapsed"], predicted=predicted(3.0, 1.5)).remedy


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


@pytest.mark.parametrize(("each", "remedy"), [(2.1, "objective.perceptual"), (1.9, "train.epochs")])
def test_a_perceptual_weight_that_outweighs_the_pixels_is_lowered(each: float, remedy: str) -> None:
    """To one nat for each value of an image."""
    values = math.prod(params().data.image_shape)
    got = judged({"objective.perceptual": each * values}, **WRONG["not_learning"])
    assert got.verdict == "not_learning" and list(got.remedy) == [remedy]
    if remedy == "objective.perceptual":
        assert got.remedy[remedy] == pytest.approx(values, rel=0.05)


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
    assert "Sample" not in plain.summary and plain.reasons[-1].startswith("samples of N(0, I) / reconstructions")
    for found, poor in ((samples(standard=POOR, kl=3.14), True), (samples(kl=3.14), False)):
        got = judged(samples=found, prior="mixture of 5 Gaussians")
        assert got.verdict == "healthy" and got.recommendations == []
        assert "Sample from its fitted prior (a mixture of 5 Gaussians)" in got.summary
        assert "at least 3.1 nats" in got.summary and "at least 3.14 ± 0.1 nats" in got.reasons[-1]
        assert "samples of the fitted prior / of N(0, I)" in got.reasons[-2]
        assert ("samples from N(0, I) are poor" in got.summary) == poor, "only where pictures show it"
    assert judged().reasons == plain.reasons[:-1], "without samples nothing is said of them"


def test_no_prior_gives_good_samples() -> None:
    got = judged(**WRONG["prior_mismatch"])
    assert (
        got.summary == "Samples are poor, from N(0, I) and from a mixture of 5 Gaussians fitted to the latents alike."
    )
    same = judged(samples=samples(POOR, POOR, kl=0.0, error=0.0))
    assert same.verdict == "prior_mismatch"
    assert same.summary == "Samples from N(0, I) are poor, and no other prior fits the latents better."
    levels = judged({"model.lower_latents": 1}, **WRONG["prior_mismatch"])
    assert levels.summary == "Samples from N(0, I) are poor, and no prior is fitted to two levels of latents."


def test_only_what_was_drawn_is_called_poor() -> None:
    """N(0, I) may draw good pictures where its distance is certified, or where the fitted prior's are poor."""
    far = judged(samples=samples(fitted=POOR, kl=7.6, error=0.4), prior="mixture of 5 Gaussians")
    assert far.verdict == "prior_mismatch"
    assert far.summary == (
        "Samples from a mixture of 5 Gaussians fitted to the latents are poor, and N(0, I) is at least 7.6 nats from "
        "the latents."
    )
    near = judged(samples=samples(fitted=POOR, kl=0.5), prior="mixture of 5 Gaussians")
    assert near.verdict == "healthy"
    assert near.summary.endswith(
        "Sample from N(0, I): samples from its fitted prior (a mixture of 5 Gaussians) are poor."
    )


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
        # A weight below half of the ELBO's first. Then of few latents by a higher weight, of many by fewer.
        ("prior_mismatch", {"model.latent_dim": 64, "kl.max_weight": 0.49}, {}, {"kl.max_weight": 1}),
        ("prior_mismatch", {"model.latent_dim": 64, "kl.max_weight": 0.51}, {}, {"model.latent_dim": 32}),
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
        # While the aggregate posterior still moves, longer training may do; so may fewer of many latents.
        ("prior_mismatch", {}, {"history": history(losses=FALLING)}, LONGER),
        (
            "prior_mismatch",
            {"model.latent_dim": 64},
            {"history": history(8), "kept_epoch": 8},
            LONGER | {"model.latent_dim": 32},
        ),
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
        ("under_regularised", {"kl.target_kl": 20.0}, {"history": history(kl_weight=0.01), "kept_epoch": 40}),
        ("prior_mismatch", {"kl.target_kl": 20.0}, WRONG["prior_mismatch"]),
        ("prior_mismatch", {"kl.capacity": 20.0}, WRONG["prior_mismatch"]),
    ],
)
def test_a_control_is_to_be_relaxed(verdict: str, changes: Changes, found: Changes) -> None:
    got = judged(changes, **found)
    assert (got.verdict, got.remedy) == (verdict, {})
    assert got.recommendations[0].startswith(f"relax the target of the control ({next(iter(changes))})")


@pytest.mark.parametrize(("images", "doubted"), [(1000, False), (3 * LATENTS, True)])
def test_where_images_are_few_the_expectation_itself_is_doubted(images: int, doubted: bool) -> None:
    train = {"images": images, "elbo": 285.0, "mean_image_elbo": 50.0}
    got = judged(**WRONG["partly_collapsed"], train=train)
    assert got.verdict == "partly_collapsed"
    assert any("too few images" in reason for reason in got.reasons) is doubted


def test_a_network_too_narrow_for_its_images_is_partly_collapsed_though_its_pilot_expects_no_more() -> None:
    low = {"valid": measurement(kl=5.0), "predicted": predicted(kl=6.0) | {"predicted_by": "the pilot"}}
    assert judged(**low).verdict == "healthy"
    low["predicted"] |= {"linear_theory": {"predicted_kl": 22.0}}
    got = judged(**low)
    assert got.verdict == "partly_collapsed" and "the 22 that linear theory expects" in got.reasons[0]
    low["predicted"] |= {"linear_theory": {"predicted_kl": None}}  # GECO: an error that linear theory cannot reach
    assert judged(**low).verdict == "healthy"


def test_an_autoregressive_decoder_that_needs_no_latents_is_at_fault_not_the_images() -> None:
    none = predicted(kl=0.0, collapse=0.0)
    assert "all alike" in judged(**WRONG["collapsed"], predicted=none).recommendations[0]
    none |= {"linear_theory": {"predicted_kl": 22.0, "collapse_kl_weight": 30.0}}
    got = judged({"model.architecture": "autoregressive"}, **WRONG["collapsed"], predicted=none)
    assert "sees the preceding pixels" in got.reasons[1] and got.remedy


def test_a_collapse_below_the_pilots_weight_and_above_linear_theorys_is_answered_by_a_lower_weight() -> None:
    late = predicted(kl=23.0, collapse=41.0) | {"linear_theory": {"predicted_kl": 0.0, "collapse_kl_weight": 6.7}}
    got = judged({"kl.max_weight": 12.0}, **WRONG["collapsed"], predicted=late)
    assert "at or above 6.7; there, linear theory expects less than 1 nat" in got.reasons[1]
    assert got.remedy["kl.max_weight"] == 1
