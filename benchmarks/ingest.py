"""What ingest costs beside decoding alone: `python -m benchmarks.ingest PATH`.

Decoding alone is the shortest loop that gives the same pixels of plain photos: Pillow opens each file, decodes it at
the same reduced scale and resizes it. What ingest adds: finding the files, hashes, the splits, chunks by which an
interrupted ingest resumes, arrays and manifest. Both take turns in one process; importing libraries is not counted.
"""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet  # noqa: F401  # otherwise the first ingest would import it
import typer
from PIL import Image
from ruamel.yaml import YAML

from tasks import ingest, workspace
from tasks.processes import entry
from vae.config.sections import Data
from vae.data import sources
from vae.data.item import File


def main(
    path: Annotated[Path, typer.Argument(help="a folder of photos")],
    image_size: Annotated[int, typer.Option(min=8, max=256)] = 64,
    workers: Annotated[int, typer.Option(min=1, help="threads of ingest; decoding alone has one")] = 1,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print the CPU seconds of ingest and of decoding alone, and their ratio."""
    photos = Data(source="folder", path=str(path.absolute()), image_size=(image_size, image_size), channels=3)
    files = [item.load.path for item in sources.find(photos) if isinstance(item.load, File)]
    rows = []
    for _ in range(repeats):
        alone = measured(lambda: decode(files, image_size))
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            YAML().dump({"data": photos.model_dump(mode="json")}, workspace.PARAMS)
            rows.append((*measured(lambda: ingest.main(workers)), *alone))
    print(f"{len(files):,} files, {image_size}×{image_size}×3, {workers} worker(s), medians of {repeats}")
    print(report(rows))


def decode(files: list[str], size: int) -> None:
    """Decodes each file as `vae.data.images.prepare` does a plain photo; skips what Pillow cannot read."""
    for file in files:
        with contextlib.suppress(OSError), Image.open(file) as image:
            image.draft(None, (2 * size, 2 * size))
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC))


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of CPU, of all threads, user and system; and of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def report(rows: list[tuple[float, float, float, float]]) -> str:
    """rows: CPU and clock seconds of ingest, then of decoding alone, one row per repeat."""
    ratios = sorted(ingested / alone for ingested, _, alone, _ in rows)
    cpu, clock, alone_cpu, alone_clock = (statistics.median(column) for column in zip(*rows, strict=True))
    return (
        f"ingest {cpu:.2f} CPU s ({clock:.2f} s), decoding alone {alone_cpu:.2f} CPU s ({alone_clock:.2f} s); "
        f"ratio of CPU {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    entry.run(lambda: typer.run(main))
