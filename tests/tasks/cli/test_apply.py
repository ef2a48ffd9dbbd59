import math
from pathlib import Path

import numpy as np
import pytest
from helpers.models import config, network
from helpers.trainings import CPU
from PIL import Image

from tasks.cli import apply, reading
from vae.config.sections import Model
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.priors.standard import StandardNormal


@pytest.mark.parametrize(
    ("likelihood", "has_bits"),
    [(Likelihood("logistic_mixture", components=2), True), (Likelihood("gaussian"), False)],
)
def test_a_score_of_8_bit_levels_is_in_bits_too(tmp_path: Path, likelihood: Likelihood, has_bits: bool) -> None:
    made = config((1, 8, 8), Model(latent_dim=3, widths=[4, 8]), likelihood=likelihood)
    model = Saved(network(made).eval(), made, StandardNormal(3), "0" * 64)
    for number in range(2):
        Image.fromarray(np.full((8, 8), 100 * number, np.uint8)).save(tmp_path / f"{number}.png")
    table = apply.score(model, reading.reading(tmp_path, model), None, CPU)
    assert len(table) == 2 and ("bits_per_dim" in table) == has_bits
    if has_bits:
        np.testing.assert_allclose(table["bits_per_dim"], table["score"] / (64 * math.log(2)))
