"""The rules for a data set: what it must satisfy before training, and what its owner should know about it.

An error makes results wrong or the training fail; a warning may be intended. A VAE needs no classes: what is wrong
with them is an error only where the linear probe decides about a model, see `probe_decides`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from vae.config.sections import Data, Promote
from vae.validation.schema import COLUMNS

# Correlation of the pixels: JPEG at quality 30 keeps 0.995; two of MNIST's ones reach 0.98.
SAME_PICTURE = 0.99
# Pixels: at 16×16, 33 of MNIST's test digits look like a training digit; at 24×24, 2.
SMALLEST_COMPARED = 24
# Of the mean squared difference of two images of a class: the digits have 0.63, one writer after another, MNIST and the
# leaf photos 0.9 to 1, frames of a video about 0.05.
NEIGHBOURS_ALIKE = 0.2
BLANK = 1 / 255  # contrast below one grey level
NARROW = 64  # of the 256 levels: all pixels of all images within so few
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


# What reading the files may have lost, or kept in vain; see `vae.data.notes`.
_READING = tuple(
    Rule("warning", *texts)
    for texts in (
        (
            "narrow_range",
            f"values that use more than {NARROW} of the 256 grey levels",
            "set data.value_range to the source's values of black and white; colour images and 8-bit files have to be "
            "saved again with the full range; nothing if they are meant to be this dark or bright",
        ),
        (
            "translucent",
            "at most half of a picture translucent, as in a cut-out",
            "if the fourth band is no transparency but, for example, near infrared, set data.alpha to ignore",
        ),
        (
            "unused_bands",
            "grey, or red, green and blue",
            "nothing if intended; else save the bands to use as grey or RGB images",
        ),
        (
            "several_pages",
            "one picture per file",
            "nothing if intended: only the first is used; else save each page or frame as a file",
        ),
        ("colour_lost", "grey images for data.channels = 1", "set data.channels to 3 unless intended"),
        (
            "grey_in_colour",
            "some colour for data.channels = 3",
            "set data.channels to 1: the same pictures with a third of the numbers",
        ),
    )
)


def probe_decides(promote: Promote, training_classes: int) -> bool:
    """Whether the probe's accuracy, which wrong classes make wrong, decides which model becomes the champion."""
    return promote.mode == "enabled" and training_classes > 1


def catalogue(data: Data, probe_decides: bool = False) -> tuple[Rule, ...]:
    """Every rule, errors first, with what these parameters allow. probe_decides: see the function of that name."""
    shape = f"uint8 (N, {data.image_size[0]}, {data.image_size[1]}, {data.channels})"
    again = "delete data/manifest.parquet and data/images, and run ingest again"
    ingest = f"ingest did not write this manifest: {again}"
    error, warning = partial(Rule, "error"), partial(Rule, "warning")
    of_probe, gate = (error, ", or set promote.mode to dry_run") if probe_decides else (warning, "")
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
        error(
            "mostly_blank",
            "at most half of a split's images blank",
            "check the files, data.channels and data.value_range",
        ),
        error(
            "too_many_bad_files",
            f"at most {data.max_bad_fraction:.2%} of the images unusable (files that are no images do not count)",
            "repair or remove the files, or raise data.max_bad_fraction",
        ),
        error("leakage", "no file in two splits", "keep the file in one split only"),
        of_probe(
            "unknown_label",
            "only classes that occur in the training split",
            "nothing if intended: a VAE needs no classes, and the linear probe leaves these images out; "
            f"to have them measured, add images of the class to training{gate}",
        ),
        of_probe(
            "label_conflict",
            "one class for each image, however many copies there are",
            f"decide for one class and remove the other copy: the linear probe cannot be right about both{gate}",
        ),
        warning("bad_file", "no image quarantined", "repair or remove the file; training continues without it"),
        warning("same_pixels_across_splits", "no image in two splits", "if both show the same picture, keep one"),
        warning(
            "near_duplicate_across_splits",
            f"no two images in different splits that correlate by {SAME_PICTURE} or more",
            "look at both: if they show the same picture, keep them in one split, or test results are too good",
        ),
        warning(
            "sequence_across_splits",
            f"neighbouring files in different splits at least {NEIGHBOURS_ALIKE} times as different as any two files",
            "nothing if neighbours only look alike; if they are a sequence, such as frames of a video, a random split "
            "puts near-copies of training images into validation and test, and their scores are too good: put whole "
            "sequences into folders (or .npy files) named train, valid and test",
        ),
        warning("duplicate_in_split", "each image once per split", "remove one: it counts twice"),
        warning("blank_image", f"contrast at least {BLANK:.4f} (one grey level)", "remove the file unless intended"),
        warning(
            "missing_label",
            "every class of the training split in each split",
            "add images of the class, or accept that its quality is not measured",
        ),
        warning(
            "similar_labels",
            "no classes whose names differ by case or blanks only",
            "give them one name if they are one class, or nothing if intended",
        ),
        warning("unlabelled", "a class for all images, or for none", "put the file into its class folder"),
        warning("few_classes", "at least two classes", "nothing if intended; no linear probe, no stratified split"),
        warning(
            "class_balance",
            f"the largest class at most {LARGEST_RATIO} times the smallest, in training",
            "add images of rare classes, or expect worse reconstructions of them",
        ),
        *_READING,
    )
