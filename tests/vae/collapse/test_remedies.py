"""Remedies: each changes something, parameters take it, and linear theory says that it helps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.parameters import Changes
from helpers.verdicts import TRAIN, USUAL, WRONG, evidence, params, predicted
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vae.collapse import rate_distortion, remedies
from vae.collapse.diagnosis import judge
from vae.collapse.expectations import expectations
from vae.collapse.linear_theory import Spectrum
from vae.collapse.remedies import short
from vae.config.constants import COLLAPSED_BELOW_NATS
from vae.config.errors import InputError
from vae.config.resolved import ResolvedParameters, changed


@pytest.fixture(autouse=True, scope="module")
def _coarser() -> Iterator[None]:
    """A weight to nine digits takes half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate_distortion, "BISECTIONS", 36)
        yield


IMAGES = Spectrum(np.array([6.0, 3.0, 1.5, 0.8]), 12.0, 256, 1000)
FAINT = Spectrum(np.array([0.06, 0.01, 0.01, 0.01]), 12.0, 256, 1000)


def expected(p: ResolvedParameters, spectrum: Spectrum = IMAGES) -> dict[str, Any]:
    return expectations(p, p.kl.max_weight, spectrum)


def remedied_of(p: ResolvedParameters, spectrum: Spectrum) -> ResolvedParameters:
    """With the remedy of a collapse that linear theory expects."""
    before = expected(p, spectrum)
    assert before["predicted_kl"] < COLLAPSED_BELOW_NATS
    return changed(p, judge(p, evidence(**WRONG["collapsed"], predicted=before)).remedy)


@pytest.mark.parametrize(
    "changes",
    [
        {"kl.max_weight": 1e5},
        {"objective.sigma": 9.0},
        {"objective.sigma": 9.0, "objective.importance_samples_train": 5},
        {"objective.sigma": "learned", "kl.max_weight": 1e5},
        {"objective.reduction": "mean"},
        {"objective.reduction": "mean", "kl.max_weight": 50.0},
        {"objective.likelihood": "bernoulli", "kl.max_weight": 1e5},
        {"objective.likelihood": "bernoulli", "objective.reduction": "mean", "kl.max_weight": 1e3},
        {"kl.capacity": 0.1, "kl.max_weight": 1e3},
        {"kl.target_kl": 0.1, "kl.max_weight": 1e3, "kl.min_weight": 2.0},
        {"kl.reconstruction_target": 0.9, "objective.sigma": 0.3},
    ],
)
def test_the_remedy_of_a_collapse_expects_the_best_elbo(changes: Changes) -> None:
    remedied = remedied_of(params(changes), IMAGES)
    after = expected(remedied)
    assert after["predicted_kl"] > 1.5 * COLLAPSED_BELOW_NATS and remedied.kl.control == "schedule"
    assert after["predicted_kl"] == pytest.approx(after["calibrated_kl"], rel=0.03)  # two digits
    beta = remedied.elbo.effective_beta(after["calibrated_mse"])
    assert remedied.objective.likelihood == "bernoulli" or beta == pytest.approx(1, rel=0.05)


def test_images_of_which_the_elbo_keeps_nothing_get_a_weight_that_keeps_something() -> None:
    assert expected(remedied_of(params(), FAINT), FAINT)["predicted_kl"] > COLLAPSED_BELOW_NATS


@pytest.mark.parametrize("changes", [{}, {"kl.capacity": 5.0}, {"objective.sigma": 0.2, "kl.target_kl": 5.0}])
def test_images_that_are_all_the_same_get_no_weight(changes: Changes) -> None:
    p = params(changes)
    theory = expected(p, Spectrum(np.zeros(4), 0.0, 256, 1000))
    got = judge(p, evidence(**WRONG["collapsed"], predicted=theory))
    assert got.remedy == {} and "data.path" in got.recommendations[0]


def test_a_convolutional_network_without_batch_norm_gets_it_along_with_the_elbo() -> None:
    p = params({"model.batch_norm": False, "kl.max_weight": 1e5})
    remedy = judge(p, evidence(**WRONG["collapsed"], predicted=expected(p))).remedy
    assert remedy == {"kl.max_weight": 1.0, "model.batch_norm": True}
    assert remedies.normalised(params({"model.batch_norm": False, "train.batch_size": 7})) == {}
    assert remedies.normalised(params({"model.batch_norm": False, "model.architecture": "mlp"})) == {}
    assert remedies.normalised(params()) == {}


MLP, SLOWER = {"model.architecture": "mlp"}, {"train.learning_rate": remedies.short(USUAL / 4)}


@pytest.mark.parametrize(
    ("changes", "images", "remedy"),
    [
        ({"train.batch_size": 2}, 1000, {"train.batch_size": 32}),
        ({"train.batch_size": 2}, 20, {"train.batch_size": 20}),
        ({"model.latent_dim": 256}, 128, {"model.latent_dim": 64}),
        ({"model.latent_dim": 64, "train.learning_rate": 5 * USUAL}, 128, {"train.learning_rate": USUAL}),
        (MLP | {"model.latent_dim": 16, "model.widths": [300, 3]}, 1000, {"model.widths": [300, 256]}),
        (MLP | {"model.latent_dim": 3000, "model.widths": [10]}, 9000, {"model.widths": [8192, 4096]}),
        ({"train.learning_rate": 1.1 * USUAL}, 1000, {"train.learning_rate": USUAL}),
        ({}, 1000, SLOWER | {"kl.annealing_epochs": 10, "kl.free_bits": 0.1}),
        ({"model.prior": "mixture"}, 1000, SLOWER | {"kl.annealing_epochs": 10, "kl.free_bits_total": 0.4}),
        ({"kl.free_bits_total": 3.0}, 1000, SLOWER | {"kl.annealing_epochs": 10, "kl.free_bits_total": 6.0}),
        (
            {"kl.free_bits": 0.2, "train.epochs": 12},
            1000,
            SLOWER | {"kl.annealing_epochs": 10, "train.epochs": 20, "kl.free_bits": 0.4},
        ),
        (
            {"kl.capacity": 9.0, "kl.schedule": "cyclical", "kl.annealing_epochs": 0},
            1000,
            SLOWER | {"kl.annealing_epochs": 5, "kl.schedule": "linear"},
        ),
    ],
)
def test_the_surest_cause_comes_first(changes: Changes, images: int, remedy: Changes) -> None:
    assert remedies.gentler(params(changes), images) == remedy


def test_an_autoregressive_decoder_gets_a_lower_weight_then_free_bits_and_never_a_higher_one() -> None:
    def of(**more: Any) -> dict[str, Any]:
        p = params({"model.architecture": "autoregressive", **more})
        return remedies.of_autoregressive(p, predicted())

    assert of(**{"kl.max_weight": 10.0}) == {"kl.max_weight": 1.0}
    assert of() == {"kl.free_bits": 0.1} == of(**{"kl.max_weight": 0.2})
    assert of(**{"kl.free_bits": 0.3}) == {"kl.free_bits": 0.6}
    assert of(**{"kl.capacity": 9.0}) == {"kl.capacity": None}
    many = {"objective.sigma": "learned", "objective.importance_samples_train": 5}
    assert of(**many) == {"kl.max_weight": 0.5}
    assert of(**many, **{"kl.max_weight": 0.0}) == {"kl.max_weight": 1.0}  # half of nothing would change nothing


def test_a_higher_weight_is_that_of_the_elbo_or_else_twice_what_it_is() -> None:
    def of(**more: Any) -> dict[str, Any]:
        p = params(more)
        return remedies.higher_weight(p, expected(p))

    assert of(**{"kl.max_weight": 0.0}) == {"kl.max_weight": 1.0}
    assert of(**{"kl.max_weight": 0.3, "kl.capacity": 20.0}) == {}  # the rate is the control's business
    fixed = of(**{"objective.sigma": 0.001, "kl.max_weight": 2.0})
    assert fixed == {"objective.sigma": "optimal", "kl.max_weight": 1.0}
    assert of(**{"kl.max_weight": 1e6}) == {"kl.max_weight": 1e6}  # as high as parameters allow
    assert of() == {"kl.max_weight": 2.0}
    mean = of(**{"objective.reduction": "mean", "kl.max_weight": 1e-8})
    assert mean == {"objective.reduction": "sum", "kl.max_weight": 1.0}


def test_what_overfits_trains_less_and_in_one_cycle_that_is_fewer_epochs() -> None:
    """An epoch in the middle of a cycle is none to keep: the learning rate has not fallen yet."""

    def of(**more: Any) -> dict[str, Any]:
        return remedies.less_training(params({f"train.{name}": value for name, value in more.items()}))

    assert of() == of(patience=2) == of(learning_rate_schedule="linear") == {"train.epochs": 20}
    assert of(epochs=1) == {}
    assert of(learning_rate_schedule="constant") == {"train.patience": 4}
    assert of(learning_rate_schedule="constant", epochs=9) == {"train.patience": 3}
    assert of(learning_rate_schedule="constant", patience=4) == {}


def test_what_overfits_in_the_last_epoch_keeps_the_best_one_first() -> None:
    assert remedies.less_fitted(params({"train.select": "last"})) == {"train.select": "best"}
    assert remedies.less_fitted(params()) == {"model.widths": [8, 16], "train.epochs": 20}


def test_half_the_epochs_still_end_the_ramp() -> None:
    assert remedies.less_training(params({"kl.annealing_epochs": 19.9})) == {"train.epochs": 20}
    assert remedies.less_training(params({"kl.annealing_epochs": "auto"})) == {"train.epochs": 20}
    found = remedies.less_training(params({"kl.annealing_epochs": 30}))
    assert found == {"train.epochs": 20, "kl.annealing_epochs": short(20 / 6)}


def test_clipping_comes_down_from_the_default_by_tenths() -> None:
    for clip, gentler in ((None, 100.0), (1e6, 100.0), (100.0, 10.0), (3.0, 0.3)):
        remedy = remedies.gentler_clip(params({"train.gradient_clip": clip}))
        assert remedy == {"train.gradient_clip": gentler}


def test_numbers_are_as_a_person_would_write_them() -> None:
    numbers = (0.0012345, 98.7, 1.0, 123456.0)
    assert [remedies.short(value) for value in numbers] == [0.0012, 99.0, 1.0, 120000.0]


CHOICES: dict[str, list[Any]] = {
    "model.architecture": ["conv", "residual", "mlp", "gated_mlp", "autoregressive"],
    "model.latent_dim": [1, 4],
    "model.widths": [[1, 1], [2, 16], [16, 32]],
    "model.batch_norm": [True, False],
    "model.prior": ["standard", "mixture", "vamp"],
    "objective.likelihood": ["gaussian", "bernoulli"],
    "objective.sigma": ["optimal", "learned", 0.05, 3.0],
    "objective.reduction": ["sum", "mean"],
    "objective.importance_samples_train": [1, 5],
    "kl.schedule": ["constant", "linear", "cyclical"],
    "kl.max_weight": [0.0, 1e-6, 0.1, 1.0, 30.0, 1e4],
    "kl.annealing_epochs": [0, 0.5, 5, 60, "auto"],
    "kl.free_bits": [0.0, 0.5],
    "kl.free_bits_total": [0.0, 2.0],
    "kl.capacity": [None, 0.5, 20.0],
    "kl.target_kl": [None, 0.5, 20.0],
    "kl.min_weight": [0.0, 5.0],
    "kl.reconstruction_target": [None, 0.01, 0.9],
    "train.epochs": [1, 12, 40],
    "train.batch_size": [2, 64],
    "train.gradient_checkpointing": [False, True],
    "train.optimizer": ["muon", "adamw"],
    "train.learning_rate": [1e-6, 5e-4, 0.1, "auto"],
    "train.learning_rate_schedule": ["constant", "cosine"],
    "train.gradient_clip": [None, 0.5, 100.0],
    "train.aggressive_encoder": [False, True],
    "train.patience": [None, 2, 20],
    "train.select": ["best", "last"],
    "train.precision": ["auto", "fp32"],
    "data.augment": ["none", "flip", "dihedral"],
    "data.shift": [0, 3],
}
FEW = Spectrum(IMAGES.eigenvalues, 12.0, 256, 3)


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries({}, optional={name: st.sampled_from(some) for name, some in CHOICES.items()}),
    st.sampled_from([IMAGES, FAINT, FEW]),
    st.sampled_from(list(WRONG.values())),
)
def test_remedies_are_valid_changes(changes: Changes, spectrum: Spectrum, wrong: Changes) -> None:
    try:
        p = params(changes)
    except InputError:
        assume(False)
    found = {"train": TRAIN | {"images": spectrum.images}} | wrong
    got = judge(p, evidence(**found, predicted=expected(p, spectrum)))
    # What a control was asked for is its owner's to change: then there is advice alone.
    assert bool(got.remedy or got.advice) is (got.verdict != "healthy")
    before = p.model_dump()
    for name, value in got.remedy.items():
        section, key = name.split(".")
        assert before[section][key] != value, f"{name} is {value} already"
    remedied = changed(p, got.remedy)
    assert remedied.kl.max_weight > 0 or "kl.max_weight" not in got.remedy
