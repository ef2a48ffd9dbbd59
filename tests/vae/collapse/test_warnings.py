"""Warnings of a schedule that is long above the collapse weight, and of a controller that may go there."""

import pytest
from helpers.parameters import Changes
from helpers.trainings import TRAIN, params, unresolved

from vae.collapse.linear_theory import collapse_weight, expectations, predict, spectrum
from vae.collapse.warnings import schedule_above, warnings
from vae.config.resolved import RAMP

SPECTRUM = spectrum(TRAIN, 3, bernoulli=False)
COLLAPSE = collapse_weight(params(), SPECTRUM)
CYCLICAL, AUTO = {"kl.schedule": "cyclical"}, {"kl.annealing_epochs": "auto", "train.epochs": 40}


def warned(changes: Changes) -> str:
    """The warnings, one per line."""
    p = unresolved(changes)
    return "\n".join(warnings(p, expectations(p, p.kl.max_weight, SPECTRUM), SPECTRUM))


def above(changes: Changes) -> list[float | None]:
    """Share of a cycle above the collapse weight, epoch and step at which a ramp crosses it."""
    p = unresolved(changes)
    return list(schedule_above(p, p.kl.max_weight, COLLAPSE).values())


@pytest.mark.parametrize(("ratio", "times", "share"), [(0.5, 2, 0.75), (1.0, 4, 0.75), (0.8, 2, 0.6)])
def test_a_cycle_that_is_long_above(ratio: float, times: float, share: float) -> None:
    changes = {**CYCLICAL, "kl.max_weight": times * COLLAPSE, "kl.ratio": ratio}
    assert above(changes) == [pytest.approx(share), None, None]
    assert f"spends {share:.0%} of each cycle" in warned(changes) and "lower kl.max_weight" in warned(changes)
    assert warned({**changes, "train.epochs": 3}) == warned({**changes, "train.epochs": 90}) == warned(changes)


def test_the_ratio_that_it_names_is_enough() -> None:
    changes = {**CYCLICAL, "kl.max_weight": 1.5 * COLLAPSE}
    assert "kl.ratio = 0.75 would make it half" in warned(changes)
    assert above({**changes, "kl.ratio": 0.75})[0] == pytest.approx(0.5)
    assert "of each cycle" not in warned({**changes, "kl.ratio": 0.76})
    # no ratio is long enough
    assert "kl.ratio" not in warned({**changes, "kl.max_weight": 4 * COLLAPSE})


@pytest.mark.parametrize(
    ("changes", "times", "crosses", "words"),
    [
        ({"kl.annealing_epochs": 10}, 4, [None, 2.5, None], "the ramp crosses it after 2.5 of 10 epochs"),
        (AUTO, 4, [None, 10 * RAMP, None], f"the ramp crosses it after {10 * RAMP:g} of {40 * RAMP:g} epochs"),
        ({"kl.annealing_steps": 1000}, 4, [None, None, 250], "the ramp crosses it at step 250 of 1000"),
        ({"kl.schedule": "constant"}, 4, [None, None, None], "POSTERIOR COLLAPSE AHEAD"),
        ({}, 0.5, [None, None, None], ""),
        (CYCLICAL, 0.9, [0, None, None], ""),
    ],
)
def test_where_a_ramp_crosses_collapse(changes: Changes, times: float, crosses: list, words: str) -> None:
    changes = {**changes, "kl.max_weight": times * COLLAPSE}
    assert above(changes) == [None if c is None else pytest.approx(c) for c in crosses]
    assert words in warned(changes) and bool(words) is bool(warned(changes))
    assert ("crosses" in warned(changes)) is ("crosses" in words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.architecture": "autoregressive"}, "the latents may die at a far lower kl.max_weight"),
        ({"model.prior": "vamp"}, "model.prior = vamp: the predicted KL is that against N(0, I)"),
        ({"objective.sigma": 0.001}, "the KL term hardly counts"),
        ({"objective.likelihood": "bernoulli"}, "a Bernoulli likelihood on grey pixels is not normalised"),
        ({"model.latent_dim": 20}, "model.latent_dim = 20 for 70 training images"),
        ({"kl.capacity": 0.5}, "the target of the control (kl.capacity) leaves a KL of only 0.5 nats"),
    ],
)
def test_other_predictions_to_distrust(changes: Changes, words: str) -> None:
    assert words in warned(changes) and words not in warned({})


def test_a_controller_whose_bounds_do_not_fit_its_set_point() -> None:
    needed = collapse_weight(params(), SPECTRUM, nats=2.5)
    assert predict(SPECTRUM, params({"kl.max_weight": needed}).elbo).kl == pytest.approx(2.5, rel=1e-3)
    assert needed < COLLAPSE
    room = (needed + COLLAPSE) / 2

    def of(highest: float, lowest: float = 0.0) -> str:
        return warned({"kl.target_kl": 2.5, "kl.max_weight": highest, "kl.min_weight": lowest})

    assert of(room) == ""
    assert "lets the controller overshoot beyond" in of(2 * COLLAPSE)
    assert "raise kl.max_weight" in of(0.5 * needed)
    assert "lower kl.min_weight" in of(room, 1.1 * needed)
    assert above({"kl.target_kl": 2.5, "kl.max_weight": room}) == [None, None, None]
