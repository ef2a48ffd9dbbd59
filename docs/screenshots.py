"""The pictures of README.md, from the run in the workspace: `make up`, then `python docs/screenshots.py`."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))
from tasks import tracking, workspace

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    pages = dict(
        zip(("mlflow", "prefect"), (url for _, url in tracking.links(tracking.run_here())), strict=True)
    )
    pages["mlflow-curves"] = pages["mlflow"] + "/model-metrics"
    pages["report"] = workspace.REPORT.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=["--no-sandbox"]
        )
        for name, url in pages.items():
            page = browser.new_page(viewport={"width": 1360, "height": 1000})
            page.goto(url)
            page.wait_for_timeout(500 if url.startswith("file:") else 8000)  # their curves come bit by bit
            save(page, IMAGES / f"screenshot-{name}.png")
        browser.close()


def save(page: Page, path: Path) -> None:
    """In 128 colours: a third of the size, and nobody sees it."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
