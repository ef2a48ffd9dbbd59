"""What MLflow's pages say of a run and a model, read by a Markdown renderer."""

from pathlib import Path
from typing import Any

from helpers.commands import write_model
from markdown_it import MarkdownIt

from tasks.tracking import pages
from vae.config.parameters import Parameters
from vae.config.resolved import resolve
from vae.config.sections import Data

MONITOR: dict[str, Any] = {
    "verdict": "overfitted",
    "summary": "It knows <b>its</b> images by heart.",
    "reasons": ["the gap | is wide"],
    "recommendations": ["set train.patience to 5"],
    "warnings": ["the verdict rests on 4 validation images"],
}
TEST = {
    "images": 179,
    "elbo": 305.9,
    "elbo_se": 3.4,
    "kl": 49.9,
    "active_units": 16,
    "mse": 0.0033,
    "probe_accuracy": None,
}


def html(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def card(folder: Path, test: dict[str, Any], monitor: dict[str, Any], path: str = "photos/[x](y)") -> str:
    p = resolve(Parameters(data=Data(source="folder", path=path)), 1)
    shown = {"monitor": monitor, "test": test, "promotion": "would be promoted: it is better", "uri": "models:/vae/3"}
    return pages.render("version", name="vae", version="3", saved=write_model(folder), p=p, data="cd" * 32, **shown)


def test_the_note_of_a_run_begins_with_verdict_and_numbers_and_fetches_a_picture() -> None:
    shown = {"monitor": MONITOR, "test": TEST, "promotion": "was not promoted: no better", "uri": "models:/vae/3"}
    page = html(pages.render("run", run_id="r" * 32, **shown))
    first = page.split("</p>")[0]
    assert "<strong>overfitted</strong>" in first and "Test ELBO 305.9 ± 3.4 nats per image" in first
    assert f'src="get-artifact?run_uuid={"r" * 32}&amp;path=plots%2Freconstructions_median.png"' in page
    assert "<td>49.9</td>" in page and "<td>–</td>" not in page, "what does not exist has no row"
    assert "set train.patience to 5" in page and "was not promoted: no better." in page
    assert "<b>" not in page and "<li>the gap | is wide</li>" in page


def test_the_card_of_a_model_says_what_it_is_how_to_use_it_and_its_limits(tmp_path: Path) -> None:
    page = html(card(tmp_path, TEST, MONITOR))
    for told in (
        "1,439 images of 8×12 pixels in colour", "epoch 7 was kept", "vae version 3", "cdcdcdcdcdcd",
    ):  # fmt: skip
        assert told in page
    assert "load_model(&quot;models:/vae/3&quot;)" in page and "mlflow models serve -m models:/vae/3" in page
    assert "It is not healthy" in page and "4 validation images" in page
    assert "<a " not in page and "photos/[x](y)" in page, "a path is text"
    assert "It is not healthy" not in html(card(tmp_path, TEST, {**MONITOR, "verdict": "healthy"}))


def test_what_was_found_about_latents_and_reconstructions_is_in_both_descriptions(tmp_path: Path) -> None:
    found = ["Frozen features classify better: 97% against 73% | use them.", "<b> is lost."]
    shown = {"monitor": MONITOR, "test": TEST, "promotion": None, "uri": "models:/vae/3", "findings": found}
    p = resolve(Parameters(), 1)
    names = {"name": "vae", "version": "3", "saved": write_model(tmp_path), "p": p, "data": "cd" * 32}
    for page in (pages.render("run", run_id="r" * 32, **shown), pages.render("version", **names, **shown)):
        text = html(page)
        assert "<li>Frozen features classify better: 97% against 73% | use them.</li>" in text
        assert "<b>" not in text and "is lost." in text


def test_a_card_fits_the_registrys_column(tmp_path: Path) -> None:
    long = card(tmp_path, TEST, MONITOR, path="x" * 4000)
    assert len(long) <= 5000 and long.startswith("**overfitted**")
    assert len(pages.render("model", name="x" * 100)) <= 5000
