"""An annotation of a COCO file as an object, and what all of its boxes together say of their units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resim.datasets.coco_values import (
    as_flag,
    as_keypoints,
    as_numbers,
    as_positive,
    as_rle,
    as_segmentation,
    what_is_wrong,
)
from resim.datasets.objects import NO_AREA, NO_BOX, Annotated
from resim.datasets.repair import OVERHANG
from resim.errors import UserError

Note = Callable[..., None]


def read_annotation(
    entry: dict[str, Any],
    label: int,
    size: tuple[int, int],
    num_keypoints: int,
    crowd_as_objects: bool,
    note: Note,
) -> Annotated:
    """An annotation in COCO's own form; what is worked out, or cannot be, is noted.

    Args:
        entry: of the file.
        label: of its class.
        size: width and height of its image in pixels.
        num_keypoints: K of the file.
        crowd_as_objects: take crowd regions as objects.
        note: where it is noted, with a kind and a detail.
    """
    said = entry.get("bbox")
    numbers = as_numbers(said, 4)
    fault = ""
    if numbers is None:
        fault = NO_BOX if said in (None, [], "") else f"bbox {what_is_wrong(said, 4)}"
    elif not isinstance(said, list) or len(said) != 4:
        note("box-form", detail=f"bbox {said!r}")
    area = as_positive(entry.get("area"))
    area_fault = NO_AREA if entry.get("area") in (None, "") else "" if area else f"area {entry['area']!r}"
    return Annotated(
        annotation_id=entry["id"],
        label=label,
        box=None if numbers is None else [numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]],
        box_fault=fault,
        segmentation=_segmentation(entry, size, note),
        keypoints=_keypoints(entry, num_keypoints, note),
        crowd=_is_crowd(entry, note, crowd_as_objects),
        area=area,
        area_fault=area_fault,
    )


def _segmentation(entry: dict[str, Any], size: tuple[int, int], note: Note) -> Any:
    segmentation, form = as_segmentation(entry.get("segmentation"))
    if form and segmentation:
        note("mask-form", detail=form)
    return as_rle(segmentation, *size) if isinstance(segmentation, dict) and segmentation else segmentation


def _keypoints(entry: dict[str, Any], count: int, note: Note) -> list[float] | None:
    said = entry.get("keypoints")
    if said in (None, "", []):
        return None
    if not count:
        note("unnamed-keypoints", detail="its categories have no list of keypoints")
        return None
    points, form = as_keypoints(said, count)
    if form:
        note("bad-keypoints" if points is None else "keypoint-form", detail=form)
    return points


def _is_crowd(entry: dict[str, Any], note: Note, as_objects: bool) -> bool:
    crowd = as_flag(entry.get("iscrowd"))
    if crowd is None:
        note("odd-flag", detail=f"iscrowd {entry['iscrowd']!r}")
    if crowd and as_objects:
        note("crowd-as-objects", detail="iscrowd 1")
    if not crowd and as_flag(entry.get("ignore")):
        note("ignore", detail=f"ignore {entry['ignore']!r}")
    return bool(crowd) and not as_objects


def check_pixels(annotations: Sequence[dict[str, Any]], path: Path) -> None:
    """Raise if the boxes are shares of their images instead of pixels: all numbers in [0, 1], not all of them whole.

    Raises:
        UserError: they are.
    """
    fractions = count = 0
    for entry in annotations:
        numbers = as_numbers(entry.get("bbox"), 4)
        if numbers is None:
            continue
        if min(numbers) < 0 or max(numbers) > 1:
            return
        count += 1
        fractions += any(0 < number < 1 for number in numbers)
    if fractions:
        raise UserError(
            f"{path}: all numbers of its {count} bboxes lie from 0 to 1, as shares of the image would: COCO's are "
            "pixels (x, y, width, height); multiply them by the width and the height of their image"
        )


def corners_of(annotations: Sequence[dict[str, Any]]) -> list[list[float]]:
    """(x0, y0, x1, y1) of the annotations that have a bbox of numbers."""
    boxes = (as_numbers(entry.get("bbox"), 4) for entry in annotations)
    return [[box[0], box[1], box[0] + box[2], box[1] + box[3]] for box in boxes if box is not None]


@dataclass
class Corners:
    """Whether the boxes of a file are corners (x0, y0, x1, y1), where COCO has x, y, width, height."""

    boxes: int = 0
    fitting: int = 0
    outside: list[tuple[Note, str]] = field(default_factory=list)

    def add(self, entry: dict[str, Any], size: tuple[int, int], note: Note) -> None:
        """Count a box."""
        numbers = as_numbers(entry.get("bbox"), 4)
        if numbers is None:
            return
        x, y, a, b = numbers
        width, height = size[0] + OVERHANG, size[1] + OVERHANG
        self.boxes += 1
        self.fitting += x < a <= width and y < b <= height
        if self.fitting == self.boxes and (x + a > width or y + b > height):
            self.outside.append((note, f"bbox {x:g}, {y:g}, {a:g}, {b:g} of {size[0]} x {size[1]}"))

    def note_them(self) -> None:
        """Note the boxes that reach outside, if all of them fit as corners and at least half do not as COCO's."""
        if self.fitting == self.boxes and 2 * len(self.outside) >= self.boxes:
            for note, detail in self.outside:
                note("corners", detail=detail)
