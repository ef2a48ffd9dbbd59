"""How time and memory grow with files, images, pixels and latents: `python -m tasks.growth`.

Each point is measured in a process of its own. Where a line is straight, the time per image (per pixel) stays the
same. Written to `docs/growth/growth.csv` and `growth.png`; docs/benchmarks.md reads them.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure
from PIL import Image
from ruamel.yaml import YAML

from tasks import workspace
from tasks.bench import Case, last_words, parameters_of
from vae import devices, training
from vae.errors import InputError

PLACE = Path("docs/growth")
POINTS = {
    "files": (1_000, 10_000, 100_000, 1_000_000),
    "images": (1_000, 10_000, 100_000, 1_000_000),
    "pixels": (16, 32, 64, 128, 256),
    "latents": (4, 16, 64, 256, 1024),
}
UNITS = {
    "files": "files read by ingest, 16×16 PNG",
    "images": "training images, 16×16×1, memory-mapped",
    "pixels": "side of an image in pixels",
    "latents": "latents, 32×32×1",
}
ONE = {"pixels": "a pixel", "files": "a file"}


def main(
    of: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(POINTS)}; else all")] = None,
) -> None:
    """Measures every point, prints the table, and draws it."""
    if not Path("/proc/self/status").exists():
        raise InputError("this measures memory by /proc, which Linux has")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in of or POINTS:
            if what not in POINTS:
                raise InputError(f"{what!r} is none of {', '.join(POINTS)}")
            for size in POINTS[what]:
                rows.append({"of": what, "size": size, **_in_a_process(what, size, folder)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    if (PLACE / "growth.csv").exists():  # what was not measured this time stays
        before = pd.read_csv(PLACE / "growth.csv")
        table = pd.concat([before[~before["of"].isin(table["of"])], table], ignore_index=True)
        table = table.sort_values("of", key=lambda column: column.map(list(POINTS).index), kind="stable")
    PLACE.mkdir(parents=True, exist_ok=True)
    table.to_csv(PLACE / "growth.csv", index=False)
    plot(table).savefig(PLACE / "growth.png", dpi=110)
    print("\n" + "\n".join(markdown(table)))


class Watch:
    """Seconds, and the most memory of the process's own: mapped pages of a file are the kernel's to take back."""

    def __enter__(self) -> "Watch":
        self.begin, self.most, self._ended = time.perf_counter(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.most = max(self.most, int(status.split("RssAnon:")[1].split()[0]) / 1024)
            if self._ended.wait(0.05):
                return

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.begin
        self._ended.set()
        self._thread.join()


Measured = tuple[int, Watch]  # how many, and what they took


def files(count: int) -> Measured:
    """Ingest of so many different files of a few hundred bytes; what is measured is the work around a file."""
    from tasks import ingest

    random = np.random.default_rng(0)
    for start in range(0, count, 1000):  # no folder holds too many for its file system
        folder = Path("photos", f"{start:07d}")
        folder.mkdir(parents=True)
        for index, pixels in enumerate(random.integers(0, 256, (min(1000, count - start), 16, 16), np.uint8)):
            Image.fromarray(pixels).save(folder / f"{index}.png", compress_level=0)
    values = parameters_of(Case(16, 1, (8,), 4, 16, count, 1), seed=0).model_dump(mode="json")
    values["data"] |= {"source": "folder", "path": "photos"}
    YAML().dump(values, workspace.PARAMS)
    with contextlib.redirect_stdout(io.StringIO()), Watch() as watch:
        ingest.main()
    return count, watch


def images(count: int) -> Measured:
    """An epoch over a memory-mapped array."""
    array = np.lib.format.open_memmap("train.npy", "w+", np.uint8, (count, 16, 16, 1))
    random = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        array[start : start + 10_000] = random.integers(0, 256, array[start : start + 10_000].shape, np.uint8)
    array.flush()
    del array
    return _train(Case(16, 1, (16, 32), 8, 128, count, 1), np.load("train.npy", mmap_mode="r"))


def pixels(side: int) -> Measured:
    """Some epochs over images of this side; all their pixels are what is counted."""
    count = max(8_000_000 // side**2, 128)
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (count, side, side, 1), np.uint8)
    trained, watch = _train(Case(side, 1, (32, 64), 16, 64, count, 1), array)
    return trained * side**2, watch


def latents(number: int) -> Measured:
    """An epoch with so many latents."""
    array = np.random.default_rng(0).integers(0, 256, (8192, 32, 32, 1), np.uint8)
    return _train(Case(32, 1, (32, 64), number, 128, len(array), 1), array)


MEASURED: dict[str, Callable[[int], Measured]] = {
    "files": files,
    "images": images,
    "pixels": pixels,
    "latents": latents,
}


def _train(case: Case, array: np.ndarray) -> Measured:
    """One epoch, validated on a few images; returns how many images it trained on."""
    p = parameters_of(case, seed=0)
    valid = np.array(array[:64])
    with Watch() as watch:
        training.train(p, array, valid, devices.choose(p.train, training.flops(p)))
    return case.images // case.batch * case.batch, watch


def one(what: str, size: int) -> dict[str, float]:
    """A point, in this process and its working folder."""
    count, watch = MEASURED[what](size)
    return {
        "seconds": watch.seconds,
        "microseconds_each": 1e6 * watch.seconds / count,
        "peak_megabytes": watch.most,
    }


def _in_a_process(what: str, size: int, folder: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        done = subprocess.run(
            [sys.executable, "-m", "tasks.growth", "--only", what, str(size)],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "DVC_ROOT": place},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise InputError(f"{what} = {size}: {last_words(done)}")
    return json.loads(done.stdout.splitlines()[-1])


def markdown(table: pd.DataFrame) -> list[str]:
    lines = ["| growing | size | time | each | peak memory |", "| --- |" + " --- |" * 4]
    for row in table.to_dict("records"):
        each = f"{_short(row['microseconds_each'])} µs {ONE.get(row['of'], 'an image')}"
        took = f"{row['seconds']:.1f} s | {each} | {row['peak_megabytes']:,.0f} MB"
        lines.append(f"| {UNITS[row['of']]} | {row['size']:,} | {took} |")
    return lines


def plot(table: pd.DataFrame) -> Figure:
    """A pair for each kind of growth: time each on top, peak memory below."""
    kinds = list(dict.fromkeys(table["of"]))
    figure = Figure(figsize=(3.2 * len(kinds), 5), layout="constrained")
    axes = figure.subplots(2, len(kinds), sharex="col", squeeze=False)
    for (top, bottom), what in zip(axes.T, kinds, strict=True):
        rows = table[table["of"] == what]
        top.loglog(rows["size"], rows["microseconds_each"], "o-", color="#2f6db3")
        bottom.loglog(rows["size"], rows["peak_megabytes"], "o-", color="#c0392b")
        top.set(title=UNITS[what], ylabel="µs a pixel" if what == "pixels" else "µs each")
        bottom.set(xlabel=what, ylabel="peak memory, MB")
        bottom.set_xticks(rows["size"], [f"{size:,}" for size in rows["size"]], fontsize=8)
        bottom.minorticks_off()
        top.title.set_fontsize(9)
        for axis, column in ((top, "microseconds_each"), (bottom, "peak_megabytes")):
            middle = float(np.sqrt(rows[column].min() * rows[column].max()))
            axis.set_ylim(middle / 30, middle * 30)  # the same factor everywhere, so that heights compare
            axis.yaxis.set_major_formatter(lambda value, _: _short(value))
    return figure


def _short(value: float) -> str:
    """Three digits, in full: 1,260 and 0.313."""
    return f"{float(f'{value:.3g}'):,.12g}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        print(json.dumps(one(sys.argv[2], int(sys.argv[3]))))
    else:
        workspace.run(lambda: typer.run(main))
