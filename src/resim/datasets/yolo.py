"""YOLO's layout: a text file an image, each line a class and a box or a polygon in shares of the image.

Shapes: a line has a class and n numbers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resim.counts import counted
from resim.datasets.objects import Annotated, make_record
from resim.datasets.records import DetectionData, Record
from resim.datasets.repair import Repairs, finite, nothing_left, sound_size
from resim.datasets.yolo_files import YoloSet, open_yolo, split_images
from resim.datasets.yolo_labels import begins_as_labels, files_in, find_label_files
from resim.errors import UserError
from resim.views.text import decode_text
from resim.views.walk import ending_of

FARTHEST = 0.5  # shares of the image that a number may lie outside [0, 1]; beyond, it is no share


@dataclass(frozen=True)
class _Shape:
    """A line's object, in shares of the image: a box (x0, y0, x1, y1), or a polygon (x, y, x, y, ...)."""

    number: int
    label: int
    box: list[float] | None
    polygon: list[float] | None


def read_yolo(
    path: str | Path,
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> DetectionData:
    """Images with boxes, and masks where there are polygons, in YOLO's layout.

    A line `class x y width height` is a box by its centre; `class x y x y x y ...` a polygon. A number after them is a
    confidence, two are a confidence and a track; these are not read, nor are keypoints. Boxes are then
    (x0, y0, x1, y1) in pixels. Image ids are paths below the root, annotation ids the numbers of the lines from 1,
    category ids the numbers of the classes. An image without a label file has no objects. Every image is opened, for
    its size.

    Args:
        path: `data.yaml`, Darknet's `obj.data`, a folder that has one, or one that has `images` and `labels`.
        split: `train`, `val` or `test`.
        classes: names in the order of their numbers; None: those of the files.
        strict: raise at the first kind of fault instead of repairing.

    Raises:
        UserError: no such split, no names of classes, nothing left that can be used; or strict.
    """
    data = open_yolo(Path(path), tuple(classes) if classes is not None else None)
    images, odd = split_images(data, split)
    source = f"{data.file} ({split})"
    repairs = Repairs()
    for place in odd:
        kind = "missing-image" if place.path is None else "other-name"
        image_id = split if place.path is None else _id(data, place.path)
        repairs.add(kind, file=str(data.file), image_id=image_id, detail=place.fault or place.note)
    places = find_label_files(images)
    for image, place in places.items():
        if place.note:
            repairs.add("other-name", file=str(data.file), image_id=_id(data, image), detail=place.note)
    label_files = {image: place.path for image, place in places.items()}
    used = {file for file in label_files.values() if file is not None}
    if images and not used:
        raise UserError(
            f"{source}: there is no label file for its {counted(len(images), 'image')}: labels/NAME.txt belongs to "
            "images/NAME.jpg"
        )
    for file in _without_image(images, used):
        repairs.add("unknown-image", file=file, image_id=Path(file).stem, detail="no image of this name")
    shapes = {
        image: [] if file is None else _shapes(data, file, _id(data, image), repairs)
        for image, file in label_files.items()
    }
    with_masks = any(shape.polygon is not None for found in shapes.values() for shape in found)
    records = [_record(data, image, label_files[image], shapes[image], with_masks, repairs) for image in images]
    kept = tuple(record for record in records if record is not None)
    repairs.stop_if(strict)
    if not kept:
        raise nothing_left(source, repairs, "no image that can be used")
    if not any(len(record) for record in kept):
        raise nothing_left(source, repairs, f"no object in its {counted(len(kept), 'image')}")
    return DetectionData(
        records=kept,
        classes=tuple(data.names.values()),
        category_ids=tuple(data.names),
        kind="yolo",
        source=source,
        repairs=repairs,
    )


def _id(data: YoloSet, image: str) -> str:
    return Path(os.path.relpath(image, data.root)).as_posix()


def _without_image(images: Sequence[str], used: set[str]) -> list[str]:
    """Label files in the folders of those that are used for which no folder of the images has a picture."""
    folders = [sorted({os.path.dirname(file) for file in files}) for files in (images, used)]  # noqa: PTH120
    pictures, texts = ([file for folder in each for file in files_in(folder)] for each in folders)
    stems = {os.path.splitext(name)[0] for _, name in pictures if ending_of(name) != ".txt"}  # noqa: PTH122
    return [
        path
        for path, name in texts
        if ending_of(name) == ".txt" and path not in used and name[:-4] not in stems and begins_as_labels(path)
    ]


def _shapes(data: YoloSet, file: str, image_id: str, repairs: Repairs) -> list[_Shape]:
    """The sound lines of a label file; what is wrong with the others is noted."""
    labels = {number: label for label, number in enumerate(data.names, start=1)}
    by_name = {name: labels[number] for number, name in data.names.items()}
    try:
        lines = decode_text(Path(file).read_bytes()).splitlines()
    except OSError as error:
        repairs.add("missing-annotation", file=file, image_id=image_id, detail=str(error.strerror))
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        text = line.strip("\0\ufeff \t")
        if not text or text.startswith("#"):
            continue
        note = partial(repairs.add, file=file, image_id=image_id, annotation_id=number)
        first, *words = text.replace(",", " ").split()
        values, which = finite(words), finite([first])
        if values is None or len(values) < 4:
            note("not-finite", detail=repr(text[:80]))
            continue
        is_whole = which is not None and which[0] == int(which[0])
        label = labels.get(int(which[0])) if which is not None and is_whole else by_name.get(first)
        if label is None:
            note("unknown-category", detail=f"class {first}, there are {len(labels)}")
            continue
        shape = _shape(number, label, values, words[-1], data.keypoints, note)
        if shape is not None:
            found.append(shape)
    return found


def _shape(
    number: int, label: int, values: list[float], last: str, keypoints: tuple[int, int] | None, note: Any
) -> _Shape | None:
    """A box or a polygon of a line's numbers."""
    count = len(values)
    is_pose = keypoints is not None and count in (4 + keypoints[0] * keypoints[1], 5 + keypoints[0] * keypoints[1])
    if is_pose:
        note("keypoints-left-out", detail=f"{keypoints[0]} keypoints")  # type: ignore[index]
    has_track = count == 6 and last.lstrip("+-").isdigit()  # a box, a confidence and a track, not three points
    is_box = is_pose or count <= 5 or has_track
    used = values[:4] if is_box else values[: count - count % 2]  # an odd number at the end is a confidence
    if not all(-FARTHEST <= value <= 1 + FARTHEST for value in used):
        note("no-shares", detail=" ".join(f"{value:g}" for value in used[:4]))
        return None
    if not is_box:
        return _Shape(number, label, None, used)
    x, y, width, height = used
    return _Shape(number, label, [x - width / 2, y - height / 2, x + width / 2, y + height / 2], None)


def _record(
    data: YoloSet, image: str, file: str | None, shapes: Sequence[_Shape], with_masks: bool, repairs: Repairs
) -> Record | None:
    image_id = _id(data, image)
    size = sound_size(image, None, file=file or image, image_id=image_id, check=True, repairs=repairs)
    if size is None:
        return None
    width, height = size
    objects = []
    for shape in shapes:
        if shape.box is not None:
            x0, y0, x1, y1 = shape.box
            box, polygon = [x0 * width, y0 * height, x1 * width, y1 * height], None
        else:
            assert shape.polygon is not None
            xs = [min(max(value, 0.0), 1.0) * width for value in shape.polygon[::2]]
            ys = [min(max(value, 0.0), 1.0) * height for value in shape.polygon[1::2]]
            box, polygon = (
                [min(xs), min(ys), max(xs), max(ys)],
                [[v for pair in zip(xs, ys, strict=True) for v in pair]],
            )
        objects.append(Annotated(annotation_id=shape.number, label=shape.label, box=box, segmentation=polygon))
    return make_record(
        objects,
        file=file or image,
        image=image,
        image_id=image_id,
        width=width,
        height=height,
        with_masks=with_masks,
        repairs=repairs,
    )
