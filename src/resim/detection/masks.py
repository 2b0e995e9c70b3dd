"""Segmentations to pixels: polygons and both kinds of RLE, by pycocotools.

Shapes: n objects, H, W the height and width of their image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as rle

from resim.detection.records import Record, Segmentation


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE; the polygons of one object are united."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, height, width))  # type: ignore[arg-type]
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, height, width)  # type: ignore[arg-type, return-value]
    return segmentation


def decode_masks(record: Record) -> np.ndarray:
    """(n, H, W) bool; all False for an object without a segmentation (`Record.has_mask` tells)."""
    masks = np.zeros((len(record), record.height, record.width), dtype=bool)
    for index, segmentation in enumerate(record.masks or ()):
        if segmentation is not None:
            masks[index] = rle.decode(to_rle(segmentation, record.height, record.width))  # type: ignore[arg-type]
    return masks


def box_of(segmentation: Segmentation, height: int, width: int) -> tuple[float, float, float, float]:
    """The smallest box (x0, y0, x1, y1) around a segmentation."""
    if isinstance(segmentation, list):
        x = [value for polygon in segmentation for value in polygon[0::2]]
        y = [value for polygon in segmentation for value in polygon[1::2]]
        return min(x), min(y), max(x), max(y)
    left, top, across, down = np.asarray(rle.toBbox(to_rle(segmentation, height, width))).tolist()  # type: ignore[arg-type]
    return left, top, left + across, top + down


def area_of(segmentation: Segmentation, height: int, width: int) -> float:
    """Pixels of a segmentation."""
    return float(rle.area(to_rle(segmentation, height, width)))  # type: ignore[arg-type]
