"""Files that are no images that can be read here: what they are, by name or by their first bytes, and the way out."""

import re
from typing import NamedTuple

from PIL import Image


class Kind(NamedTuple):
    name: str  # for one of them
    way_out: str
    is_picture: bool = False  # it holds one picture, which is lost if it is skipped


HEAD = 512  # bytes that suffice for all questions here

HEIC = Kind(
    "HEIC photo",
    "export it as JPEG, or `pip install -e '.[heif]' --constraint constraints.txt` and "
    "`dvc repro --force --single-item ingest`",
    True,
)
_RAW = Kind("raw camera file", "export it as JPEG or TIFF", True)
_SVG = Kind("SVG drawing", "export it as PNG", True)
_LAYERED = Kind("drawing file", "export it as PNG", True)
_JXL = Kind("JPEG XL image", "convert it to PNG", True)
_FLOAT = Kind("float image", "save it with 8 or 16 bits", True)
_DICOM = Kind("DICOM file", "convert it to PNG or 16-bit TIFF", True)
_ARCHIVE = Kind("archive", "unpack it")
_NPY = Kind("NumPy array", "data.source = npy reads train.npy, and each array of an .npz once np.save has written it")
_VOLUME = Kind("medical volume", "save its slices as PNG or 16-bit TIFF, or as an array for data.source = npy")
_CONTAINER = Kind("data file", "save its images as PNG, or as an array for data.source = npy")
_TABLE = Kind("Parquet or Arrow file", "data.source = huggingface reads data sets of such files")
_VIDEO = Kind("video", "save its frames as images")
_PDF = Kind("PDF", "export its pages as PNG")
_WEB_PAGE = Kind("web page", "download it again; a server's error page may have taken its place")
_LFS = Kind("Git LFS pointer", "`git lfs pull` fetches the image")

UNREAD = Kind("image format that is not read", "convert it to PNG", True)

_BY_SUFFIX = dict.fromkeys(Image.registered_extensions(), UNREAD) | {
    suffix: kind
    for suffixes, kind in {
        ".heic .heif .hif": HEIC,
        ".3fr .arw .cr2 .cr3 .crw .dng .erf .nef .nrw .orf .pef .raf .raw .rw2 .srw .x3f": _RAW,
        ".svg .svgz": _SVG,
        ".ai .eps .kra .psb .psd .xcf": _LAYERED,
        ".jxl": _JXL,
        ".fits .img .jxr .wdp": UNREAD,
        ".exr .hdr": _FLOAT,
        ".dcm .dicom .ima": _DICOM,
        ".7z .bz2 .gz .rar .tar .tgz .xz .zip .zst": _ARCHIVE,
        ".npy .npz": _NPY,
        ".mha .mhd .nii .nii.gz .nrrd": _VOLUME,
        ".h5 .hdf .hdf5 .lmdb .mat .mdb .pickle .pkl .pt .pth .rec .tfrecord .tfrecords": _CONTAINER,
        ".arrow .parquet": _TABLE,
        ".avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv": _VIDEO,
        ".pdf": _PDF,
    }.items()
    for suffix in suffixes.split()
}

_BY_CONTENT = [
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)", HEIC),
        (rb"\xff\x0a|.{4}JXL ", _JXL),
        (rb"8BPS", _LAYERED),
        (rb".{128}DICM", _DICOM),
        (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf|.{257}ustar", _ARCHIVE),
        (rb"\x93NUMPY", _NPY),
        (rb"\x89HDF", _CONTAINER),
        (rb"PAR1|ARROW1", _TABLE),
        (rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3", _VIDEO),
        (rb"%PDF", _PDF),
        (rb"version https://git-lfs", _LFS),
        (rb"(?i)\s*(<\?xml.*)?(<!--.*)?<svg", _SVG),
        (rb"(?i)\s*<(!doctype html|html)", _WEB_PAGE),
    )
]

KINDS = {*_BY_SUFFIX.values(), *(kind for _, kind in _BY_CONTENT)}


def suffix(name: str) -> str:
    """In small letters; empty where what follows the last dot is a number or no suffix at all."""
    found = re.search(r"\.(?=\w*[a-z])\w{1,12}$", name.lower())
    return found[0] if found else ""


def by_name(name: str) -> Kind | None:
    lower = name.lower()
    return _BY_SUFFIX.get(".nii.gz" if lower.endswith(".nii.gz") else suffix(lower))


def by_content(head: bytes) -> Kind | None:
    """head: the first `HEAD` bytes, or all if there are fewer."""
    return next((kind for pattern, kind in _BY_CONTENT if pattern.match(head)), None)


def is_text(head: bytes) -> bool:
    """Without control characters but tabs and line ends, which every image that is read here has at its beginning."""
    return bool(head) and not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head)
