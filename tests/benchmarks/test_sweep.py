"""The sweep: its weights, the weight where the KL falls to 1 nat, its verdict on each row, a run on small images."""

from pathlib import Path

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
    same = {"predicted_active_units": 4, "informative_units": 4, "mean_image_elbo": 1.0, "tolerance": 0.25}
    kls = {"predicted_kl": [7.6, 5.0, 0.9], "kl": [10.0, 7.0, 0.1], "elbo": [3.0, 2.0, 1.0]}
    sizes = {"kl_weight": [1.0, 2.0, 3.0], "collapse_kl_weight": 2.8, "images_per_latent": 20.0}
    table = pd.DataFrame(same | kls | sizes)
    first, second, third = sweep.report(table)[2:5]
    assert "| 0.76 | yes |" in first and "| 0.71 | **no** |" in second and "| under 1 nat |" in third


def test_a_sweep_leaves_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"data.image_size": 8, "model.latent_dim": 2, "model.widths": [4], "train.epochs": 1}
    p = resolve(parse(small | {"train.batch_size": 16, "kl.annealing_epochs": 0}), 2)
    monkeypatch.chdir(tmp_path)
    workspace.IMAGES.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("valid", 8)):
        np.save(workspace.images(split), random.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8))

    table = sweep.sweep(p, [0.5, 0.1], 6)
    table.to_csv("small.csv", index=False)
    sweep.main(None, 6, [Path("small.csv")])

    assert table["kl_weight"].tolist() == [0.1, 0.5]
    assert table["predicted_kl"][0] > table["predicted_kl"][1] and np.isfinite(table["train_kl"]).all()
    assert table["tolerance"].tolist() == [TOLERANCE] * 2 and table["images_per_latent"][0] == 16
    assert sweep.PLOT.stat().st_size > 1000
