"""Scores: −ELBO that follows from the image alone, and percentiles of the validation split to hold them against."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from vae.compute.devices import Compute
from vae.config.errors import InputError
from vae.inference import scoring
from vae.metrics.measurement import BATCH, measure
from vae.models import saved
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.models.vae import VAE

CPU = Compute(torch.device("cpu"), "fp32")
NOISE = Likelihood("gaussian", 0.1)
ARCHITECTURE: dict[str, Any] = {
    "architecture": "conv",
    "latent_dim": 3,
    "widths": [4, 8],
    "batch_norm": True,
}


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def write(folder: Path, valid: dict[str, Any] | None) -> Saved:
    torch.manual_seed(0)
    saved.save(
        folder,
        VAE((1, 8, 8), **ARCHITECTURE),
        architecture=ARCHITECTURE,
        image_shape=(1, 8, 8),
        likelihood=NOISE,
        preprocessing={},
        precision="fp32",
        kept_epoch=1,
        stopped=None,
        train={},
        valid=valid,
    )
    return saved.load(folder)


def test_a_score_follows_from_the_image_and_not_from_its_neighbours(tmp_path: Path) -> None:
    model, some = write(tmp_path, None), images(BATCH + 20)
    together = scoring.scores(model, some, CPU)
    assert np.array_equal(scoring.scores(model, some, CPU), together)
    backwards = scoring.scores(model, some[::-1].copy(), CPU)[::-1]
    alone = np.concatenate([scoring.scores(model, some[i : i + 1], CPU) for i in (0, 1, BATCH, BATCH + 19)])
    np.testing.assert_allclose(backwards, together, rtol=1e-6)
    np.testing.assert_allclose(alone, together[[0, 1, BATCH, BATCH + 19]], rtol=1e-6)
    average = measure(model.model, some, NOISE, CPU, seed=0).elbo
    assert together.mean() == pytest.approx(-average, rel=0.01)


def test_kept_percentiles_give_thresholds_and_ranks(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare", None)
    assert scoring.threshold(bare, 99) is None and np.isnan(scoring.ranks(bare, np.zeros(2))).all()

    valid = images(200)
    kept = scoring.percentiles(bare.model, valid, NOISE, CPU)
    found = scoring.scores(bare, valid, CPU)
    assert kept is not None and len(kept) == 101
    model = write(tmp_path / "kept", {"images": 200, "score_percentiles": kept})
    assert (scoring.threshold(model, 0), scoring.threshold(model, 100)) == (found.min(), found.max())
    for percent in (50.0, 97.0, 99.0):
        limit = scoring.threshold(model, percent)
        assert limit == pytest.approx(np.percentile(found, percent), rel=1e-12)
        assert scoring.ranks(model, np.array([limit]))[0] == pytest.approx(percent)
    assert scoring.threshold(model, 97.5) == pytest.approx((kept[97] + kept[98]) / 2)
    ranks = scoring.ranks(model, np.array([found.min() - 1, *found, found.max() + 1]))
    assert (ranks[0], ranks[-1]) == (0, 100)
    np.testing.assert_allclose(ranks[1:-1], 100 * (stats.rankdata(found) - 1) / 199, atol=1)


def test_of_many_validation_images_some_are_taken_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MOST_IMAGES", 10)
    model = write(tmp_path, None)
    of_every_third = scoring.percentiles(model.model, images(28)[::3].copy(), NOISE, CPU)
    assert scoring.percentiles(model.model, images(28), NOISE, CPU) == of_every_third


def test_a_model_that_gives_no_numbers_keeps_none(tmp_path: Path) -> None:
    model = write(tmp_path, None)
    with torch.no_grad():
        model.model.posterior.bias.fill_(float("nan"))
    assert scoring.percentiles(model.model, images(5), NOISE, CPU) is None


RISING = [float(percent) for percent in range(101)]


@pytest.mark.parametrize(
    ("valid", "told"),
    [
        ({"images": 3, "score_percentiles": [*RISING[:-1], 0.0]}, "do not rise"),
        ({"images": 3, "score_percentiles": RISING[:2]}, "at least 101"),
        ({"images": 3, "score_percentiles": [*RISING[:-1], math.inf]}, "finite"),
        ([], "valid"),
    ],
)
def test_percentiles_that_give_no_threshold_are_refused(tmp_path: Path, valid: Any, told: str) -> None:
    write(tmp_path, None)
    file = tmp_path / saved.CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"valid": valid}))
    with pytest.raises(InputError, match=told):
        saved.load(tmp_path)


def test_auroc_of_known_cases() -> None:
    low, high = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0])
    assert (scoring.auroc(low, high), scoring.auroc(high, low), scoring.auroc(low, low)) == (1, 0, 0.5)
    assert scoring.auroc(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == pytest.approx(2.5 / 4)
