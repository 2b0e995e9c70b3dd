"""Check annotated objects and build the record of their image; the readers of all layouts end here.

Shapes: n objects, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from resim.datasets.annotation_values import as_positive, finite_numbers
from resim.datasets.masks import has_pixels, mask_area, mask_box, rle_fault
from resim.datasets.records import OVERHANG, Record, Segmentation
from resim.datasets.repairs import Repairs

MAX_REACH = 10  # of a polygon, in longer sides of its image: pycocotools' memory grows with the outline
NO_BOX, NO_AREA = "no bbox", "no area"  # the faults of an annotation that states none
FRACTIONS = "numbers like fractions"  # how the fault of such a box begins
_FRACTION_REACH = 1.5  # a centre of 1 and half a width of 1, with some overhang


class Annotated(NamedTuple):
    """An object as annotated; only its category is checked.

    Attributes:
        annotation_id: for messages and results.
        label: from 1.
        box: (x0, y0, x1, y1) in pixels; None: compute it from the segmentation.
        box_fault: why the file states no usable box; empty if its layout has none.
        segmentation: polygons or RLE; None or empty: no mask.
        keypoints: 3 K numbers, or None.
        crowd: a region of many objects.
        difficult: to be ignored by the evaluation.
        area: in pixels; None: that of the segmentation, or of the box if there is none.
        area_fault: why the file states no usable area; empty if its layout has none.
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
    """The valid objects of an image as a record; repaired and dropped ones are added to `repairs`."""
    kept: list[Annotated] = []
    boxes: list[float] = []
    masks: list[Segmentation | None] = []
    points: list[float] = []
    areas: list[float] = []
    note = partial(repairs.add, file=file, image_id=image_id)
    for annotated in objects:
        mask = _checked_mask(annotated, width, height, note) if annotated.segmentation else None
        box = _checked_box(annotated, mask, width, height, note)
        if box is None:
            continue
        if num_keypoints:
            keypoints = finite_numbers(annotated.keypoints, 3 * num_keypoints)
            points += keypoints or [0.0] * (3 * num_keypoints)
            if keypoints and _are_apart(keypoints, box):
                detail = f"box {_format_box(box)}"
                note("keypoints-apart", annotation_id=annotated.annotation_id, detail=detail)
        if isinstance(mask, list) and box == annotated.box and not _has_point(mask[0][:2], box):
            around = mask_box(mask, height, width)
            if not _overlap(around, box):
                detail = f"mask {_format_box(around)}, box {_format_box(box)}"
                note("mask-apart", annotation_id=annotated.annotation_id, detail=detail)
        kept.append(annotated)
        boxes += box
        masks.append(mask)
        areas.append(as_positive(annotated.area) or _area(mask, box, width, height))
        if annotated.area_fault:
            kind = "no-area" if annotated.area_fault == NO_AREA else "area"
            note(kind, annotation_id=annotated.annotation_id, detail=annotated.area_fault)
    return Record(
        image=image,
        image_id=image_id,
        width=width,
        height=height,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array([annotated.label for annotated in kept], dtype=np.int64),
        masks=tuple(masks) if with_masks else None,
        keypoints=np.array(points, dtype=np.float64).reshape(-1, num_keypoints, 3) if num_keypoints else None,
        crowd=np.array([annotated.crowd for annotated in kept], dtype=bool),
        difficult=np.array([annotated.difficult for annotated in kept], dtype=bool),
        annotation_ids=np.array([annotated.annotation_id for annotated in kept], dtype=np.int64),
        areas=np.array(areas, dtype=np.float64),
    )


def _checked_box(
    annotated: Annotated, mask: Segmentation | None, width: int, height: int, note: Any
) -> list[float] | None:
    """The box as annotated, repaired, or computed from the mask; None, with a fault, if none is usable."""
    box = finite_numbers(annotated.box, 4)
    if box is not None and _is_inside(box, width, height):
        return box
    note = partial(note, annotation_id=annotated.annotation_id)
    is_usable = box is not None and not _is_flat(box)
    around = mask_box(mask, height, width) if mask is not None and not is_usable else None
    if around is not None and not _is_flat(around):
        if annotated.box is not None or annotated.box_fault:
            kind = "no-bbox" if annotated.box_fault == NO_BOX else "box-from-mask"
            note(kind, detail=annotated.box_fault or f"box {_format_box(annotated.box)}")
        box = list(around)
    if box is None:
        fault = annotated.box_fault or f"box {annotated.box}"
        kind = "fractions" if fault.startswith(FRACTIONS) else "no-box" if annotated.box_fault else "not-finite"
        note(kind, detail=fault)
        return None
    return _repaired_box(box, width, height, note)


def fractions_fault(box: Sequence[float]) -> str:
    """Why a box of pixels is rather one of fractions of its image; empty if it is not.

    Args:
        box: (x0, y0, x1, y1), finite.
    """
    if max(box[2:]) > _FRACTION_REACH or min(box) < -_FRACTION_REACH or all(value == int(value) for value in box):
        return ""
    return f"{FRACTIONS}: box {_format_box(box)}"


def _has_point(point: Sequence[float], box: Sequence[float]) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(first[axis] <= second[axis + 2] and second[axis] <= first[axis + 2] for axis in (0, 1))


def _are_apart(keypoints: Sequence[float], box: Sequence[float]) -> bool:
    """Whether there are labelled keypoints, and none lies in the box or within a quarter of its size of it."""
    margin_x, margin_y = (box[2] - box[0]) / 4, (box[3] - box[1]) / 4
    wide = (box[0] - margin_x, box[1] - margin_y, box[2] + margin_x, box[3] + margin_y)
    labelled = [keypoints[start : start + 2] for start in range(0, len(keypoints), 3) if keypoints[start + 2] > 0]
    return bool(labelled) and not any(_has_point(point, wide) for point in labelled)


def _is_flat(box: Sequence[float]) -> bool:
    return box[0] == box[2] or box[1] == box[3]


def _format_box(box: Any) -> str:
    numbers = finite_numbers(box, 4)
    return ", ".join(f"{value:g}" for value in numbers) if numbers else str(box)


def _area(mask: Segmentation | None, box: Sequence[float], width: int, height: int) -> float:
    """Number of pixels of the mask; that of the box if there is no mask or no pixel in it."""
    pixels = mask_area(mask, height, width) if mask else 0.0
    return pixels or (box[2] - box[0]) * (box[3] - box[1])


def _is_inside(box: Sequence[float], width: int, height: int) -> bool:
    x0, y0, x1, y1 = box
    return 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def _repaired_box(box: list[float], width: int, height: int, note: Any) -> list[float] | None:
    x0, y0, x1, y1 = box
    if _is_inside(box, width, height):
        return box
    shown = f"box {x0:g}, {y0:g}, {x1:g}, {y1:g}"
    if max(x0, x1) < 0 or max(y0, y1) < 0 or min(x0, x1) > width or min(y0, y1) > height:
        note("outside", detail=f"{shown} in an image of {width} x {height}")
        return None
    if x1 == x0 or y1 == y0:
        note("zero-area", detail=shown)
        return None
    if x1 < x0 or y1 < y0:
        note("corners-reversed", detail=shown)
        x0, y0, x1, y1 = box = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        note("outside", detail=f"{shown} in an image of {width} x {height}")
        return None
    if min(x0, y0) < -OVERHANG or x1 > width + OVERHANG or y1 > height + OVERHANG:
        note("overhang", detail=f"{shown} in an image of {width} x {height}")
        return [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
    return box


def _checked_mask(annotated: Annotated, width: int, height: int, note: Any) -> Segmentation | None:
    segmentation = annotated.segmentation
    if isinstance(segmentation, list):
        polygons: list[list[float]] = []
        for polygon in segmentation:
            numbers = finite_numbers(polygon)
            fault = _polygon_fault(numbers, width, height)
            if fault is not None:
                kind, detail = fault
                note(kind, annotation_id=annotated.annotation_id, detail=detail)
            elif numbers is not None:
                polygons.append(numbers)
        return polygons or None
    note = partial(note, annotation_id=annotated.annotation_id)
    if not isinstance(segmentation, dict):
        note("bad-mask", detail=f"a segmentation of type {type(segmentation).__name__}")
        return None
    fault = rle_fault(segmentation, width, height)
    if fault:
        note("bad-mask", detail=fault)
        return None
    if not has_pixels(segmentation):
        note("empty-mask", detail="RLE")
        return None
    return segmentation


def _polygon_fault(numbers: list[float] | None, width: int, height: int) -> tuple[str, str] | None:
    """The kind of fault of a polygon, and its description; None if it is usable."""
    if numbers is None or len(numbers) % 2:
        return "bad-mask", "a polygon that is not a list of finite x, y pairs"
    if len(numbers) < 6:  # pycocotools would read two points as a box
        return "short-polygon", f"{len(numbers) // 2} points"
    xs, ys = numbers[0::2], numbers[1::2]
    x0, y0, x1, y1 = min(xs), min(ys), max(xs), max(ys)
    if max(x1, y1) <= 1 and any(value != int(value) for value in numbers):
        return "bad-mask", f"a polygon within {x0:g}, {y0:g}, {x1:g}, {y1:g}, like fractions of the image"
    if 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height:
        return None
    if max(x1, y1, -x0, -y0) > MAX_REACH * max(width, height):
        reach = max(numbers, key=abs)
        return "bad-mask", f"a polygon that extends to {reach:g} px in an image of {width} x {height}"
    if x0 == x1 or y0 == y1 or x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        place = f"from {x0:g}, {y0:g} to {x1:g}, {y1:g}"
        return "empty-mask", f"a polygon {place} in an image of {width} x {height}"
    return None
