"""Limits of the memory and the time that one picture takes, checked before its pixels are decoded."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from PIL import Image

MAX_PIXELS = 178_956_970
"""Pillow's limit against decompression bombs: it refuses larger images."""
LEAST_MAX_PIXELS = 2**24
"""The least limit that `default_max_pixels` gives: photographs of 16 megapixels are decoded on any machine."""
_BYTES_A_PIXEL = 32  # of the worst formats, while they are converted to 8-bit RGB
_MAX_SCANS = 500  # of a JPEG; ten are usual
_MAX_SCANNED = 4_000_000_000  # pixels times scans: a scan passes over all pixels, in some 5 ns each
_MAX_PARTS = 100_000  # tiles or strips of a TIFF
_PART_TAGS = (273, 324)  # the positions of a TIFF's strips, and of its tiles
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SCAN = b"\xff\xda"


def default_max_pixels(readers: int) -> int:
    """The number of pixels of the largest image that is decoded at full size, if no limit is set.

    Half of the memory of the machine, or of its container, is divided among the processes that decode, at 32 bytes a
    pixel; the result is at least 16,777,216 and at most Pillow's limit.

    Args:
        readers: processes on this machine that decode.
    """
    share = _memory() // 2 // max(1, readers) // _BYTES_A_PIXEL
    return min(max(share, LEAST_MAX_PIXELS), MAX_PIXELS)


def _memory() -> int:
    """Bytes of memory that the machine, or a container's limit, gives."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30
    for name in _CGROUPS:
        try:
            memory = min(memory, int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return memory


def parts_fault(file: BinaryIO) -> str:
    """Why the number of tiles or strips of a TIFF cannot be decoded in a reasonable time; empty for any other file.

    The number stands in the first directory, so that nothing is decoded. The position in the file is kept.
    """
    start = file.tell()
    file.seek(0)
    try:
        return _parts_fault(file)
    except struct.error:  # cut off: the decoder says so
        return ""
    finally:
        file.seek(start)


def _parts_fault(file: BinaryIO) -> str:
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return ""
    version = struct.unpack(f"{order}H", head[2:4])[0]
    if version == 42:
        where, count_form, entry_form = struct.unpack(f"{order}I", head[4:8])[0], "H", "HHI4x"
    elif version == 43:  # BigTIFF
        where, count_form, entry_form = struct.unpack(f"{order}Q", head[8:16])[0], "Q", "HHQ8x"
    else:
        return ""
    if where >= 2**63:
        return ""
    file.seek(where)
    count = struct.unpack(f"{order}{count_form}", file.read(struct.calcsize(f"{order}{count_form}")))[0]
    size = struct.calcsize(f"{order}{entry_form}")
    entries = file.read(min(count, 4096) * size)
    for tag, _, number in struct.iter_unpack(f"{order}{entry_form}", entries[: len(entries) // size * size]):
        if tag in _PART_TAGS and number > _MAX_PARTS:
            return f"a TIFF of {number:,} tiles or strips, of which {_MAX_PARTS:,} are read: save it with larger ones"
    return ""


def scans_fault(image: Image.Image, file: BinaryIO) -> str:
    """Why a JPEG that has just been opened has more scans than can be decoded in a reasonable time; empty if not.

    A JPEG with one scan is recognised by its header; the scans of others are counted by their markers, which do not
    occur in the compressed data.
    """
    if not image.info.get("progressive") and _first_scan_has_all(image, file):
        return ""
    scans, allowed = 0, min(_MAX_SCANS, _MAX_SCANNED // max(1, image.width * image.height))
    file.seek(0)
    last = b""
    while scans <= allowed and (block := file.read(2**20)):
        scans += (last + block).count(_SCAN)
        last = block[-1:] if block.endswith(_SCAN[:1]) else b""
    if scans <= allowed:
        return ""
    size = f"{image.width} x {image.height} px"
    return f"a JPEG of more than {allowed} scans at {size}, which takes too long to decode: save it again with one scan"


def _first_scan_has_all(image: Image.Image, file: BinaryIO) -> bool:
    """Whether the first scan, behind whose header Pillow has stopped, has all components."""
    components = len(image.getbands())
    place = file.tell() - 8 - 2 * components
    if place < 0:
        return False
    file.seek(place)
    marker = file.read(5)  # the marker, the length of the header, the number of components
    return len(marker) == 5 and marker[:2] == _SCAN and marker[4] == components


def size_fault(width: int, height: int, max_pixels: int) -> str:
    """Why an image of this size is not decoded; empty if it is small enough."""
    if width * height <= max_pixels:
        return ""
    return f"{width} x {height} px are more than --max-pixels {max_pixels:,} allows"
