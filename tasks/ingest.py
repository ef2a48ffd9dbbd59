"""Stage ingest: every image of the source is decoded once, brought to one shape, and given its split.

Two passes, so that memory holds a few chunks and never the data set. The first decodes on all cores, in chunks that
`vae.data.decode_cache` keeps in `data/.ingest`, where an interrupted ingest finds them: DVC does not know that folder
and leaves it alone. The second knows all contents, hence all splits, and writes one array per split. The outputs
are written in `data/images/.partial` and moved into place at the end.
The result is bit-identical for any number of workers and interruptions.
"""

import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks import workspace
from tasks.processes import entry
from tasks.processes.lock import hold
from tasks.processes.progress import bar
from vae import limits
from vae.config import loading
from vae.config.constants import SKIPPED, SPLITS
from vae.config.errors import InputError
from vae.config.parameters import Parameters
from vae.config.preprocessing import Preprocessing
from vae.data import notes, sources, splits
from vae.data.decode_cache import Chunk, DecodeCache, Examined
from vae.data.images import binarised
from vae.data.item import Item
from vae.data.parallel import map_in_order

log = logging.getLogger(__name__)

PARTIAL = workspace.IMAGES / ".partial"
SECONDS_BETWEEN_LINES = 10
WAIT = 15  # seconds, for another ingest


def main(workers: int | None = None) -> None:
    """Writes `data/images/{train,valid,test}.npy` and `data/manifest.parquet`.

    Raises:
        InputError: the source cannot be read, no image is usable, or a split is empty.
        OSError: the disk is full or cannot be written to.
    """
    params = loading.load(workspace.PARAMS)
    preprocessing = Preprocessing.of(params)
    items = sources.find(params.data)
    workers = workers or limits.cores()
    log.info("ingest: %s items from data.source = %s", f"{len(items):,}", params.data.source)
    # One at a time: an ingest whose DVC was killed takes a moment to end.
    with hold(Path(".run/ingest.lock"), "an ingest", seconds=WAIT), _outputs_aside():
        cache = DecodeCache(workspace.DECODED, PARTIAL, preprocessing)
        chunks = _decode(items, cache, workers)
        examined = [learnt for chunk in chunks for learnt in chunk.examined]
        split_of = _assign(items, examined, params)
        moments = _write_arrays(chunks, split_of, preprocessing, workers)
        _write_manifest(items, examined, split_of, moments)
    if noted := _noted(examined):
        log.info("ingest: %s", noted)
    log.info(_summary(items, examined, split_of, preprocessing))


@contextmanager
def _outputs_aside() -> Iterator[None]:
    """The outputs are written in `PARTIAL`, and replace the old ones at the end, all or none."""
    shutil.rmtree(PARTIAL, ignore_errors=True)
    try:
        PARTIAL.mkdir(parents=True)
        yield
        # The manifest is removed first and restored last: arrays without a manifest are unfinished.
        workspace.MANIFEST.unlink(missing_ok=True)
        for split in SPLITS:
            (PARTIAL / f"{split}.npy").replace(workspace.images(split))
        (PARTIAL / "manifest.parquet").replace(workspace.MANIFEST)
    except OSError as error:
        error.filename = error.filename or workspace.IMAGES  # writing to a full disk names no file
        raise
    finally:
        shutil.rmtree(PARTIAL, ignore_errors=True)


def _decode(items: Sequence[Item], cache: DecodeCache, workers: int) -> list[Chunk]:
    """The first pass."""
    chunks: list[Chunk] = []
    done = 0
    try:
        with (
            bar("decoding", len(items), unit="items", seconds_between_lines=SECONDS_BETWEEN_LINES) as show,
            closing(map_in_order(cache.decode, cache.split(items), workers, stop=cache.stop.set)) as decoded,
        ):
            for chunk in decoded:
                chunks.append(chunk)
                show(done := done + len(chunk.examined))
    except KeyboardInterrupt:
        if any(cache.folder.iterdir()):
            log.info("ingest: decoded images are kept; run the same command to resume")
        raise
    if resumed := sum(len(chunk.examined) for chunk in chunks if chunk.resumed):
        log.info("ingest: resumed; an earlier run had decoded %s of %s items", f"{resumed:,}", f"{done:,}")
    return chunks


def _assign(items: Sequence[Item], examined: Sequence[Examined], params: Parameters) -> list[str | None]:
    """The split of each item, None if it cannot be used: the source's own, where the source has that split at all."""
    path = f"data.path = {params.data.path!r}"
    usable = [i for i, learnt in enumerate(examined) if learnt.reason is None]
    if not usable:
        reasons = _some_reasons(items, examined)
        count = sum(not _skipped(learnt) for learnt in examined)
        raise InputError(f"{path}: none of {count:,} files can be used as an image; {reasons}")
    own = {item.split for item in items}
    fractions = {"test": params.data.test_fraction, "valid": params.data.valid_fraction}
    assigned = splits.assign(
        [items[i].split for i in usable],
        [items[i].label for i in usable],
        [str(examined[i].sha256) for i in usable],
        {split: fraction for split, fraction in fractions.items() if split not in own},
        params.seed,
    )
    counts = Counter(assigned)
    if empty := [split for split in SPLITS if not counts[split]]:
        found = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
        raise InputError(
            f"{path} leaves no image for {' and '.join(empty)} (usable: {found}); "
            f"add images that differ. {_some_reasons(items, examined)}".rstrip()
        )
    split_of: list[str | None] = [None] * len(items)
    for i, split in zip(usable, assigned, strict=True):
        split_of[i] = split
    return split_of


def _write_arrays(
    chunks: Sequence[Chunk], split_of: Sequence[str | None], preprocessing: Preprocessing, workers: int
) -> NDArray[np.float64]:
    """The second pass: one array per split, in the source's order. Returns the moments of each item, (2, N)."""
    counts = Counter(split_of)
    rest = iter(split_of)
    batches = [(chunk, [s for s in islice(rest, len(chunk.examined)) if s is not None]) for chunk in chunks]
    found = []
    with ExitStack() as files:
        outputs = {split: files.enter_context((PARTIAL / f"{split}.npy").open("wb")) for split in SPLITS}
        for split, file in outputs.items():
            header = {"descr": "|u1", "fortran_order": False, "shape": (counts[split], *preprocessing.shape)}
            np.lib.format.write_array_header_1_0(file, header)
        finished = files.enter_context(closing(map_in_order(partial(_finish, preprocessing), batches, workers)))
        for (_, assigned), (pixels, chunk_moments) in zip(batches, finished, strict=True):
            found.append(chunk_moments)
            for split, file in outputs.items():
                file.write(pixels[np.array(assigned, str) == split].data)
    moments = np.zeros((2, len(split_of)))
    moments[:, [split is not None for split in split_of]] = np.concatenate(found, axis=1)
    return moments


def _finish(
    preprocessing: Preprocessing, batch: tuple[Chunk, Sequence[str]]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The images of a chunk as they are stored, and their moments."""
    chunk, assigned = batch
    pixels = chunk.pixels(preprocessing.shape)
    if preprocessing.binarise != "none":
        pixels = np.array(pixels)
        for row, split in enumerate(assigned):
            pixels[row] = binarised(pixels[row], preprocessing, training=split == "train")
    return pixels, _moments(pixels)


def _moments(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean and standard deviation of each image, in [0, 1]. (N, H, W, C) in, (2, N) out.

    From sums of whole numbers, so that every machine gets the same bits.
    """
    n = math.prod(pixels.shape[1:])
    flat = pixels.reshape(len(pixels), n)  # no image at all, where a chunk holds other files only
    whole = np.uint32 if n * 255**2 < 2**32 else np.uint64  # 32 bits are summed faster
    total = flat.sum(axis=1, dtype=whole).astype(np.int64)
    squares = np.square(flat, dtype=np.uint16).sum(axis=1, dtype=whole).astype(np.int64)  # 255² fits 16 bits
    return np.stack([total, np.sqrt(n * squares - total**2)]) / (255 * n)


def _write_manifest(
    items: Sequence[Item], examined: Sequence[Examined], split_of: Sequence[str | None], moments: NDArray[np.float64]
) -> None:
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    refused = np.array([split is None for split in split_of])
    rows = {split: count() for split in SPLITS}
    index = [None if split is None else next(rows[split]) for split in split_of]
    columns = {
        "path": pa.array((item.path for item in items), pa.string()),
        "split": pa.array(split_of, pa.string()),
        "label": pa.array((item.label for item in items), pa.string()),
        "index": pa.array(index, pa.int64()),
        "width": pa.array((learnt.width for learnt in examined), pa.int64()),
        "height": pa.array((learnt.height for learnt in examined), pa.int64()),
        "mode": pa.array((learnt.mode for learnt in examined), pa.string()),
        "bytes": pa.array((learnt.bytes for learnt in examined), pa.int64()),
        "sha256": pa.array((learnt.sha256 for learnt in examined), pa.string()),
        "mean": pa.array(moments[0], mask=refused),
        "std": pa.array(moments[1], mask=refused),
        "status": pa.array(("quarantined" if bad else "ok" for bad in refused), pa.string()),
        "reason": pa.array((learnt.reason for learnt in examined), pa.string()),
        "note": pa.array((learnt.note for learnt in examined), pa.string()),
    }
    pq.write_table(pa.table(columns), PARTIAL / "manifest.parquet")


def _summary(
    items: Sequence[Item], examined: Sequence[Examined], split_of: Sequence[str | None], preprocessing: Preprocessing
) -> str:
    counts = Counter(split_of)
    labels = {item.label for item, split in zip(items, split_of, strict=True) if split} - {None}
    skipped = sum(map(_skipped, examined))
    reasons = _some_reasons(items, examined)
    return (
        f"ingest: {', '.join(f'{counts[split]:,} {split}' for split in SPLITS)} images of "
        f"{'×'.join(map(str, preprocessing.shape))}; "
        f"{'1 class' if len(labels) == 1 else f'{len(labels):,} classes' if labels else 'no labels'}; "
        f"{counts[None] - skipped:,} of {len(items) - skipped:,} quarantined"
        f"{f': {reasons}' if reasons else ''}"
    )


def _noted(examined: Sequence[Examined]) -> str:
    """How many images have a note of each kind, and the first one's text; validation judges them."""
    parts = [part for learnt in examined if learnt.note for part in notes.parts(learnt.note)]
    first = dict(reversed(parts))
    counts = Counter(kind for kind, _ in parts)
    listed = "; ".join(f"{kind} {number:,} (such as {first[kind]})" for kind, number in counts.items())
    return f"images with a note in {workspace.MANIFEST}: {listed}" if listed else ""


def _some_reasons(items: Sequence[Item], examined: Sequence[Examined], most: int = 3) -> str:
    """The first few refusals; `repr`, since a file's name may hold line breaks or terminal escapes."""
    refused = [
        f"{item.path!r}: {learnt.reason}"
        for item, learnt in zip(items, examined, strict=True)
        if learnt.reason and not _skipped(learnt)
    ]
    more = f"; and {len(refused) - most:,} more" if len(refused) > most else ""
    return "; ".join(refused[:most]) + more


def _skipped(learnt: Examined) -> bool:
    return learnt.reason is not None and learnt.reason.startswith(SKIPPED)


if __name__ == "__main__":
    entry.run(main)
