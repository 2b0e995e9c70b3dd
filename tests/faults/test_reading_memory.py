"""The memory of a picture just below Pillow's limit, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SIDE = 12_000
SCRIPT = r"""
import re, sys
from pathlib import Path
from resim.views.decode import BadImageError, Photo



def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


before = peak()
try:
    what = Photo(sys.argv[1], max_pixels=int(sys.argv[2])).pixels().shape
except BadImageError as error:
    what = error
print((peak() - before) // 1024, what, sep="|")
"""


def peak(path: Path, max_pixels: int) -> tuple[int, str]:
    """MB that decoding takes at its peak, and what it gives."""
    command = [sys.executable, "-c", SCRIPT, str(path), str(max_pixels)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    megabytes, _, what = done.stdout.strip().partition("|")
    return int(megabytes), what


@pytest.mark.skipif(sys.platform != "linux", reason="not verified: the peak memory of a large picture")
def test_the_memory_of_a_large_picture_is_bounded(tmp_path: Path) -> None:
    picture = Image.new("RGB", (SIDE, SIDE), (90, 80, 70))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg")
    picture.save(tmp_path / "progressive.jpg", progressive=True)
    whole, what = peak(tmp_path / "a.png", 178_956_970)
    assert what == f"({SIDE}, {SIDE}, 3)"
    assert whole > 800  # 4 bytes a pixel in Pillow, 3 in the array
    refused, what = peak(tmp_path / "a.png", 20_000_000)
    assert what == f"{SIDE} x {SIDE} px are more than --max-pixels 20,000,000 allows"
    assert refused < 50
    drafted, what = peak(tmp_path / "a.jpg", 20_000_000)
    assert what == f"({SIDE // 4}, {SIDE // 4}, 3)"
    assert drafted < 20_000_000 * 32 // 2**20
    refused, what = peak(tmp_path / "progressive.jpg", 20_000_000)
    assert "px are more than" in what
    assert refused < 50
    drafted, what = peak(tmp_path / "progressive.jpg", 40_000_000)
    assert what == f"({SIDE // 2}, {SIDE // 2}, 3)"
    assert drafted < 40_000_000 * 32 // 2**20
