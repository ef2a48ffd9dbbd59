"""The screenshots of the pages, from the run in the workspace: `make up`, then `python docs/screenshots.py`."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks import workspace
from tasks.tracking import store

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    mlflow, prefect = (url for _, url in store.links(store.run_here()))
    report = workspace.REPORT.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(report)
        save(page, "report")
        to_the_top(page, "h2:has-text('Latent map')")
        save(page, "report-latents")

        page.goto(mlflow)
        page.wait_for_timeout(8000)  # its pages come bit by bit
        close_assistant(page)
        page.get_by_text("Show more").first.click()
        to_the_top(page, "text=Description")
        save(page, "mlflow")
        page.goto(f"{mlflow}/model-metrics")
        page.wait_for_timeout(5000)
        page.get_by_placeholder("Search metric charts").fill("^valid/(loss|reconstruction|kl|elbo)$|^kl_weight")
        page.wait_for_timeout(5000)
        save(page, "mlflow-curves")

        page.set_viewport_size({"width": 1200, "height": 620})
        page.goto(prefect)
        page.wait_for_timeout(8000)
        save(page, "prefect")
        browser.close()


def to_the_top(page: Page, what: str) -> None:
    page.locator(what).first.evaluate("element => element.scrollIntoView()")
    page.wait_for_timeout(500)


def close_assistant(page: Page) -> None:
    """MLflow opens a panel for questions to a language model, on a new browser's first visit."""
    heading = page.get_by_text("MLflow Assistant")
    if heading.count():
        heading.first.locator("xpath=ancestor::*[.//button][1]").locator("button").last.click()
        page.wait_for_timeout(500)


def save(page: Page, name: str) -> None:
    """In 128 colours: a third of the size, and nobody sees it."""
    path = IMAGES / f"screenshot-{name}.png"
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
