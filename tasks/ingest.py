"""Stage ingest: every image of the source decoded once, brought to one shape, and given its split.

Two passes, so that memory holds a batch and never the data set. The first decodes on all cores and writes the
prepared pixels aside, in the source's order; the second, which knows all contents and hence all splits,
writes one array a split. What the first decoded is in `data/.ingest`, which DVC does not know and so leaves alone:
an interrupted ingest goes on there (`vae.data.decode_cache`). The outputs are made in `data/images/.partial` and moved
into place at the end.
The result is the same to the bit for any number of workers and of interruptions.
"""

import errno
import hashlib
import inspect
import math
import os
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from tasks import workspace
from tasks.processes import entry
from tasks.processes.lock import hold
from vae.config import loading
from vae.config.constants import SPLITS
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.preprocessing import Preprocessing
from vae.data import images, sources, splits
from vae.data.decode_cache import Decoded, Examined, stamp
from vae.data.images import UnusableImage, UnusableNow
from vae.data.sources import Item

PARTIAL = workspace.IMAGES / ".partial"
# What was learnt of some items, their stamps, and the pixels of the usable ones, one after another.
Batch = tuple[Sequence[Examined], Sequence[str | None], bytes]
Moments = tuple[float, float]  # of an image's pixels: mean and standard deviation, in [0, 1]
In = TypeVar("In")
Out = TypeVar("Out")

DECODE_AT_ONCE = 32  # items a worker takes at a time
WRITE_AT_ONCE = 2**18  # bytes: what fits into a core's cache as float64
SECONDS_BETWEEN_LINES = 10
WAIT = 15  # seconds, for another ingest


@dataclass(frozen=True)
class Stored:
    """Where the second pass put each item, and its pixels' mean and standard deviation, in [0, 1]; arrays, an entry an
    item. Those of an item that cannot be used mean nothing, and its split is None.
    """

    split: list[str | None]
    index: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def nothing(cls, items: int) -> "Stored":
        return cls([None] * items, np.zeros(items, np.int64), np.zeros(items), np.zeros(items))


def main(workers: int | None = None) -> None:
    """Writes `data/images/{train,valid,test}.npy` and `data/manifest.parquet`.

    Raises:
        InputError: the source cannot be read, no image is usable, a split is empty, or the disk is full.
    """
    params = loading.load(workspace.PARAMS)
    preprocessing = Preprocessing.of(params)
    items = sources.find(params.data)
    print(f"ingest: {len(items):,} items from data.source = {params.data.source}", flush=True)
    image_bytes = preprocessing.height * preprocessing.width * preprocessing.channels
    # One at a time: an ingest whose DVC was killed takes a moment to end.
    with (
        hold(Path(".run/ingest.lock"), "an ingest", seconds=WAIT),
        _written_aside(
            Decoded(workspace.DECODED, _key(params, preprocessing), items, image_bytes)
        ) as decoded,
    ):
        workers = workers or _cores()
        _decode_all(items, preprocessing, decoded, workers)
        examined = decoded.examined
        usable = [i for i, found in enumerate(examined) if found.reason is None]
        if not usable:
            raise InputError(
                f"data.path = {params.data.path!r}: none of {len(items):,} files can be used as an image; "
                + _some_reasons(items, examined)
            )
        split_of = _assign(items, examined, usable, params)
        stored = _write_splits(decoded.pixels, examined, split_of, preprocessing, workers)
        _write_manifest(items, examined, stored)
    print(_summary(items, examined, stored, preprocessing), flush=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(params: Parameters, preprocessing: Preprocessing) -> str:
    """All that shapes the prepared pixels besides the files: parameters, code, and the library that decodes."""
    code = [Path(inspect.getfile(part)).read_bytes() for part in (images, sources, Decoded, _examine)]
    asked = [params.data.source, params.data.path, preprocessing.height, preprocessing.width]
    return " ".join(
        [
            repr([*asked, preprocessing.channels]),
            hashlib.sha256(b"".join(code)).hexdigest(),
            f"Pillow {PIL.__version__}",
        ]
    )


@contextmanager
def _written_aside(decoded: Decoded) -> Iterator[Decoded]:
    """Two folders for the time of the work. What one then holds replaces the old outputs, all or none; the other has
    what is decoded so far, and stays until the next stage finds that DVC has taken the outputs in.
    """
    try:
        shutil.rmtree(PARTIAL, ignore_errors=True)
        PARTIAL.mkdir(parents=True)
        workspace.DECODED.mkdir(exist_ok=True)
        if decoded.is_worth_keeping():
            print("ingest: an earlier run did not end; looking for what changed since", flush=True)
        with decoded:
            yield decoded
        # The manifest goes first and comes last: arrays without a manifest are seen to be unfinished.
        workspace.MANIFEST.unlink(missing_ok=True)
        for split in SPLITS:
            (PARTIAL / f"{split}.npy").replace(workspace.images(split))
        (PARTIAL / "manifest.parquet").replace(workspace.MANIFEST)
    except KeyboardInterrupt:
        if decoded.kept:
            print(f"ingest: {decoded.kept:,} items are kept; the same command goes on after them", flush=True)
        raise
    except OSError as error:
        advice = (
            "free some space"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            else "check its rights"
        )
        place = error.filename or workspace.IMAGES
        rest = (
            f": it goes on after the {decoded.kept:,} items kept in {workspace.DECODED}"
            if decoded.kept
            else ""
        )
        raise InputError(
            f"cannot write {str(place)!r}: {error.strerror or error}; {advice} and run again{rest}"
        ) from None
    finally:
        shutil.rmtree(PARTIAL, ignore_errors=True)
        if not decoded.is_worth_keeping():
            shutil.rmtree(workspace.DECODED, ignore_errors=True)


def _decode_all(items: Sequence[Item], preprocessing: Preprocessing, decoded: Decoded, workers: int) -> None:
    """The first pass: all items that are not decoded yet."""
    begin = len(decoded.examined)
    if begin:
        print(f"ingest: goes on after {begin:,} items, which an earlier run decoded", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        try:
            batches = (items[i : i + DECODE_AT_ONCE] for i in range(begin, len(items), DECODE_AT_ONCE))
            results = _in_order(pool, partial(_examine_batch, preprocessing), batches, ahead=2 * workers)
            for found, stamps, pixels in _with_progress(results, begin, len(items)):
                decoded.add(found, stamps, pixels)
        finally:  # on Ctrl-C or a full disk: what has not begun need not begin
            pool.shutdown(wait=False, cancel_futures=True)
    decoded.flush()


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[In], Out], batches: Iterable[In], ahead: int
) -> Iterator[Out]:
    """Threads, since Pillow and NumPy work without holding Python's lock; at most `ahead` batches are in memory."""
    waiting: deque[Future[Out]] = deque()
    for batch in batches:
        waiting.append(pool.submit(work, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _examine_batch(preprocessing: Preprocessing, batch: Sequence[Item]) -> Batch:
    stamps, examined, pixels = zip(*(_examine(item, preprocessing) for item in batch), strict=True)
    return examined, stamps, b"".join(pixels)


def _examine(item: Item, preprocessing: Preprocessing) -> tuple[str | None, Examined, bytes]:
    """Its stamp, what was learnt of it, and its pixels."""
    stamped, size, digest = stamp(item), None, None
    try:
        content = item.load()
        raw = content if isinstance(content, bytes) else content.tobytes()
        size, digest = len(raw), hashlib.sha256(raw).hexdigest()
        prepared = images.prepare(content, preprocessing)
    except UnusableImage as refusal:
        if isinstance(refusal, UnusableNow):
            stamped = None
        return stamped, Examined(bytes=size, sha256=digest, reason=str(refusal)), b""
    learnt = Examined(prepared.width, prepared.height, prepared.mode, size, digest)
    return stamped, learnt, prepared.pixels.tobytes()


def _with_progress(results: Iterable[Batch], done: int, total: int) -> Iterator[Batch]:
    """A bar where a person watches, a line now and then where the output is kept."""
    if sys.stdout.isatty():
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task("decoding", completed=done, total=total)
            for result in results:
                yield result
                progress.advance(task, len(result[0]))
        return
    last = time.monotonic()
    for result in results:
        yield result
        done += len(result[0])
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"ingest: {done:,} of {total:,} decoded", flush=True)


def _assign(
    items: Sequence[Item], examined: Sequence[Examined], usable: Sequence[int], params: Parameters
) -> list[str]:
    """The split of each usable item: its source's own, where the source has that split at all."""
    own = {item.split for item in items}
    wanted = {"test": params.data.test_fraction, "valid": params.data.valid_fraction}
    split_of = splits.assign(
        [items[i].split for i in usable],
        [items[i].label for i in usable],
        [str(examined[i].sha256) for i in usable],
        {split: fraction for split, fraction in wanted.items() if split not in own},
        params.seed,
    )
    counts = Counter(split_of)
    if empty := [split for split in SPLITS if not counts[split]]:
        found = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
        raise InputError(
            f"data.path = {params.data.path!r} leaves no image for {' and '.join(empty)} (usable: {found}); "
            f"add images that differ. {_some_reasons(items, examined)}".rstrip()
        )
    return split_of


def _write_splits(
    scratch: Path,
    examined: Sequence[Examined],
    split_of: Sequence[str],
    preprocessing: Preprocessing,
    workers: int,
) -> Stored:
    """The second pass: one array a split, in the source's order."""
    usable = [i for i, found in enumerate(examined) if found.reason is None]
    shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
    prepared = np.asarray(np.memmap(scratch, np.uint8, "r", shape=(len(usable), *shape)))
    stored = Stored.nothing(len(examined))
    at_once = max(WRITE_AT_ONCE // math.prod(shape), 1)

    def finished(split: str, rows: Sequence[int]) -> tuple[Sequence[int], NDArray[np.uint8], list[Moments]]:
        pixels = np.stack([images.binarised(prepared[row], preprocessing, split == "train") for row in rows])
        return rows, pixels, list(_means_and_stds(pixels))

    with ThreadPoolExecutor(workers) as pool:
        for split in SPLITS:
            rows = [row for row, assigned in enumerate(split_of) if assigned == split]
            parts = (rows[start : start + at_once] for start in range(0, len(rows), at_once))
            index = 0
            with (PARTIAL / f"{split}.npy").open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *shape)}
                np.lib.format.write_array_header_1_0(file, header)
                for some, pixels, moments in _in_order(
                    pool, partial(finished, split), parts, ahead=2 * workers
                ):
                    file.write(pixels.data)
                    for row, (mean, std) in zip(some, moments, strict=True):
                        item = usable[row]
                        stored.split[item], stored.index[item] = split, index
                        stored.mean[item], stored.std[item] = mean, std
                        index += 1
    return stored


def _means_and_stds(pixels: NDArray[np.uint8]) -> Iterator[Moments]:
    """Of each image, in [0, 1]. From sums of whole numbers, so that every machine gets the same bits."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    n = flat.shape[1]
    # Not by BLAS, which would wake all cores for it, and wait for them where one is busy.
    for total, squares in zip(
        map(int, flat.sum(1)), map(int, np.einsum("ij,ij->i", flat, flat)), strict=True
    ):
        yield total / (255 * n), math.sqrt(n * squares - total * total) / (255 * n)


def _write_manifest(items: Sequence[Item], examined: Sequence[Examined], stored: Stored) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    refused = np.array([found.reason is not None for found in examined])
    columns = {
        "path": pa.array((item.path for item in items), pa.string()),
        "split": pa.array(stored.split, pa.string()),
        "label": pa.array((item.label for item in items), pa.string()),
        "index": pa.array(stored.index, mask=refused),
        "width": pa.array((found.width for found in examined), pa.int64()),
        "height": pa.array((found.height for found in examined), pa.int64()),
        "mode": pa.array((found.mode for found in examined), pa.string()),
        "bytes": pa.array((found.bytes for found in examined), pa.int64()),
        "sha256": pa.array((found.sha256 for found in examined), pa.string()),
        "mean": pa.array(stored.mean, mask=refused),
        "std": pa.array(stored.std, mask=refused),
        "status": pa.array(("quarantined" if bad else "ok" for bad in refused), pa.string()),
        "reason": pa.array((found.reason for found in examined), pa.string()),
    }
    pq.write_table(pa.table(columns), PARTIAL / "manifest.parquet")


def _summary(
    items: Sequence[Item], examined: Sequence[Examined], stored: Stored, preprocessing: Preprocessing
) -> str:
    counts = Counter(split for split in stored.split if split)
    used = sum(counts.values())
    classes = {item.label for item, split in zip(items, stored.split, strict=True) if split} - {None}
    return (
        f"ingest: {', '.join(f'{counts[split]:,} {split}' for split in SPLITS)} images of "
        f"{preprocessing.height}×{preprocessing.width}×{preprocessing.channels}; "
        f"{f'{len(classes):,} classes' if classes else 'no labels'}; "
        f"{len(items) - used:,} of {len(items):,} quarantined"
        + (f": {_some_reasons(items, examined)}" if used < len(items) else "")
    )


def _some_reasons(items: Sequence[Item], examined: Sequence[Examined], most: int = 3) -> str:
    """The first few refusals; `repr`, since a file's name may hold line breaks or a terminal's commands."""
    refused = [
        f"{item.path!r}: {found.reason}" for item, found in zip(items, examined, strict=True) if found.reason
    ]
    more = f"; and {len(refused) - most:,} more" if len(refused) > most else ""
    return "; ".join(refused[:most]) + more


if __name__ == "__main__":
    entry.run(main)
