"""Annotations of a COCO file: one as an object, and the units of all boxes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from resim.counts import counted
from resim.datasets.annotation_values import (
    as_flag,
    as_keypoints,
    as_numbers,
    as_positive,
    as_rle,
    as_segmentation,
    numbers_fault,
)
from resim.datasets.record_checks import NO_AREA, NO_BOX, Annotated, fractions_fault
from resim.datasets.records import OVERHANG
from resim.errors import UserError

Note = Callable[..., None]
_UNSET = (0, None)
_OVERHANG = 0.5  # of boxes in fractions of their image


def read_annotation(
    entry: dict[str, Any],
    label: int,
    size: tuple[int, int],
    num_keypoints: int,
    crowd_as_objects: bool,
    note: Note,
) -> Annotated:
    """An annotation in COCO's form; conversions and faults are recorded.

    Args:
        entry: of the file.
        label: of its class.
        size: width and height of its image in pixels.
        num_keypoints: K of the file.
        crowd_as_objects: read crowd regions as objects.
        note: records a kind, the annotation's id and a detail.
    """
    bbox = entry.get("bbox")
    numbers = as_numbers(bbox, 4)
    box = None
    if numbers is None:
        fault = NO_BOX if bbox in (None, [], "") else f"bbox {numbers_fault(bbox, 4)}"
    else:
        if not isinstance(bbox, list) or len(bbox) != 4:
            note("box-form", annotation_id=entry["id"], detail=f"bbox {bbox!r}")
        box = [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]]
        fault = fractions_fault(box)
    attributes = entry.get("attributes")
    rotation = as_numbers([attributes.get("rotation")], 1) if isinstance(attributes, dict) else None
    if rotation and rotation[0] % 360 and not entry.get("segmentation"):
        note("rotated", annotation_id=entry["id"], detail=f"rotation {rotation[0]:g}")
    area = as_positive(entry.get("area"))
    area_fault = "" if area else NO_AREA if entry.get("area") in (None, "") else f"area {entry['area']!r}"
    return Annotated(
        annotation_id=entry["id"],
        label=label,
        box=None if fault else box,
        box_fault=fault,
        segmentation=_segmentation(entry, size, note),
        keypoints=_keypoints(entry, num_keypoints, note),
        crowd=_is_crowd(entry, note, crowd_as_objects),
        area=area,
        area_fault=area_fault,
    )


def _segmentation(entry: dict[str, Any], size: tuple[int, int], note: Note) -> Any:
    segmentation = entry.get("segmentation")
    if not segmentation:
        return segmentation
    segmentation, form = as_segmentation(segmentation)
    if form and segmentation:
        note("mask-form", annotation_id=entry["id"], detail=form)
    return as_rle(segmentation, *size) if isinstance(segmentation, dict) and segmentation else segmentation


def _keypoints(entry: dict[str, Any], count: int, note: Note) -> list[float] | None:
    keypoints = entry.get("keypoints")
    if keypoints is None or keypoints in ("", []):
        return None
    if not count:
        note("unnamed-keypoints", annotation_id=entry["id"], detail="its category has no list of keypoints")
        return None
    points, form = as_keypoints(keypoints, count)
    if form:
        kind = "bad-keypoints" if points is None else "keypoint-form"
        note(kind, annotation_id=entry["id"], detail=form)
    return points


def _is_crowd(entry: dict[str, Any], note: Note, as_objects: bool) -> bool:
    value, ignore = entry.get("iscrowd"), entry.get("ignore")
    if value in _UNSET and ignore in _UNSET:
        return False
    note = partial(note, annotation_id=entry["id"])
    crowd = as_flag(value)
    if crowd is None:
        note("odd-flag", detail=f"iscrowd {value!r}")
    if crowd and as_objects:
        note("crowd-as-objects", detail="iscrowd 1")
    if not crowd and as_flag(ignore):
        note("ignore", detail=f"ignore {ignore!r}")
    return bool(crowd) and not as_objects


def check_pixels(annotations: Sequence[dict[str, Any]], path: Path) -> None:
    """Check that the boxes are in pixels, not in fractions of their image.

    Raises:
        UserError: all numbers lie in [0, 1] or a little beyond, and not all of them are integers.
    """
    fractions = count = 0
    least, greatest = 0.0, 1.0
    for entry in annotations:
        numbers = as_numbers(entry.get("bbox"), 4)
        if numbers is None:
            continue
        if min(numbers) < -_OVERHANG or max(numbers) > 1 + _OVERHANG:
            return
        count += 1
        fractions += any(number != int(number) for number in numbers)
        least, greatest = min(least, *numbers), max(greatest, *numbers)
    if fractions:
        raise UserError(
            f"{path}: all numbers of its {counted(count, 'bbox', 'bboxes')} lie between {least:g} and "
            f"{greatest:g}, like fractions of the image, but COCO's are x, y, width, height in pixels: multiply them "
            "by the width and height of their image"
        )


def corners_of(annotations: Sequence[dict[str, Any]]) -> list[list[float]]:
    """(x0, y0, x1, y1) of the annotations that have a bbox of numbers."""
    boxes = (as_numbers(entry.get("bbox"), 4) for entry in annotations)
    return [[box[0], box[1], box[0] + box[2], box[1] + box[3]] for box in boxes if box is not None]


@dataclass
class CornerCheck:
    """Whether the boxes of a file seem to be corners (x0, y0, x1, y1) instead of COCO's x, y, width, height."""

    num_boxes: int = 0
    num_fitting: int = 0
    outside: list[tuple[Note, int, str]] = field(default_factory=list)

    def add(self, entry: dict[str, Any], size: tuple[int, int], note: Note) -> None:
        """Add a box."""
        if self.num_fitting < self.num_boxes:  # one did not fit as corners: they are none
            return
        numbers = as_numbers(entry.get("bbox"), 4)
        if numbers is None:
            return
        x, y, a, b = numbers  # width and height, or x1 and y1
        self.num_boxes += 1
        width, height = size[0] + OVERHANG, size[1] + OVERHANG
        self.num_fitting += x < a <= width and y < b <= height
        if self.num_fitting == self.num_boxes and (x + a > width or y + b > height):
            detail = f"bbox {x:g}, {y:g}, {a:g}, {b:g} in an image of {size[0]} x {size[1]}"
            self.outside.append((note, entry["id"], detail))

    def report(self) -> None:
        """Record the boxes that extend beyond their image, if all fit as corners and at least half do not as COCO's."""
        if self.num_fitting == self.num_boxes and 2 * len(self.outside) >= self.num_boxes:
            for note, number, detail in self.outside:
                note("corners", annotation_id=number, detail=detail)
