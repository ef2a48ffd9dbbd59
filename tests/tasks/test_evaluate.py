"""What the stage evaluate gathers and writes, from a workspace of tiny files."""

from pathlib import Path

import numpy as np
import pytest
from helpers.reports import LATENTS, facts_of, gathered, make_workspace

from tasks import evaluate
from vae.config.errors import InputError
from vae.report.numbers import key_numbers


def test_the_summary_is_the_verdict_and_few_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path, labelled=False)
    facts, latents = gathered(tmp_path, monkeypatch)
    summary, test = evaluate.summary(facts), facts.metrics["test"]
    assert summary == {"verdict": "healthy"} | {n.key: test[n.key] for n in key_numbers(test)}
    assert "bits_per_dim" not in summary
    assert summary["probe_accuracy"] is None

    assert sorted(latents["latent"]) == list(range(LATENTS))
    assert latents["kl"].is_monotonic_decreasing
    assert latents["kl"].sum() == pytest.approx(test["kl"], rel=1e-4)


def test_a_manifest_of_other_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    np.save(tmp_path / "data/images/test.npy", np.zeros((3, 8, 12, 3), dtype=np.uint8))
    with pytest.raises(InputError, match=r"13 test images, data/images/test\.npy has 3"):
        facts_of(tmp_path, monkeypatch)
