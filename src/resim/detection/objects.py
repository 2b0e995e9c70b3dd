"""From objects as they were annotated to the arrays of a record; every layout goes through here, and is checked here.

Shapes: n objects, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from resim.detection.masks import area_of, box_of, rle_fault
from resim.detection.records import Record, Segmentation
from resim.detection.repair import OVERHANG, Repairs, finite

FARTHEST = 10  # times the image's longer side: pycocotools' memory grows with the length of an outline


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """An object as a file says it, nothing checked but its category.

    Attributes:
        annotation_id: to name it in messages and results.
        label: from 1.
        box: (x0, y0, x1, y1) in pixels; None: take it from the segmentation.
        segmentation: polygons or RLE; None or empty: no mask.
        keypoints: 3 K numbers, or None.
        crowd: a region of many objects.
        difficult: not to be counted.
        area: in pixels; None: of the segmentation, or else of the box.
    """

    annotation_id: int
    label: int
    box: Any
    segmentation: Any = None
    keypoints: Any = None
    crowd: bool = False
    difficult: bool = False
    area: Any = None


def make_record(
    objects: Sequence[Annotated],
    *,
    file: str,
    image: str,
    image_id: int | str,
    width: int,
    height: int,
    with_masks: bool,
    num_keypoints: int = 0,
    repairs: Repairs,
) -> Record:
    """The sound objects of an image as a record; what is repaired or dropped is noted in `repairs`."""
    kept: list[Annotated] = []
    boxes: list[list[float]] = []
    masks: list[Segmentation | None] = []
    points: list[list[float]] = []
    areas: list[float] = []
    for thing in objects:
        note = partial(repairs.add, file=file, image_id=image_id, annotation_id=thing.annotation_id)
        mask = _sound_mask(thing.segmentation, width, height, note)
        raw = box_of(mask, height, width) if thing.box is None and mask is not None else thing.box
        box = finite(raw, 4)
        area = finite([thing.area]) if thing.area is not None else [0.0]
        has_keypoints = thing.keypoints and num_keypoints  # without their names in the categories they mean nothing
        keypoints = finite(thing.keypoints, 3 * num_keypoints) if has_keypoints else [0.0] * (3 * num_keypoints)
        if box is None or area is None or keypoints is None:
            detail = f"box {raw}" if box is None else f"area {thing.area}" if area is None else "keypoints"
            note("not-finite", detail=detail)
            continue
        box = _sound_box(box, width, height, note)
        if box is None:
            continue
        kept.append(thing)
        boxes.append(box)
        masks.append(mask)
        points.append(keypoints)
        if thing.area is None:
            area = [area_of(mask, height, width) if mask else (box[2] - box[0]) * (box[3] - box[1])]
        areas += area
    return Record(
        image=image,
        image_id=image_id,
        width=width,
        height=height,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array([thing.label for thing in kept], dtype=np.int64),
        masks=tuple(masks) if with_masks else None,
        keypoints=np.array(points, dtype=np.float64).reshape(-1, num_keypoints, 3) if num_keypoints else None,
        crowd=np.array([thing.crowd for thing in kept], dtype=bool),
        difficult=np.array([thing.difficult for thing in kept], dtype=bool),
        annotation_ids=np.array([thing.annotation_id for thing in kept], dtype=np.int64),
        areas=np.array(areas, dtype=np.float64),
    )


def _sound_box(box: list[float], width: int, height: int, note: Any) -> list[float] | None:
    x0, y0, x1, y1 = box
    said = f"box {x0:g}, {y0:g}, {x1:g}, {y1:g}"
    if x1 <= x0 or y1 <= y0:
        note("zero-area", detail=said)
        return None
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        note("outside", detail=f"{said} of {width} x {height}")
        return None
    if min(x0, y0) < -OVERHANG or x1 > width + OVERHANG or y1 > height + OVERHANG:
        note("overhang", detail=f"{said} of {width} x {height}")
        return [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
    return box


def _sound_mask(segmentation: Any, width: int, height: int, note: Any) -> Segmentation | None:
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        fault = rle_fault(segmentation, width, height)
        if fault:
            note("bad-mask", detail=fault)
        return None if fault else segmentation
    if not isinstance(segmentation, list):
        note("bad-mask", detail=f"a segmentation of type {type(segmentation).__name__}")
        return None
    polygons = []
    for polygon in segmentation:
        numbers = finite(polygon)
        if numbers is None or len(numbers) % 2:
            note("bad-mask", detail="a polygon that is not a list of finite x, y pairs")
        elif len(numbers) < 6:  # pycocotools would take two points for a box
            note("short-polygon", detail=f"{len(numbers) // 2} points")
        elif max(map(abs, numbers)) > FARTHEST * max(width, height):
            note("bad-mask", detail=f"a polygon that reaches to {max(numbers, key=abs):g} px of {width} x {height}")
        else:
            polygons.append(numbers)
    return polygons or None
