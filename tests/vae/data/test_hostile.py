"""Images, folders and arrays that somebody made to do harm: nothing runs or hangs, memory stays bounded."""

import gzip
import io
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.ingests import encoded
from helpers.project import PROJECT
from PIL import Image

from vae.config.errors import InputError
from vae.config.preprocessing import Preprocessing
from vae.config.sections import Data
from vae.data import images, sources
from vae.data.images import UnusableImage

RGB = Preprocessing(16, 16, 3)


def png(width: int, height: int, mode: str = "L") -> bytes:
    return encoded(Image.new(mode, (width, height)), compress_level=1)


def test_a_line_of_60_000_pixels_is_an_image_and_one_of_millions_is_not() -> None:
    assert images.load(png(60_000, 1), RGB).shape == images.load(png(1, 60_000), RGB).shape == (16, 16, 3)
    for long in (png(2_000_000, 1), png(1, 2_000_000)):
        with pytest.raises(UnusableImage, match="at most 100,000 per side"):
            images.load(long, RGB)


def jpeg(scans: int, progressive: bool = True, **options: Any) -> bytes:
    """Its last scan is repeated; of a progressive one, that is about 100 bytes each, and a pass over all pixels."""
    content = encoded(Image.effect_noise((64, 64), 50), "JPEG", progressive=progressive, **options)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    assert images.load(jpeg(50), RGB).shape == (16, 16, 3)
    for scans in (100, 20_000):
        with pytest.raises(UnusableImage, match="more than 100 scans"):
            images.load(jpeg(scans), RGB)


def test_a_jpeg_that_is_not_progressive_ends_with_a_scan_of_all_components() -> None:
    began, cut = time.process_time(), jpeg(0, progressive=False)
    for scans in (1, 20_000):
        with pytest.raises(UnusableImage, match="broken image"):
            images.load(jpeg(scans, progressive=False), RGB)
    assert time.process_time() - began < 2, "CPU seconds; 20,000 scans would take many"
    for end in range(cut.rindex(b"\xff\xda"), cut.rindex(b"\xff\xda") + 6):
        with pytest.raises(UnusableImage):
            images.load(cut[:end], RGB)


def test_a_scan_of_one_component_is_not_the_only_one_whatever_follows() -> None:
    """A sequential JPEG of 4:4:4 colours; the first scan has one component, and a comment begins like one of three."""
    content = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG", subsampling=0)
    start = content.rindex(b"\xff\xda")
    one = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"  # and no data, which a decoder takes for grey
    crafted = content[:start] + one + b"\xff\xfe\x00\x03\x03" + 400 * one + b"\xff\xd9"
    with pytest.raises(UnusableImage, match="more than 100 scans"):
        images.load(crafted, RGB)


def test_only_the_scans_of_the_image_itself_count() -> None:
    """A film behind a phone's photo, or a thumbnail before it, holds any bytes."""
    plain = jpeg(0)
    assert np.array_equal(images.load(plain + b"\xff\xda\x00\x02" * 5000, RGB), images.load(plain, RGB))
    assert images.load(jpeg(0, comment=b"\xff\xda\x00\x02" * 5000), RGB).shape == (16, 16, 3)
    assert images.load(jpeg(0, restart_marker_blocks=1), RGB).shape == (16, 16, 3)


def test_large_images_are_in_memory_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(
        png(5001, 5001, "RGBA")
    )  # 25 million pixels: 400 MB once decoded and flattened
    program = """
import re, sys, threading
from pathlib import Path
from vae.data.images import Preprocessing, load
content, rule = Path(sys.argv[1]).read_bytes(), Preprocessing(16, 16, 3)
threads = [threading.Thread(target=load, args=(content, rule)) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
# getrusage's peak is that of the process that started this one, where that was larger
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 2**10)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "large.png")]
    assert 300 < int(subprocess.check_output(command, cwd=PROJECT)) < 800, "MB; all four at once take 1,600"


def test_a_file_that_is_closed_to_us_is_quarantined(tmp_path: Path) -> None:
    closed = tmp_path / "closed.png"
    closed.write_bytes(png(8, 8))
    closed.chmod(0)
    tmp_path.chmod(0o755)
    folder = os.open(tmp_path, os.O_RDONLY)  # the folders above are the test runner's own, and closed too
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        with pytest.raises(UnusableImage, match="cannot be read: Permission denied"):
            images.read_file(f"/proc/self/fd/{folder}/closed.png")
    finally:
        os.seteuid(user)
        os.close(folder)


def npy(header: bytes, body: bytes = bytes(256)) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def header(shape: str) -> bytes:
    return f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()


ZIPPED = io.BytesIO()
np.savez(ZIPPED, np.zeros((4, 8, 8), np.uint8))
ARRAYS = {
    "less than nothing": npy(header("(-4, 8, 8)")),
    "more than a machine has": npy(header("(" + "9" * 400 + ", 8, 8)")),
    "brackets": npy(b"(" * 9000),
    "minus signs": npy(b"-" * 9000 + b"1"),
    "code": npy(b"__import__('os').system('touch it_ran')"),
    "a zip of arrays": ZIPPED.getvalue(),
    "a pickle": b"cos\nsystem\n(S'touch it_ran'\ntR.",
    "a header of 4 GB": b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(100),
}


def refusal(place: Path, source: str) -> str:
    with pytest.raises(InputError) as error:
        sources.find(Data(source=source, path=str(place)))
    return str(error.value)


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS)
def test_a_harmful_array_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.npy").write_bytes(content)
    assert "not a usable .npy file" in refusal(tmp_path, "npy")
    assert [path.name for path in tmp_path.iterdir()] == ["train.npy"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("name", "source"),
    [("train.npy", "npy"), ("train-images-idx3-ubyte", "idx"), ("train-images-idx3-ubyte.gz", "idx")],
)
def test_a_pipe_for_an_array_is_not_waited_for(tmp_path: Path, name: str, source: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "not a regular file" in refusal(tmp_path, source)


def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    idx = bytes([0, 0, 8, 3]) + struct.pack(">III", 4, 8, 8) + bytes(50_000_000)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx, 1))
    assert "holds 273 bytes where its header (4, 8, 8) promises 272" in refusal(tmp_path, "idx")


def test_idx_images_beyond_all_measure_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "train-images-idx3-ubyte").open("wb") as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">III", 1, 20_000, 20_000))
        file.truncate(16 + 20_000**2)
    assert "too large" in refusal(tmp_path, "idx")
