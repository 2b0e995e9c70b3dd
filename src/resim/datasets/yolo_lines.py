"""The lines of YOLO's label files: a class and the numbers of a box, a polygon, or a box with keypoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from resim.datasets.annotation_values import finite_numbers
from resim.datasets.repairs import Repairs
from resim.datasets.yolo_label_files import split_line
from resim.datasets.yolo_layout import YoloSet
from resim.reading import read_file
from resim.views.text import decode_text

MAX_OVERHANG = 0.5  # by which a coordinate may lie outside [0, 1]; beyond, it is not a fraction of the image
_LEAST_POSES = 3  # lines: one or two polygons may have their points in a box by chance


@dataclass(frozen=True)
class Shape:
    """The object of a line, in fractions of the image: a box (x0, y0, x1, y1), or a polygon (x, y, x, y, ...)."""

    number: int
    label: int
    box: list[float] | None
    polygon: list[float] | None


class Line(NamedTuple):
    """A line of a label file.

    Attributes:
        number: from 1.
        label: of the class.
        values: the numbers after the class.
        last: the last one as text.
        note: records a kind of fault and a detail.
    """

    number: int
    label: int
    values: list[float]
    last: str
    note: Callable[..., None]


def read_lines(file: str) -> list[str]:
    """The lines of a label file, without blank ones and comments, which become empty."""
    return [line.partition("#")[0].strip("\0\ufeff \t") for line in decode_text(read_file(file)).splitlines()]


def numbered_lines(data: YoloSet, file: str, image_id: str, repairs: Repairs) -> list[Line]:
    """The lines of a label file with a class and numbers; the others are added to `repairs`."""
    by_name = {name: label for label, name in enumerate(dict.fromkeys(data.names.values()), start=1)}
    labels = {number: by_name[name] for number, name in data.names.items()}
    try:
        texts = read_lines(file)
    except OSError as error:
        repairs.add("missing-annotation", file=file, image_id=image_id, detail=str(error.strerror))
        return []
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text:
            continue
        note = partial(repairs.add, file=file, image_id=image_id, annotation_id=number)
        (first, *words), has_commas = split_line(text) if text.strip(",;") else (["", text], False)
        values, class_number = finite_numbers(words), finite_numbers([first])
        if values is None or len(values) < 4:
            note("not-finite", detail=repr(text[:80]))
            continue
        is_number = class_number is not None and class_number[0] == int(class_number[0])
        label = labels.get(int(class_number[0])) if class_number and is_number else by_name.get(first)
        if label is None:
            note("unknown-category", detail=f"class {first}, but there are {len(labels)} classes")
            continue
        if has_commas:
            note("decimal-comma", detail=repr(text[:80]))
        lines.append(Line(number, label, values, words[-1], note))
    return lines


def read_shapes(data: YoloSet, lines: dict[str, list[Line]]) -> dict[str, list[Shape]]:
    """The objects of the lines of each image; of a line without one, the fault is recorded."""
    stated = data.keypoints
    keypoints = stated or unstated_keypoints([line.values for of_image in lines.values() for line in of_image])
    shapes: dict[str, list[Shape]] = {}
    for image, of_image in lines.items():
        parsed = (_parse_shape(line, keypoints, is_stated=stated is not None) for line in of_image)
        shapes[image] = [shape for shape in parsed if shape is not None]
    return shapes


def unstated_keypoints(lines: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """The `kpt_shape` of numbers that are boxes with keypoints rather than polygons; None if there is none.

    All lines then have as many numbers, and their points lie in their boxes, either with visibilities of 0, 1 or 2, of
    which some are not 0, or without, in three lines or more.

    Args:
        lines: the numbers of each line after its class.
    """
    counts = {len(values) for values in lines}
    count = counts.pop() if len(counts) == 1 else 0
    if count > 6 and count % 3 == 1:
        visibilities = {number for values in lines for number in values[6::3]}
        if visibilities <= {0, 1, 2} and visibilities != {0} and all(_has_points_in_box(values, 3) for values in lines):
            return (count - 4) // 3, 3
    is_pairs = count >= 6 and count % 2 == 0 and len(lines) >= _LEAST_POSES
    return ((count - 4) // 2, 2) if is_pairs and all(_has_points_in_box(values, 2) for values in lines) else None


def _has_points_in_box(values: Sequence[float], size: int) -> bool:
    x, y, width, height = values[:4]
    points = (values[start : start + size] for start in range(4, len(values), size))
    labelled = (point[:2] for point in points if any(point[:2]) and point[-1] != 0)
    return all(abs(px - x) <= width / 2 and abs(py - y) <= height / 2 for px, py in labelled)


def _parse_shape(line: Line, keypoints: tuple[int, int] | None, *, is_stated: bool) -> Shape | None:
    """The box or polygon of the numbers of a line; None, with a fault, if they are not fractions of the image."""
    number, label, values, last, note = line
    count = len(values)
    is_pose = keypoints is not None and count in (4 + keypoints[0] * keypoints[1], 5 + keypoints[0] * keypoints[1])
    if is_pose and is_stated:
        note("keypoints-left-out", detail=f"{keypoints[0]} keypoints")  # type: ignore[index]
    elif is_pose:
        note("keypoints-unstated", detail=f"kpt_shape: {list(keypoints)} would fit")  # type: ignore[arg-type]
    has_track = count == 6 and last.lstrip("+-").isdigit()  # box, confidence and track, not three points
    is_box = is_pose or count <= 5 or has_track
    used = values[:4] if is_box else values[: count - count % 2]  # an unpaired number at the end is a confidence
    if not all(-MAX_OVERHANG <= value <= 1 + MAX_OVERHANG for value in used):
        note("no-shares", detail=" ".join(f"{value:g}" for value in used[:4]))
        return None
    if not is_box:
        return Shape(number, label, None, used)
    x, y, width, height = used
    return Shape(number, label, [x - width / 2, y - height / 2, x + width / 2, y + height / 2], None)
