"""The sweep: its weights, the weight where the KL falls to 1 nat, its verdict on each row, a run on small images."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.parameters import parse

from benchmarks import sweep
from tasks import workspace
from vae.collapse import kl_weights
from vae.collapse.expectations import TOLERANCE
from vae.collapse.linear_theory import Spectrum
from vae.config.resolved import resolve
from vae.pilot import training as pilot_training

SPECTRUM = Spectrum(np.array([3.0, 1.1, 0.6, 0.25]), 5.2, 64, 1000)
PARAMETERS = resolve(parse({"data.image_size": 8, "model.latent_dim": 4, "objective.sigma": 0.1}), 1)
WEIGHT = np.geomspace(1, 100, 5)


def test_the_crossing_is_the_last_one_where_a_sweep_spans_it() -> None:
    assert sweep.crossing(WEIGHT, (WEIGHT / 20) ** -2.0) == pytest.approx(20)
    found = sweep.crossing(WEIGHT, np.array([50.0, 0.1, 10.0, 0.1, 0.0]))
    assert found is not None and WEIGHT[2] < found < WEIGHT[3]
    for never in ([9, 8, 7, 6, 5], [0.9, 0.8, 0.7, 0.6, 0.5]):
        assert sweep.crossing(WEIGHT, np.array(never)) is None


@pytest.mark.parametrize("count", [6, 8, 11])
def test_the_weights_reach_from_a_tenth_of_the_calibrated_one_to_beyond_collapse(count: int) -> None:
    chosen = sweep.weights(PARAMETERS, SPECTRUM, count)
    assert len(chosen) == count and chosen == sorted(chosen)
    assert chosen[0] == pytest.approx(kl_weights.of_beta(PARAMETERS, SPECTRUM) / 10)
    assert chosen[-2] < kl_weights.of_rate(PARAMETERS, SPECTRUM) * 1.5 < chosen[-1]


def test_a_row_is_judged_by_its_tolerance_and_only_above_one_nat() -> None:
    first, second, third = sweep.report(table_of([(7.6, 1, 10.0), (5.0, 1, 7.0), (0.9, 0, 0.1)]))[2:5]
    assert "| 0.76 | yes |" in first and "| 0.71 | **no** |" in second and "| under 1 nat |" in third


def table_of(kls: list[tuple[float, float, float]], **columns: Any) -> pd.DataFrame:
    """A made-up sweep over the weights 1, 2, …, its KL predicted, by linear theory, and measured."""
    same = {"predicted_active_units": 4, "informative_units": 4, "mean_image_elbo": 1.0, "elbo": 3.0, "seed": 0}
    sizes = {"images_per_latent": 20.0, "collapse_kl_weight": 2.8, "linear_collapse_kl_weight": 2.0, "tolerance": 0.25}
    table = pd.DataFrame(kls, columns=["predicted_kl", "linear_kl", "kl"]).assign(**same, **sizes)
    return table.assign(kl_weight=np.arange(1.0, len(kls) + 1)).assign(**columns)


def test_the_summary_by_hand() -> None:
    table = table_of([(20.0, 5.0, 10.0), (2.0, 0.5, 2.0), (1.2, 0.3, 0.5), (0.2, 0.1, 0.21), (0.1, 0.0, 0.01)])

    pilot, linear = (sweep.summary(table, by) for by in sweep.PREDICTORS)

    # 20 for 10 and 1.2 for 0.5 are outside of 25%, 2 for 2 is within; below 1 nat both, two rows are not judged.
    assert (pilot.judged, pilot.within) == (3, 1)
    assert pilot.error == pytest.approx(math.sqrt(2))  # factors of 2 and 1
    assert pilot.missed == [(3.0, pytest.approx(2.4))]  # 0.01 nats are noise, 0.21 too
    assert (linear.judged, linear.within) == (2, 0)
    assert linear.error == pytest.approx(math.sqrt(2 * 4))
    assert linear.missed == []  # 0.3 for 0.5 is a factor of 1.67
    # From 2 nats at 2 to 0.5 at 3, ln KL is halfway at 1 nat.
    assert pilot.expected == [2.8] and linear.expected == [2.0]
    assert pilot.found == linear.found == [pytest.approx(math.sqrt(6))]
    assert pilot.cells() == "1 of 3 | 1.41 | 2.8 | 2.45 | 0.87 | 2.40 at 3"
    assert linear.cells() == "0 of 2 | 2.83 | 2 | 2.45 | 1.22 | none"


def test_a_summary_of_several_seeds_has_their_range_and_those_that_do_not_span_1_nat() -> None:
    rows = [(10.0, 0.0, 10.0), (0.2, 0.0, 0.1)]
    table = table_of(
        [*rows, *rows, (10.0, 0.0, 10.0), (5.0, 0.0, 5.0)],
        seed=[0, 0, 1, 1, 2, 2],
        kl_weight=[1.0, 2.0, 2.0, 4.0, 1.0, 2.0],
        collapse_kl_weight=[1.0, 1.0, 2.0, 2.0, 2.0, 2.0],
    )
    found = sweep.summary(table, "preflight")
    assert found.found == [pytest.approx(math.sqrt(2)), pytest.approx(math.sqrt(8)), None]
    assert found.cells() == "4 of 4 | 1.00 | 1–2 | 1.41–2.83 (1 not in the sweep) | 1.41 | none"
    assert sweep.summary(table, "linear theory").error == math.inf  # it predicts nothing at all
    printed = "\n".join(sweep.report(table))
    assert f"| preflight | {found.cells()} |" in printed and "| linear theory | 0 of 4 | inf |" in printed


def test_a_sweep_leaves_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilot_training, "STEPS", 2)
    small = {"data.image_size": 8, "model.latent_dim": 2, "model.widths": [4], "train.epochs": 1}
    p = resolve(parse(small | {"train.batch_size": 16, "kl.annealing_epochs": 0}), 2)
    monkeypatch.chdir(tmp_path)
    workspace.IMAGES.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("valid", 8)):
        np.save(workspace.images(split), random.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8))

    table = sweep.sweep(p, [0.5, 0.1], 6, seeds=2)
    table.to_csv("small.csv", index=False)
    sweep.main(None, 6, 1, [Path("small.csv")])

    pd.testing.assert_frame_equal(sweep.read(Path("small.csv")), table, check_exact=True)
    assert table["kl_weight"].tolist() == [0.1, 0.5] * 2 and table["seed"].tolist() == [0, 0, 1, 1]
    assert table["kl"][0] != table["kl"][2] and table["linear_kl"][0] == table["linear_kl"][2]
    assert table["predicted_kl"][0] > table["predicted_kl"][1] and np.isfinite(table["train_kl"]).all()
    assert table["tolerance"].tolist() == [TOLERANCE] * 4 and table["images_per_latent"][0] == 16
    assert sweep.PLOT.stat().st_size > 1000
