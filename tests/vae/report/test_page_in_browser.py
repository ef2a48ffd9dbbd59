"""The report as a person meets it: opened in a Chromium, wide and narrow, light and dark, by pointer and by keys."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.reports import COUNTS, NASTY_CLASS, facts_of, make_workspace
from helpers.workspaces import BROWSERS, browser_path

from vae.report import page as report
from vae.report.facts import Facts, Origin

BROWSER = browser_path()
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason=f"none of {', '.join(BROWSERS)} is on the PATH; install one, or name it in VAE_TRAIN_BROWSER",
)

ORIGIN = Origin(
    [("MLflow run", "bold-owl-1", "http://127.0.0.1:5000/#/experiments/1/runs/1"), ("Git commit", "abc", None)],
    "would be promoted: test ELBO 2 against 1 of champion version 3",
    ("the champion, version 3", {"elbo": 1.0, "mse": 0.1}),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A container has no sandbox for a browser, and this one opens nothing but our own file.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(facts: Facts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports: of a healthy run, and MLflow's copy of one without classes that collapsed."""
    folder = tmp_path_factory.mktemp("collapsed")
    make_workspace(folder, labelled=False, verdict="collapsed")
    with pytest.MonkeyPatch.context() as patch:
        pages = {"healthy": report.html(facts), "copy": report.html(facts_of(folder, patch), ORIGIN)}
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@dataclass
class Opened:
    page: Any
    said: list[str] = field(default_factory=list)  # to the console, or by a script that failed
    asked: list[str] = field(default_factory=list)  # addresses, but for the file itself and data


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    contexts = []

    def open_(file: Path, width: int = 1200, scheme: str = "light") -> Opened:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        result = Opened(contexts[-1].new_page())
        result.page.on("console", lambda message: result.said.append(message.text))
        result.page.on("pageerror", lambda error: result.said.append(str(error)))
        result.page.on("dialog", lambda dialog: (result.said.append(dialog.message), dialog.dismiss()))
        result.page.on("request", lambda request: result.asked.append(request.url))
        result.page.goto(file.as_uri())
        result.asked = [url for url in result.asked if url != file.as_uri() and not url.startswith("data:")]
        return result

    yield open_
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", ["healthy", "copy"])
def test_it_is_quiet_and_accessible(files: dict, opened: Any, name: str, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    it = opened(files[name], width, scheme)
    found = Axe().run(it.page)
    assert found.violations_count == 0, found.generate_report()
    assert it.page.evaluate("document.documentElement.scrollWidth") == width
    assert (it.said, it.asked) == ([], [])


def test_what_it_is_told_is_wrong_is_found(opened: Any, tmp_path: Path) -> None:
    """The checks above would find what they are there for."""
    from axe_playwright_python.sync_playwright import Axe

    (tmp_path / "page.html").write_text(
        "<!doctype html><title>t</title><img src='https://example.invalid/x.png'><script>alert(1); x.y</script>"
    )
    it = opened(tmp_path / "page.html")
    assert Axe().run(it.page).violations_count > 0
    assert it.asked == ["https://example.invalid/x.png"]
    assert "1" in it.said and len(it.said) >= 3


def test_the_latent_map_answers_to_keys(files: dict[str, Path], opened: Any) -> None:
    it = opened(files["healthy"])
    stage, card, said = it.page.locator(".stage"), it.page.locator(".card"), it.page.locator(".said")
    for _ in range(40):  # by Tab alone
        it.page.keyboard.press("Tab")
        if stage.evaluate("element => element === document.activeElement"):
            break
    assert stage.evaluate("element => element === document.activeElement")
    assert not card.is_visible()
    seen = set()
    for way in ("Right", *["Left"] * 20, *["Right"] * 20, *["Up"] * 20, *["Down"] * 20):
        it.page.keyboard.press(f"Arrow{way}")
        assert card.is_visible()
        assert card.inner_text().strip() == said.inner_text()
        seen.add(said.inner_text())
    assert COUNTS["test"] / 2 < len(seen) <= COUNTS["test"]
    assert all(text.startswith("test/") and "error" in text for text in seen)
    it.page.keyboard.press("Escape")
    assert not card.is_visible()
    assert it.said == []


def test_pointing_at_a_dot_shows_its_own_image(files: dict[str, Path], opened: Any) -> None:
    it = opened(files["healthy"])
    it.page.locator(".stage").scroll_into_view_if_needed()
    dots = it.page.locator("circle").all()
    assert len(dots) == COUNTS["test"]
    for dot in dots[:4]:
        box = dot.bounding_box()
        it.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        on = it.page.locator("circle.on")
        assert it.page.locator(".card").inner_text().strip() == on.get_attribute("data-text")
        column, row = map(int, on.get_attribute("data-tile").split())
        drawn = it.page.locator(".map")
        columns, rows = (int(drawn.get_attribute(f"data-{name}")) for name in ("columns", "rows"))
        place = it.page.locator(".tile").evaluate("element => getComputedStyle(element).backgroundPosition")
        x, y = (float(part.rstrip("%")) for part in place.split())
        assert x == pytest.approx(100 * column / (columns - 1), abs=0.01)
        assert y == pytest.approx(100 * row / (rows - 1), abs=0.01)
    it.page.mouse.move(0, 0)
    assert not it.page.locator(".card").is_visible()


def test_the_slider_moves_along_the_curve_and_numbers_and_pictures_follow(files: dict[str, Path], opened: Any) -> None:
    it = opened(files["healthy"])
    slider = it.page.get_by_label("Move along the curve, by KL weight")
    rows = [row.get_attribute("src") for row in it.page.locator(".pilot img").all()]

    def seen() -> tuple[list[str], str, float]:
        numbers = it.page.locator(".along dd").all_inner_texts()
        assert f"KL weight {numbers[0]}: {numbers[2]} nats" in slider.get_attribute("aria-valuetext")
        assert it.page.locator(".nearest img").first.get_attribute("src") == rows[0]
        return (
            numbers,
            it.page.locator(".nearest img").last.get_attribute("src"),
            it.page.locator(".here").bounding_box()["x"],
        )

    assert seen()[0][0] == "1"  # the weight of this run
    slider.press("Home")
    (weight, _, rate, error, informative), picture, x = seen()
    slider.press("End")
    (far_weight, _, far_rate, far_error, far_informative), far_picture, far_x = seen()
    assert float(weight) < 1 < float(far_weight)
    assert float(rate) > float(far_rate) and float(error) < float(far_error) and int(informative) > int(far_informative)
    assert (picture, far_picture) == (rows[1], rows[2]) and rows[1] != rows[2]
    assert far_x < x  # the rate falls
    slider.press("ArrowLeft")
    assert seen()[0] != [far_weight, _, far_rate, far_error, far_informative]
    assert it.said == []


def test_linear_theory_alone_has_a_slider_without_pictures(files: dict[str, Path], opened: Any) -> None:
    it = opened(files["copy"])
    numbers = it.page.locator(".along dd")
    before = numbers.all_inner_texts()
    it.page.get_by_label("Move along the curve, by KL weight").press("Home")
    assert numbers.all_inner_texts() != before
    assert it.page.locator(".strips").count() == 0 and it.said == []


def test_a_class_can_be_seen_alone(files: dict[str, Path], opened: Any) -> None:
    it = opened(files["healthy"])
    button = it.page.get_by_role("button", name=NASTY_CLASS)
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    group = button.get_attribute("value")
    off = {dot.get_attribute("data-group") for dot in it.page.locator("circle.off").all()}
    assert off and group not in off
    it.page.locator(".stage").press("ArrowLeft")
    assert it.page.locator("circle.on").get_attribute("data-group") == group
    button.press("Enter")
    assert it.page.locator("circle.off").count() == 0


def test_paper_shows_what_is_folded_and_no_buttons(files: dict[str, Path], opened: Any) -> None:
    it = opened(files["healthy"], scheme="dark")
    last = it.page.get_by_text("… and 10 more, in data/manifest.parquet.")
    letters = it.page.locator("svg text").first
    screen = letters.evaluate("element => getComputedStyle(element).fill")
    assert not last.is_visible()  # 60 files, folded
    it.page.emulate_media(media="print", color_scheme="light")
    assert last.is_visible()
    assert not it.page.locator("nav").is_visible() and not it.page.locator(".hint").is_visible()
    assert letters.evaluate("element => getComputedStyle(element).fill") == "rgb(0, 0, 0)" != screen
    assert it.page.pdf(format="A4").startswith(b"%PDF")


def test_without_scripts_all_but_the_pointing_is_there(files: dict[str, Path], browser: Any) -> None:
    """As where a page of MLflow's, or a mail program, runs none."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["healthy"].as_uri())
    assert page.locator("circle").count() == COUNTS["test"]
    assert page.get_by_role("heading", name="Healthy").is_visible()
    assert [row.is_visible() for row in page.locator(".pilot li").all()] == [True] * 3
    assert page.get_by_text("KL weight", exact=False).first.is_visible() and not page.locator(".along").is_visible()
    assert not page.locator(".hint").is_visible() and page.locator(".legend button").first.is_disabled()
    context.close()
