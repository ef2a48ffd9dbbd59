"""Applies every rule to the manifest and the arrays, and lists all that break one."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vae.config.constants import SKIPPED, SPLITS
from vae.config.sections import Data
from vae.data import notes
from vae.validation import rules, schema
from vae.validation.fingerprints import Fingerprints, fingerprint, near_duplicates
from vae.validation.rules import Finding
from vae.validation.sequences import separated_neighbours

Images = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Inspection:
    findings: list[Finding]  # in the order of the rules, then of split, file and value
    skipped: dict[str, str]  # rule → why it was not checked, or not everywhere
    prints: dict[str, Fingerprints]  # of each split whose array is sound


def classes_in_training(manifest: pd.DataFrame) -> int:
    """Of any manifest, also a broken one."""
    known = manifest.reindex(columns=["status", "split", "label"])
    return int(known["label"][(known["status"] == "ok") & (known["split"] == "train")].nunique())


def inspect(manifest: pd.DataFrame, arrays: Mapping[str, NDArray | str], data: Data) -> Inspection:
    """Checks every rule on everything that is sound enough.

    manifest: one row per source file. arrays: for each split uint8 (N, H, W, C), or the reason why there is none.
    """
    findings = list(_arrays(arrays, data))
    unsound = [split for split in SPLITS if any(finding.split == split for finding in findings)]
    images = {s: array for s, array in arrays.items() if s not in unsound and not isinstance(array, str)}
    prints = {split: fingerprint(array) for split, array in images.items()}
    manifest = schema.typed(manifest)
    faults = schema.column_faults(manifest)
    if faults:
        findings += [Finding("manifest_columns", fault) for fault in faults]
        manifest = schema.EMPTY
    else:
        findings += _manifest(manifest, images, data)
    if prints:
        findings += _pixels(manifest, images, prints, data)
    place = {rule.name: number for number, rule in enumerate(rules.catalogue(data))}
    findings.sort(key=lambda f: (place[f.rule], _PLACE.get(f.split, len(SPLITS)), f.file, f.value))
    return Inspection(findings, _skipped(data, unsound, bool(faults)), prints)


CLASSES_NAMED = 10  # of a split, one finding each

_PLACE = {split: number for number, split in enumerate(SPLITS)}

_OF_PIXELS = {"binarised", "mostly_blank", "same_pixels_across_splits", "near_duplicate_across_splits", "blank_image"}
_OF_PIXELS |= {"narrow_range", "grey_in_colour"}
_WITH_PIXELS = _OF_PIXELS | {"array_rows", "array_statistics"}  # need a valid array for each split
_WITH_PIXELS |= {"sequence_across_splits"}
_WITHOUT_MANIFEST = _OF_PIXELS | {
    "manifest_columns",
    "array_file",
    "array_shape",
    "duplicate_in_split",
    "label_conflict",
}


def _skipped(data: Data, unsound: list[str], no_manifest: bool) -> dict[str, str]:
    skipped: dict[str, str] = {}
    if unsound:
        skipped |= dict.fromkeys(_WITH_PIXELS, f"no valid array for {', '.join(unsound)}")
    if no_manifest:
        others = {rule.name for rule in rules.catalogue(data)} - _WITHOUT_MANIFEST
        skipped |= dict.fromkeys(others, "the manifest's columns are broken")
    if data.binarise not in ("threshold", "static"):
        skipped["binarised"] = f"does not apply: data.binarise = {data.binarise}"
    if min(data.image_size) < (side := rules.SMALLEST_COMPARED):
        skipped["near_duplicate_across_splits"] = f"below {side}×{side} pixels, pictures look alike by chance"
    return skipped


def _manifest(manifest: pd.DataFrame, images: Images, data: Data) -> Iterator[Finding]:
    lengths = {split: len(array) for split, array in images.items()}
    for rule, row, value in schema.failures(manifest, lengths):
        yield Finding(rule, value, _text(manifest.at[row, "path"]), _text(manifest.at[row, "split"]))
    manifest = manifest.rename(columns={"path": "file"})
    ok = manifest[manifest["status"] == "ok"]
    yield from _row_counts(ok, images)
    yield from _bad_files(manifest, data)
    yield from _labels(ok)
    yield from _same_files(ok)
    yield from _notes(ok)


def _pixels(
    manifest: pd.DataFrame, images: Images, prints: Mapping[str, Fingerprints], data: Data
) -> Iterator[Finding]:
    rows = _images(prints, manifest)
    yield from _statistics(rows)
    yield from _blank(rows)
    yield from _same_pixels(rows)
    yield from _sequence(rows, images)
    yield from _range(manifest, prints)
    if data.channels == 3 and rows["grey"].all():
        yield Finding("grey_in_colour", f"all {len(rows):,} images are grey")
    if data.binarise in ("threshold", "static"):
        grey = rows[~rows["binary"]]
        yield from _each("binarised", grey, ["values other than 0 and 255"] * len(grey))
    if min(data.image_size) >= rules.SMALLEST_COMPARED:
        yield from _near_duplicates(rows, images, prints)


def _each(rule: str, rows: pd.DataFrame, values: Iterable[str]) -> Iterator[Finding]:
    """One finding per row; rows: the columns `file` and `split`."""
    for value, file, split in zip(values, rows["file"], rows["split"], strict=True):
        yield Finding(rule, value, _text(file), _text(split))


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _arrays(arrays: Mapping[str, NDArray | str], data: Data) -> Iterator[Finding]:
    for split in SPLITS:
        array, file = arrays[split], f"{split}.npy"
        if isinstance(array, str):
            yield Finding("array_file", array, file, split)
        elif array.dtype != np.uint8 or array.shape[1:] != (*data.image_size, data.channels):
            yield Finding("array_shape", f"{array.dtype} {array.shape}", file, split)
        elif len(array) == 0:
            yield Finding("array_file", "no images", file, split)


def _row_counts(ok: pd.DataFrame, images: Images) -> Iterator[Finding]:
    for split, array in images.items():
        if (rows := int((ok["split"] == split).sum())) != len(array):
            value = f"{rows} usable files, {len(array)} images"
            yield Finding("array_rows", value, f"{split}.npy", split)


def _bad_files(manifest: pd.DataFrame, data: Data) -> Iterator[Finding]:
    """Of the files that claim to be images; the others are in the manifest too, but nothing is wrong with them."""
    claims = manifest[~manifest["reason"].str.startswith(SKIPPED, na=False)]
    bad = claims[claims["status"] == "quarantined"]
    share = len(bad) / max(1, len(claims))
    rule = "too_many_bad_files" if share > data.max_bad_fraction else "bad_file"
    return _each(rule, bad, bad["reason"].fillna("no reason given"))


def _labels(ok: pd.DataFrame) -> Iterator[Finding]:
    classes = {s: ok["label"][ok["split"] == s].value_counts().sort_index() for s in SPLITS}
    every = sorted(ok["label"].dropna().unique())
    if len(every) < 2:
        yield Finding("few_classes", f"one class: {every[0]}" if every else "no classes")
    if every:
        unlabelled = ok[ok["label"].isna()]
        yield from _each("unlabelled", unlabelled, ["no class"] * len(unlabelled))
    yield from _similar(ok["label"].dropna())
    train, total = classes["train"], ok["label"].value_counts()
    for split in ("valid", "test"):
        here = classes[split]
        yield from _few("unknown_label", split, [
            f"{label}: {_images_of(here[label])} here, 0 in training"
            + f" ({total[label]} in all, too few for every split to have one)" * bool(total[label] < len(SPLITS))
            for label in here.index.difference(train.index)
        ])  # fmt: skip
        yield from _few("missing_label", split, [
            f"{label}: 0 images here, {train[label]} in training" for label in train.index.difference(here.index)
        ])  # fmt: skip
    if len(train) > 1 and train.max() > rules.LARGEST_RATIO * train.min():
        value = f"{train.idxmax()}: {train.max()}, {train.idxmin()}: {train.min()}"
        yield Finding("class_balance", value, split="train")


def _few(rule: str, split: str, values: list[str]) -> Iterator[Finding]:
    """One finding for each class; in a single one where most of a thousand classes have one image."""
    if len(values) > CLASSES_NAMED:
        values = [f"{len(values):,} classes, such as {'; '.join(values[:3])}"]
    for value in values:
        yield Finding(rule, value, split=split)


def _images_of(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _similar(labels: pd.Series) -> Iterator[Finding]:
    """labels: of the usable images. Names that a case-blind file system or a person takes for one another."""
    counts = labels.value_counts().sort_index()
    plain = [" ".join(unicodedata.normalize("NFKC", name).casefold().split()) for name in counts.index]
    for _, group in counts.groupby(plain):
        if len(group) > 1:
            yield Finding("similar_labels", ", ".join(f"{name!r}: {_images_of(n)}" for name, n in group.items()))


def _same_files(ok: pd.DataFrame) -> Iterator[Finding]:
    rows = ok.assign(place=ok["split"].map(_PLACE)).sort_values(["place", "file"])
    return _repeats("leakage", rows, "sha256", "same bytes as")


def _same_pixels(rows: pd.DataFrame) -> Iterator[Finding]:
    """Apart from equal files, which `_same_files` finds, and blank images, which have their own rule."""
    known = rows["sha256"].notna() & rows.duplicated("sha256")
    rows = rows[~known & (rows["contrast"] >= rules.BLANK)]
    return _repeats("same_pixels_across_splits", rows, "pixels", "same pixels as")


def _repeats(across: str, rows: pd.DataFrame, key: str, what: str) -> Iterator[Finding]:
    """Rows, ordered by split, whose key occurs in an earlier split (`across`) or earlier in their own.

    A copy with another label is a conflict, and no mere copy.
    """
    rows = rows[rows[key].notna() & rows["split"].isin(SPLITS)]
    labelled = rows[rows["label"].notna()]
    one = labelled.groupby(key)[["file", "label"]].transform("first")
    other = labelled["label"] != one["label"]
    pairs = zip(labelled["label"][other], one["file"][other], one["label"][other], strict=True)
    values = [f"class {label}, but {what} {file} of class {first}" for label, file, first in pairs]
    yield from _each("label_conflict", labelled[other], values)
    first = rows.groupby(key)[["file", "split"]].transform("first")
    leaked = rows["split"] != first["split"]
    places = zip(first["split"][leaked], first["file"][leaked], strict=True)
    yield from _each(across, rows[leaked], [f"{what} {split}: {file}" for split, file in places])
    again = rows.duplicated([key, "split"]) & ~rows.index.isin(labelled.index[other])
    here = rows.groupby([key, "split"])["file"].transform("first")[again]
    yield from _each("duplicate_in_split", rows[again], [f"{what} {file}" for file in here])


def _notes(ok: pd.DataFrame) -> Iterator[Finding]:
    """What ingest noted of an image. Of colour there is one finding, since one parameter decides for all images."""
    found = _noted(ok)
    for kind, rule in {"pages": "several_pages", "bands": "unused_bands", "alpha": "translucent"}.items():
        rows = found[found["kind"] == kind]
        yield from _each(rule, rows, rows["text"])
    if coloured := int((found["kind"] == "colour").sum()):
        yield Finding(
            "colour_lost", f"{coloured:,} of {len(ok):,} images have colour; data.channels = 1 makes them grey"
        )


def _noted(ok: pd.DataFrame) -> pd.DataFrame:
    """One row for each note, with its `kind` and `text`."""
    rows = ok[ok["note"].notna()]
    rows = rows.assign(part=rows["note"].map(notes.parts)).explode("part")
    return rows.assign(kind=[kind for kind, _ in rows["part"]], text=[text for _, text in rows["part"]])


def _range(manifest: pd.DataFrame, prints: Mapping[str, Fingerprints]) -> Iterator[Finding]:
    """Of all images together: one dark photo is no sign, the same narrow range in every image is."""
    noted = _noted(manifest[manifest["status"] == "ok"])
    texts = " ".join(noted["text"][noted["kind"] == "values"])
    if ranges := [[int(n) for n in found] for found in re.findall(r"from (\d+) to (\d+) of (\d+)", texts)]:
        low, high, most = min(low for low, _, _ in ranges), max(high for _, high, _ in ranges), ranges[0][2]
        if (levels := _levels(255 * low / most, 255 * high / most)) <= rules.NARROW:
            bits = next((bits for bits in (10, 12, 14) if high < 2**bits), None)
            proposed = f"[0, {2**bits - 1}] if they have {bits} bits" if bits else f"[{low}, {high}], for example"
            yield Finding(
                "narrow_range",
                f"{len(ranges):,} images of 16 bits have values from {low} to {high}, {levels} of 256 grey levels; "
                f"data.value_range: {proposed}",
            )
            return
    low, high = (int(min(p.low.min() for p in prints.values())), int(max(p.high.max() for p in prints.values())))
    if (levels := _levels(low, high)) <= rules.NARROW:
        count = sum(len(print_.low) for print_ in prints.values())
        yield Finding("narrow_range", f"all {count:,} images lie between {low} and {high} of 255: {levels} grey levels")


def _levels(low: float, high: float) -> int:
    """How many grey levels there are between two, both included."""
    return round(high) - round(low) + 1


def _images(prints: Mapping[str, Fingerprints], manifest: pd.DataFrame) -> pd.DataFrame:
    """One row per image, by split and row of its array, joined with the manifest's."""
    images = pd.concat(
        pd.DataFrame(vars(print_)).assign(split=split, index=range(len(print_.mean)))
        for split, print_ in prints.items()
    )
    ok = manifest[(manifest["status"] == "ok") & manifest["index"].notna()]
    source = ok.drop_duplicates(["split", "index"], keep=False).astype({"index": "int64"})
    source = source.assign(place=source.index)  # the manifest has the source's order
    source = source.set_index(["split", "index"])[["path", "label", "sha256", "mean", "std", "place"]]
    source = source.set_axis(["file", "label", "sha256", "manifest_mean", "manifest_std", "place"], axis="columns")
    images = images.join(source, on=["split", "index"]).reset_index(drop=True)
    unknown = images["split"] + ".npy, row " + images["index"].astype("str")
    return images.assign(file=images["file"].fillna(unknown))


def _statistics(rows: pd.DataFrame) -> Iterator[Finding]:
    for name in ("mean", "std"):
        off = rows[(rows[name] - rows[f"manifest_{name}"]).abs() > rules.STATISTICS_TOLERANCE]
        pairs = zip(off[name], off[f"manifest_{name}"], strict=True)
        values = [f"{name} {array:.5f}, in the manifest {manifest:.5f}" for array, manifest in pairs]
        yield from _each("array_statistics", off, values)


def _blank(rows: pd.DataFrame) -> Iterator[Finding]:
    blank = rows["contrast"] < rules.BLANK
    yield from _each("blank_image", rows[blank], [f"contrast {c:.5f}" for c in rows["contrast"][blank]])
    for split, share in blank.groupby(rows["split"]).mean().items():
        if share > 0.5:
            yield Finding("mostly_blank", f"{share:.1%} of the images", split=str(split))


def _sequence(rows: pd.DataFrame, images: Images) -> Iterator[Finding]:
    found = separated_neighbours(rows.dropna(subset="place").sort_values("place"), images)
    if found is not None and found.ratio < rules.NEIGHBOURS_ALIKE:
        yield Finding(
            "sequence_across_splits",
            f"neighbouring files differ by {found.ratio:.2g} of what any two differ by (mean squared difference), and "
            f"{found.pairs:,} neighbours are on different sides of the split",
        )


def _near_duplicates(rows: pd.DataFrame, images: Images, prints: Mapping[str, Fingerprints]) -> Iterator[Finding]:
    files = {split: part["file"].to_numpy() for split, part in rows.groupby("split")}
    for later, earlier in (("valid", "train"), ("test", "train"), ("test", "valid")):
        if later in images and earlier in images:
            pairs = near_duplicates(
                images[later], prints[later], images[earlier], prints[earlier], correlation=rules.SAME_PICTURE
            )
            for row, other, r in zip(*pairs, strict=True):
                value = f"correlates by {r:.3f} with {earlier}: {files[earlier][other]}"
                yield Finding("near_duplicate_across_splits", value, files[later][row], later)
