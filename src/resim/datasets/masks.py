"""Segmentations as pixels: polygons and both kinds of RLE, decoded by pycocotools.

Shapes: n objects; H, W height and width of the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as rle

from resim.datasets.annotation_values import finite_numbers
from resim.datasets.records import Record, Segmentation


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a segmentation; for polygons, of their union."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))  # type: ignore[arg-type]
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)  # type: ignore[arg-type, return-value]
    return segmentation


def decode_masks(record: Record) -> np.ndarray:
    """(n, H, W) bool; all False for an object without a segmentation, as in `Record.has_mask`."""
    masks = np.zeros((len(record), record.height, record.width), dtype=bool)
    for index, segmentation in enumerate(record.masks or ()):
        if segmentation is not None:
            masks[index] = rle.decode(to_rle(segmentation, record.height, record.width))  # type: ignore[arg-type]
    return masks


def mask_box(segmentation: Segmentation, height: int, width: int) -> tuple[float, float, float, float]:
    """The smallest box (x0, y0, x1, y1) around a segmentation."""
    if isinstance(segmentation, list):
        x = [value for polygon in segmentation for value in polygon[0::2]]
        y = [value for polygon in segmentation for value in polygon[1::2]]
        return min(x), min(y), max(x), max(y)
    left, top, across, down = np.asarray(rle.toBbox(to_rle(segmentation, height, width))).tolist()  # type: ignore[arg-type]
    return left, top, left + across, top + down


def mask_area(segmentation: Segmentation, height: int, width: int) -> float:
    """Number of pixels of a segmentation."""
    return float(rle.area(to_rle(segmentation, height, width)))  # type: ignore[arg-type]


def has_pixels(segmentation: dict[str, Any]) -> bool:
    """Whether a valid RLE has any pixel of its object."""
    if isinstance(segmentation["counts"], list):
        return any(segmentation["counts"][1::2])  # runs of background and object alternate
    return bool(rle.area(segmentation))  # type: ignore[arg-type]


def rle_fault(segmentation: dict[str, Any], width: int, height: int) -> str:
    """Why an RLE cannot be decoded, empty if it can. pycocotools does not check this and would access other memory."""
    counts = segmentation.get("counts")
    if finite_numbers(segmentation.get("size"), 2) != [height, width]:
        return f"RLE of size {segmentation.get('size')} instead of {[height, width]}"
    if isinstance(counts, str | bytes):
        counts = _run_lengths(counts.encode() if isinstance(counts, str) else counts)
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        return "RLE whose counts are not run lengths"
    return "" if sum(counts) == height * width else f"RLE of {sum(counts)} pixels instead of {height * width}"


def _run_lengths(text: bytes) -> list[int] | None:
    """The counts of compressed RLE: 5 bits a letter; from the fourth on, the difference to the one two before.

    Source: pycocotools, `rleFrString`.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = letter - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts if shift == 0 else None
