"""The benchmark measures what it says: on a tiny case, since speed itself is no test's business."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import speed as bench
from benchmarks.peers import PEERS, loss_of, pixels
from benchmarks.speed import Case
from vae.compute import devices
from vae.config.errors import InputError
from vae.losses.elbo import ELBOLoss
from vae.losses.kl_control import KLControl
from vae.models.vae import build

TINY = Case(16, 1, (8, 16), 4, 16, 320, 6)
WHOLE = Case(16, 1, (8, 16), 4, 16, 320, 6, end_to_end=True)
MAP = Case(16, 1, (8, 16), 16, 16, 320, 6, architecture="residual", shape={"latent_shape": (4, 4, 1)}, recompute=True)


@pytest.fixture(autouse=True)
def cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CASES", {"tiny": TINY, "whole": WHOLE, "tiny, map": MAP})


@pytest.mark.parametrize("name", ["tiny", "whole", "tiny, map"])
@pytest.mark.parametrize("trainer", [bench.OURS, *PEERS])
def test_every_trainer_trains_all_epochs(name: str, trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if trainer in ("Lightning", "pythae"):
        pytest.importorskip(trainer.lower())
    monkeypatch.setenv("DVC_ROOT", "restored after the test")
    found = bench.one(name, trainer, seed=0)
    assert len(found["seconds"]) == TINY.epochs and min(found["seconds"]) > 0
    assert found["whole_seconds"] > sum(found["seconds"])
    assert found["skill"] > 0  # better than the mean image
    assert 50 < found["peak_megabytes"] < 16_000


def test_a_trainers_name_says_what_is_other_than_the_rules_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_has_bf16", lambda device: True)
    monkeypatch.setattr(devices, "BF16_FROM_IMAGE_FLOPS", 0)
    p = bench.parameters_of(TINY, seed=0)
    ours, fp32, compiled, eager = (
        bench.compute_of(p, who, 320) for who in (bench.OURS, bench.FP32, bench.COMPILED, bench.EAGER)
    )
    assert (ours.precision, fp32.precision) == ("bf16", "fp32")
    assert compiled.compiled and not eager.compiled
    assert {compute.device.type for compute in (ours, fp32, compiled, eager)} == {"cpu"}


def test_the_peers_objective_is_the_projects_own() -> None:
    """Both minimise the same number: else the speeds would be of different work."""
    p = bench.parameters_of(TINY, seed=0)
    images = bench.photos(16, 1, 8)
    model, x = build(p), pixels(images)
    torch.manual_seed(0)
    theirs = float(loss_of(p, model, x).detach())
    torch.manual_seed(0)
    noise = torch.randn(1, len(x), TINY.latents)
    ours, _ = ELBOLoss(p.elbo, KLControl(p.kl, p.elbo.pixels, x.device))(model, x, noise, p.elbo.beta)
    constant = x[0].numel() * np.log(0.1 * np.sqrt(2 * np.pi))  # of the Gaussian's density
    assert theirs + constant == pytest.approx(float(ours.detach()), rel=1e-5)


def test_ratios_are_of_the_same_repeat() -> None:
    """The machine is twice as fast in the second repeat: the ratio stays what it is."""
    rows = [
        {
            "case": "tiny", "trainer": who, "repeat": repeat, "images_per_second": speed * (repeat + 1),
            "of_matrix_rate": 0.5, "first_epoch_seconds": 1.0, "peak_megabytes": 100.0, "skill": skill,
        }
        for repeat in (0, 1)
        for who, speed, skill in ((bench.OURS, 300.0, 9.9), ("pythae", 100.0, 10.0))
    ]  # fmt: skip
    ours = next(line for line in bench.markdown(pd.DataFrame(rows)) if f"| {bench.OURS} |" in line)
    assert "| 3.00 (3.00–3.00) | – | – |" in ours and "| 50% |" in ours and ours.endswith("| 0.990 |")


def test_an_unknown_case_or_trainer_is_named() -> None:
    with pytest.raises(InputError, match="'huge' is unknown; expected one of tiny, whole, tiny, map"):
        bench.main(case=["huge"])
