"""YOLO's layout: a text file an image, each line a class and a box or polygon in fractions of the image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from resim.counts import counted
from resim.datasets.image_sizes import checked_size
from resim.datasets.record_checks import Annotated, make_record
from resim.datasets.records import DetectionData, Record
from resim.datasets.repairs import Repairs, empty_split_error
from resim.datasets.yolo_label_files import find_label_files, has_label_content, list_files
from resim.datasets.yolo_layout import YoloSet, open_yolo, split_images
from resim.datasets.yolo_lines import Shape, numbered_lines, read_lines, read_shapes
from resim.errors import UserError
from resim.views.folder import EXTENSIONS
from resim.views.walk import ending_of


def read_yolo(
    path: str | Path,
    split: str = "train",
    *,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> DetectionData:
    """Images in YOLO's layout, with boxes, and with masks for polygons.

    A line `class x y width height` is a box with its centre at x, y; `class x y x y x y ...` is a polygon. One more
    number is a confidence, two are a confidence and a track; these are not read, nor are keypoints. Boxes become
    (x0, y0, x1, y1) in pixels. Image ids are paths below the root, annotation ids the numbers of the lines from 1,
    category ids the numbers of the classes. An image without a label file has no objects. Every image is opened to
    read its size.

    Args:
        path: `data.yaml`, Darknet's `obj.data`, a folder that has one, or one that has `images` and `labels`.
        split: `train`, `val` or `test`.
        classes: names in the order of their numbers; None: those of the files.
        strict: raise at the first kind of fault instead of repairing it.

    Raises:
        UserError: no such split, no names of classes, no usable image or object; or strict.
    """
    data = open_yolo(Path(path), tuple(classes) if classes is not None else None)
    listed = split_images(data, split)
    images = listed.images
    source = f"{data.file} ({split})"
    repairs = Repairs()
    for number, name in data.names.items():
        others = [other for other, same in data.names.items() if same == name and other < number]
        if others:
            repairs.add("same-name", file=str(data.file), detail=f"classes {others[0]} and {number} are both {name!r}")
    for file in listed.renamed:
        kind = "missing-image" if file.path is None else "other-name"
        image_id = split if file.path is None else _image_id(data, file.path)
        repairs.add(kind, file=str(data.file), image_id=image_id, detail=file.fault or file.note)
    located = find_label_files(images)
    for image, file in located.items():
        if file.note:
            repairs.add("other-name", file=str(data.file), image_id=_image_id(data, image), detail=file.note)
    label_files = {image: file.path for image, file in located.items()}
    used = {path for path in label_files.values() if path is not None}
    unread = find_label_files(listed.unread)
    for image, file in unread.items():
        num_objects = 0 if file.path is None else sum(map(bool, read_lines(file.path)))
        detail = "save it as JPEG or PNG"
        repairs.add(
            "unread-format", file=image, image_id=_image_id(data, image), detail=detail, num_objects=num_objects
        )
    if images and not used:
        raise UserError(
            f"{source}: no label file for its {counted(len(images), 'image')}: images/NAME.jpg needs its labels in "
            "labels/NAME.txt"
        )
    for path in _labels_without_image(images, used | {file.path for file in unread.values() if file.path}):
        repairs.add("unknown-image", file=path, image_id=Path(path).stem, detail="no image of this name")
    lines = {
        image: [] if path is None else numbered_lines(data, path, _image_id(data, image), repairs)
        for image, path in label_files.items()
    }
    shapes = read_shapes(data, lines)
    with_masks = any(shape.polygon is not None for of_image in shapes.values() for shape in of_image)
    records = [_record(data, image, label_files[image], shapes[image], with_masks, repairs) for image in images]
    usable = tuple(record for record in records if record is not None)
    repairs.stop_if(strict)
    if not usable:
        raise empty_split_error(source, repairs, "no usable image")
    if not any(len(record) for record in usable):
        raise empty_split_error(source, repairs, f"no object in its {counted(len(usable), 'image')}")
    first: dict[str, int] = {}  # number of each name
    for number, name in data.names.items():
        first.setdefault(name, number)
    return DetectionData(
        records=usable,
        classes=tuple(first),
        category_ids=tuple(first.values()),
        kind="yolo",
        source=source,
        repairs=repairs,
    )


def _image_id(data: YoloSet, image: str) -> str:
    return Path(os.path.relpath(image, data.root)).as_posix()


def _labels_without_image(images: Sequence[str], used: set[str]) -> list[str]:
    """Label files, in the folders of those in use, for which no folder of the images has an image."""
    folders = [sorted({os.path.dirname(file) for file in files}) for files in (images, used)]  # noqa: PTH120
    beside_images, beside_labels = ([file for folder in part for file in list_files(folder)] for part in folders)
    stems = {os.path.splitext(name)[0] for _, name in beside_images if ending_of(name) in EXTENSIONS}  # noqa: PTH122
    return [
        path
        for path, name in beside_labels
        if ending_of(name) == ".txt" and path not in used and name[:-4] not in stems and has_label_content(path)
    ]


def _record(
    data: YoloSet, image: str, file: str | None, shapes: Sequence[Shape], with_masks: bool, repairs: Repairs
) -> Record | None:
    image_id = _image_id(data, image)
    size = checked_size(image, None, file=file or image, image_id=image_id, check=True, repairs=repairs)
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
            box = [min(xs), min(ys), max(xs), max(ys)]
            polygon = [[value for point in zip(xs, ys, strict=True) for value in point]]
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
