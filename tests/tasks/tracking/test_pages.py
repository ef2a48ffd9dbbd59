"""What MLflow's pages say of a run and a model, read by a Markdown renderer."""

from typing import Any

import torch
from helpers.project import PROJECT
from helpers.registered import SHAPE
from markdown_it import MarkdownIt

from tasks.tracking import pages
from vae.config import parameters
from vae.models.likelihood import Likelihood
from vae.models.saved import Saved
from vae.models.vae import VAE

MONITOR: dict[str, Any] = {
    "verdict": "overfitted",
    "summary": "It knows <b>its</b> images by heart.",
    "reasons": ["the gap | is wide"],
    "recommendations": ["set train.patience to 5"],
    "warnings": ["the verdict rests on 4 validation images"],
}
TEST = {"images": 179, "elbo": 305.9, "kl": 49.9, "active_units": 16, "mse": 0.0033, "probe_accuracy": None}


def html(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def card(test: dict[str, Any], monitor: dict[str, Any], path: str = "photos/[x](y)") -> str:
    p = parameters.load(PROJECT / "experiments" / "default.yaml")
    p = p.model_copy(update={"data": p.data.model_copy(update={"source": "folder", "path": path})})
    architecture: dict[str, Any] = {
        "architecture": "mlp",
        "latent_dim": 2,
        "widths": [4],
        "batch_norm": False,
    }
    torch.manual_seed(0)
    network = VAE(SHAPE, learned_sigma=False, **architecture)
    train = {"images": 1439.0}
    saved = Saved(network, Likelihood("gaussian", 0.1), SHAPE, {}, "fp32", 7, None, train, sha256="ab" * 32)
    return pages.of_version("vae", "3", saved, p, monitor, test, "cd" * 32, "would be promoted: it is better")


def test_the_note_of_a_run_begins_with_verdict_and_numbers_and_fetches_a_picture() -> None:
    page = html(pages.of_run("r" * 32, MONITOR, TEST, "was not promoted: no better", "models:/vae/3"))
    first = page.split("</p>")[0]
    assert "<strong>overfitted</strong>" in first and "Test ELBO 305.9 nats per image" in first
    assert f'src="get-artifact?run_uuid={"r" * 32}&amp;path=plots%2Freconstructions_median.png"' in page
    assert "<td>49.9</td>" in page and "<td>–</td>" not in page, "what does not exist has no row"
    assert "set train.patience to 5" in page and "was not promoted: no better." in page
    assert "<b>" not in page and "<li>the gap | is wide</li>" in page


def test_the_card_of_a_model_says_what_it_is_how_to_use_it_and_its_limits() -> None:
    page = html(card(TEST, MONITOR))
    for told in (
        "1,439 images of 8×8 pixels in grey",
        "epoch 7 was kept",
        "What vae version 3 is",
        "abababababab",
        "cdcdcdcdcdcd",
    ):
        assert told in page
    assert "load_model(&quot;models:/vae/3&quot;)" in page and "mlflow models serve -m models:/vae/3" in page
    assert "It is not healthy" in page and "4 validation images" in page
    assert "<a " not in page and "photos/[x](y)" in page, "a path is text"
    assert "It is not healthy" not in html(card(TEST, {**MONITOR, "verdict": "healthy"}))


def test_a_card_fits_the_registrys_column() -> None:
    long = card(TEST, MONITOR, path="x" * 4000)
    assert len(long) <= 5000 and long.startswith("**overfitted**")
    assert len(pages.of_name("x" * 100)) <= 5000
