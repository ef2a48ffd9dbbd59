"""The rule by which a model becomes champion, on plain numbers."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from tasks.tracking import promotion_rule
from tasks.tracking.promotion_rule import Contender, decide

METRICS = {
    "mse_sampled": 0.010, "probe_accuracy": 0.8, "decoded_probe_pixels": 0.7, "decoded_probe_frozen": 0.6,
    "detail_width": 2.0, "detail_colour_width": 4.0, "fitted_prior_coverage": 0.9, "active_units": 16.0,
}  # fmt: skip
CHAMPION = Contender("3", "healthy", "w3", "d", "gaussian", METRICS)
CANDIDATE = Contender("4", "healthy", "w4", "d", "gaussian", METRICS)
IMAGES = 200


def elbos(seed: int, mean: float = 100.0, spread: float = 20.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, IMAGES)


THEIRS = elbos(0)
BETTER = THEIRS + np.random.default_rng(1).normal(2.0, 1.0, IMAGES)


def test_better_beyond_the_noise_and_no_worse_in_the_others_passes() -> None:
    decision = decide(CANDIDATE, CHAMPION, BETTER, THEIRS)
    assert decision.passes and decision.champion == "3"
    names = [check.name for check in decision.checks]
    assert names == list(METRICS)
    assert decision.gain is not None and decision.gain.images == IMAGES
    assert f"{BETTER.mean():.4g} against {THEIRS.mean():.4g} of champion version 3" in decision.reason


def test_the_same_numbers_decide_the_same_to_the_bit_and_as_json() -> None:
    first, second = (json.dumps(decide(CANDIDATE, CHAMPION, BETTER, THEIRS).to_dict()) for _ in range(2))
    assert first == second
    told = json.loads(first)
    assert told["bootstrap"] == {"confidence": 0.95, "resamples": 10_000, "seed": 0}
    assert told["checks"][0]["limit"] == pytest.approx(0.0105)


def test_the_interval_is_of_the_paired_differences() -> None:
    """Against Student's: for so many, nearly normal differences the two agree within a few percent of the width."""
    gain = promotion_rule.compare(BETTER, THEIRS)
    differences = BETTER - THEIRS
    error = differences.std(ddof=1) / math.sqrt(IMAGES)
    low, high = t.interval(0.95, IMAGES - 1, loc=differences.mean(), scale=error)
    assert (gain.low, gain.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert gain.difference == pytest.approx(differences.mean())
    assert gain.high - gain.low < 0.2 * 4 * THEIRS.std() / math.sqrt(IMAGES), "unpaired it would be far wider"


@pytest.mark.parametrize("seed", range(5))
def test_what_may_be_chance_does_not_pass(seed: int) -> None:
    """Three in four standard errors above: better in the mean, as half of all equals are."""
    noise = np.random.default_rng(seed).normal(0, 3.0, IMAGES)
    noise += 0.75 * 3.0 / math.sqrt(IMAGES) - noise.mean()
    decision = decide(CANDIDATE, CHAMPION, THEIRS + noise, THEIRS)
    assert not decision.passes and decision.reason.startswith("not better beyond the noise: test ELBO")
    assert decision.gain is not None and decision.gain.low < 0 < decision.gain.difference


def test_a_worse_one_does_not_pass() -> None:
    decision = decide(CANDIDATE, CHAMPION, THEIRS, BETTER)
    assert not decision.passes and decision.reason.startswith("not better: test ELBO")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mse_sampled": 0.0106}, "mse_sampled 0.0106 against 0.01 (allowed: at most 0.0105)"),
        ({"probe_accuracy": 0.71}, "probe_accuracy 0.71 against 0.8 (allowed: at least"),
        ({"fitted_prior_coverage": 0.83}, "fitted_prior_coverage 0.83 against 0.9 (allowed: at least 0.8386)"),
        ({"decoded_probe_pixels": 0.59}, "decoded_probe_pixels 0.59 against 0.7 (allowed: at least 0.60"),
        ({"decoded_probe_pixels": math.nan}, "decoded_probe_pixels none against 0.7"),
        ({"decoded_probe_frozen": 0.49}, "decoded_probe_frozen 0.49 against 0.6 (allowed: at least 0.50"),
        ({"detail_width": 2.3}, "detail_width 2.3 against 2 (allowed: at most 2.2)"),
        ({"detail_colour_width": 4.5}, "detail_colour_width 4.5 against 4 (allowed: at most 4.4)"),
        ({"active_units": 11.0}, "active_units 11 against 16 (allowed: at least 12)"),
        ({"mse_sampled": math.nan}, "mse_sampled none against 0.01"),
        ({"fitted_prior_coverage": math.nan}, "fitted_prior_coverage none"),
    ],
)
def test_a_better_elbo_does_not_pay_for_what_got_worse(changes: dict[str, float], told: str) -> None:
    decision = decide(replace(CANDIDATE, metrics={**METRICS, **changes}), CHAMPION, BETTER, THEIRS)
    assert not decision.passes and told in decision.reason
    assert [check.passed for check in decision.checks].count(False) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "passes"),
    [
        ({"mse_sampled": 0.0104}, {}, True),
        ({"probe_accuracy": 0.73}, {}, True),
        ({"fitted_prior_coverage": 0.85}, {}, True),
        ({"active_units": 12.0}, {}, True),
        # A perfect probe leaves room for an image or two.
        ({"probe_accuracy": 1 - 2 / IMAGES}, {"probe_accuracy": 1.0}, True),
        ({"probe_accuracy": 1 - 10 / IMAGES}, {"probe_accuracy": 1.0}, False),
        ({"decoded_probe_frozen": 0.51}, {}, True),
        ({"detail_width": 2.19, "detail_colour_width": 4.39}, {}, True),
        # The frozen features are an extra: not installed where the candidate was evaluated, they are no reason.
        ({"decoded_probe_frozen": math.nan}, {}, True),
        # What the champion has no number for is not held against the candidate.
        ({}, {"probe_accuracy": math.nan}, True),
    ],
)
def test_tolerances(ours: dict[str, float], theirs: dict[str, float], passes: bool) -> None:
    candidate, champion = (
        replace(one, metrics={**METRICS, **changes}) for one, changes in ((CANDIDATE, ours), (CHAMPION, theirs))
    )
    assert decide(candidate, champion, BETTER, THEIRS).passes == passes


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"verdict": "collapsed"}, "its verdict is collapsed"),
        ({"rolled_back": "2"}, "it was the champion and was rolled back to version 2"),
        ({"data": "e"}, "champion version 3 was trained and tested on different data"),
        ({"data": None}, "the data that it was tested on are unknown"),
        ({"likelihood": "bernoulli"}, "its likelihood is bernoulli, that of champion version 3 gaussian"),
        ({"likelihood": None}, "its likelihood is unknown"),
        ({"weights": "w3"}, "its weights are those of champion version 3"),
    ],
)
def test_what_cannot_be_compared_is_not_promoted(candidate: dict[str, Any], reason: str) -> None:
    one = replace(CANDIDATE, **candidate)
    assert promotion_rule.barred(one, CHAMPION)
    decision = decide(one, CHAMPION, BETTER, THEIRS)
    assert not decision.passes and decision.reason.startswith(reason)


def test_without_a_champion_healthy_is_enough() -> None:
    assert decide(CANDIDATE, None).passes
    assert not decide(replace(CANDIDATE, verdict="overfitted"), None).passes
    assert not decide(replace(CANDIDATE, rolled_back="1"), None).passes


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (BETTER[:29], THEIRS[:29], "29 test images are too few"),
        (BETTER, THEIRS[:-1], "scores for 200 and 199 test images"),
        (np.where(np.arange(IMAGES) == 7, np.nan, BETTER), THEIRS, "is not finite"),
    ],
)
def test_scores_that_prove_nothing_do_not_pass(ours: Any, theirs: Any, told: str) -> None:
    decision = decide(CANDIDATE, CHAMPION, ours, theirs)
    assert not decision.passes and told in decision.reason
