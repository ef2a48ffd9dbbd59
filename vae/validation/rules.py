"""The rules for a data set: what it must satisfy before training, and what its owner should know about it.

An error makes results wrong or the training fail; a warning may be intended.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from vae.config.parameters import Data
from vae.validation.schema import COLUMNS

# Correlation of the pixels: JPEG at quality 30 keeps 0.995; two of MNIST's ones reach 0.98.
SAME_PICTURE = 0.99
# Pixels: at 16×16, 33 of MNIST's test digits look like a training digit; at 24×24, 2.
SMALLEST_COMPARED = 24
BLANK = 1 / 255  # contrast below one grey level
LARGEST_RATIO = 10  # of the largest class to the smallest
STATISTICS_TOLERANCE = 1e-4  # the manifest's may have been summed in single precision


@dataclass(frozen=True)
class Rule:
    severity: Literal["error", "warning"]
    name: str
    allowed: str
    what_to_do: str


@dataclass(frozen=True)
class Finding:
    """One violation of a rule; `file` and `split` are empty where it concerns no single one."""

    rule: str
    value: str
    file: str = ""
    split: str = ""


def catalogue(data: Data) -> tuple[Rule, ...]:
    """Every rule, errors first, with what these parameters allow."""
    shape = f"uint8 (N, {data.image_size[0]}, {data.image_size[1]}, {data.channels})"
    again = "delete data/manifest.parquet and data/images, and run ingest again"
    ingest = f"ingest did not write this manifest: {again}"
    error, warning = partial(Rule, "error"), partial(Rule, "warning")
    return (
        error("manifest_columns", f"exactly the columns {', '.join(COLUMNS)}, of their types", ingest),
        error("path_unique", "one row per file", ingest),
        error("known_split", "train, valid, test or empty", ingest),
        error("known_status", "ok or quarantined", ingest),
        error("size_range", "width and height at least 1, bytes at least 0", ingest),
        error("sha256_format", "64 hexadecimal digits", ingest),
        error("statistics_range", "mean from 0 to 1, std from 0 to 0.5", ingest),
        error("complete_row", "split, index and statistics for a usable file, a reason for a bad one", ingest),
        error("index_is_a_row", "a row of the split's array, used once", ingest),
        error("array_file", "a readable .npy file with at least one image for each split", again),
        error("array_shape", f"{shape}, as data.image_size and data.channels say", again),
        error("array_rows", "as many usable files in the manifest as images in the array", again),
        error("array_statistics", f"mean and std within {STATISTICS_TOLERANCE} of the manifest's", again),
        error("binarised", f"only 0 and 255, as data.binarise = {data.binarise} says", again),
        error("mostly_blank", "at most half of a split's images blank", "check the files and data.channels"),
        error(
            "too_many_bad_files",
            f"at most {data.max_bad_fraction:.2%} of the images unusable (files that are no images do not count)",
            "repair or remove the files, or raise data.max_bad_fraction",
        ),
        error("unknown_label", "only classes that occur in the training split", "add images there or remove the class"),
        error("leakage", "no file in two splits", "keep the file in one split only"),
        warning("bad_file", "no image quarantined", "repair or remove the file; training continues without it"),
        warning("same_pixels_across_splits", "no image in two splits", "if both show the same picture, keep one"),
        warning(
            "near_duplicate_across_splits",
            f"no two images in different splits that correlate by {SAME_PICTURE} or more",
            "look at both: if they show the same picture, keep them in one split, or test results are too good",
        ),
        warning("duplicate_in_split", "each image once per split", "remove one: it counts twice"),
        warning("blank_image", f"contrast at least {BLANK:.4f} (one grey level)", "remove the file unless intended"),
        warning(
            "missing_label",
            "every class of the training split in each split",
            "add images of the class, or accept that its quality is not measured",
        ),
        warning("unlabelled", "a class for all images, or for none", "put the file into its class folder"),
        warning("few_classes", "at least two classes", "nothing if intended; no linear probe, no stratified split"),
        warning(
            "class_balance",
            f"the largest class at most {LARGEST_RATIO} times the smallest, in training",
            "add images of rare classes, or expect worse reconstructions of them",
        ),
    )
