"""From objects as they were annotated to the arrays of a record; every layout goes through here, and is checked here.

Shapes: n objects, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from resim.datasets.masks import area_of, box_of, has_pixels, rle_fault
from resim.datasets.records import Record, Segmentation
from resim.datasets.repair import OVERHANG, Repairs, finite

FARTHEST = 10  # times the image's longer side: pycocotools' memory grows with the length of an outline
NO_BOX, NO_AREA = "no bbox", "no area"  # the faults of an annotation that gives none at all


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """An object as a file says it, nothing checked but its category.

    Attributes:
        annotation_id: to name it in messages and results.
        label: from 1.
        box: (x0, y0, x1, y1) in pixels; None: take it from the segmentation.
        box_fault: why the file has no box, to be said; empty: its layout has none.
        segmentation: polygons or RLE; None or empty: no mask.
        keypoints: 3 K numbers, or None.
        crowd: a region of many objects.
        difficult: not to be counted.
        area: in pixels; None: of the segmentation, or else of the box.
        area_fault: why the file has no area, to be said; empty: its layout has none.
    """

    annotation_id: int
    label: int
    box: Any
    box_fault: str = ""
    segmentation: Any = None
    keypoints: Any = None
    crowd: bool = False
    difficult: bool = False
    area: Any = None
    area_fault: str = ""


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
        box = _box(thing, mask, width, height, note)
        if box is None:
            continue
        keypoints = finite(thing.keypoints, 3 * num_keypoints) if num_keypoints else None
        kept.append(thing)
        boxes.append(box)
        masks.append(mask)
        points.append(keypoints or [0.0] * (3 * num_keypoints))
        area = finite([thing.area])
        areas.append(area[0] if area and area[0] > 0 else _area(mask, box, width, height))
        if thing.area_fault:
            note("no-area" if thing.area_fault == NO_AREA else "area", detail=thing.area_fault)
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


def _box(thing: Annotated, mask: Segmentation | None, width: int, height: int, note: Any) -> list[float] | None:
    """The box as it is, put right, or around the mask; None, and noted, if there is none that can be used."""
    box = finite(thing.box, 4)
    around = box_of(mask, height, width) if mask is not None and (box is None or _is_flat(box)) else None
    if around is not None and not _is_flat(around):
        if thing.box is not None or thing.box_fault:
            kind = "no-bbox" if thing.box_fault == NO_BOX else "box-from-mask"
            note(kind, detail=thing.box_fault or f"box {_shown(thing.box)}")
        box = list(around)
    if box is None:
        fault = thing.box_fault or f"box {thing.box}"
        note("no-box" if thing.box_fault else "not-finite", detail=fault)
        return None
    return _sound_box(box, width, height, note)


def _is_flat(box: Sequence[float]) -> bool:
    return box[0] == box[2] or box[1] == box[3]


def _shown(box: Any) -> str:
    numbers = finite(box, 4)
    return ", ".join(f"{value:g}" for value in numbers) if numbers else str(box)


def _area(mask: Segmentation | None, box: Sequence[float], width: int, height: int) -> float:
    """Pixels of the mask; without a mask, or without a pixel in it, of the box."""
    pixels = area_of(mask, height, width) if mask else 0.0
    return pixels or (box[2] - box[0]) * (box[3] - box[1])


def _sound_box(box: list[float], width: int, height: int, note: Any) -> list[float] | None:
    x0, y0, x1, y1 = box
    said = f"box {x0:g}, {y0:g}, {x1:g}, {y1:g}"
    if x1 == x0 or y1 == y0:
        note("zero-area", detail=said)
        return None
    if x1 < x0 or y1 < y0:
        note("corners-reversed", detail=said)
        x0, y0, x1, y1 = box = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
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
            return None
        if not has_pixels(segmentation):
            note("empty-mask", detail="RLE")
            return None
        return segmentation
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
            x0, y0, x1, y1 = box_of([numbers], height, width)
            if x0 == x1 or y0 == y1 or x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
                note("empty-mask", detail=f"a polygon from {x0:g}, {y0:g} to {x1:g}, {y1:g} of {width} x {height}")
            else:
                polygons.append(numbers)
    return polygons or None
