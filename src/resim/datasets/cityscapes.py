"""Cityscapes' layout: `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_*`.

An image of instance ids contains the class of each pixel (11: building), or 1000 times the class plus the number of an
instance (26003: the fourth car). Where a class has instances, pixels with the class alone (26) belong to a group that
was not separated: a crowd region. If there is no such image, it is drawn from the polygons.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from resim.counts import counted
from resim.datasets.annotation_values import finite_numbers
from resim.datasets.image_sizes import checked_size
from resim.datasets.record_checks import Annotated, make_record
from resim.datasets.records import DetectionData, Record
from resim.datasets.repairs import Repairs, empty_split_error
from resim.errors import UserError
from resim.reading import open_file, read_json

# the classes that are evaluated, and their ids
CLASSES = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}
OTHER_INSTANCES = {"caravan": 29, "trailer": 30}  # numbered like the others, but not evaluated
NOT_DRAWN = ("license plate",)  # its id is -1: it does not hide what lies under it
IMAGE, POLYGONS, INSTANCES = "_leftImg8bit.png", "_gtFine_polygons.json", "_gtFine_instanceIds.png"

MAX_PIXELS = 1 << 26  # of an annotation; theirs have 2,097,152


def read_cityscapes(
    root: str | Path, split: str = "train", *, strict: bool = False, check_images: bool = True
) -> DetectionData:
    """Images with boxes and masks of the eight classes that Cityscapes evaluates, from its fine annotations.

    Masks cover visible pixels; boxes (x0, y0, x1, y1) are tight around them. Image ids are the names up to
    `_leftImg8bit`, annotation ids the values of the pixels, category ids those of Cityscapes. Reading decodes every
    annotation (about 0.1 s an image, a few at a time).

    Args:
        root: folder of `gtFine` and `leftImg8bit`.
        split: `"train"` or `"val"`; the test split is published without annotations.
        strict: raise at the first kind of fault instead of repairing it.
        check_images: open every image file to compare its size with the annotation.

    Raises:
        UserError: no such folders, no usable image or object; or strict.
    """
    root = Path(root)
    for folder in (root / "gtFine" / split, root / "leftImg8bit" / split):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder: name the folder that contains gtFine/SPLIT and leftImg8bit/SPLIT"
            )
    annotations = {
        (file.parent.name, file.name.removesuffix(end))
        for end in (POLYGONS, INSTANCES)
        for file in (root / "gtFine" / split).glob(f"*/*{end}")
    }
    images = {
        (file.parent.name, file.name.removesuffix(IMAGE)) for file in (root / "leftImg8bit" / split).glob(f"*/*{IMAGE}")
    }

    def read(place: tuple[str, str]) -> tuple[Record | None, Repairs]:
        repairs = Repairs()
        return _read_image(root, split, *place, check_images, repairs), repairs

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        results = list(threads.map(read, sorted(annotations | images)))
    repairs = Repairs()
    for _, of_image in results:
        repairs.extend(of_image)
    repairs.stop_if(strict)
    records = tuple(record for record, _ in results if record is not None)
    source = f"{root} ({split})"
    if not records:
        raise empty_split_error(source, repairs, "no usable image")
    if not any(len(record) for record in records):
        num_images = counted(len(records), "image")
        raise empty_split_error(
            source, repairs, f"no object in its {num_images}: name train or val, as the test split has no annotations"
        )
    return DetectionData(
        records=records,
        classes=tuple(CLASSES),
        category_ids=tuple(CLASSES.values()),
        kind="cityscapes",
        source=source,
        repairs=repairs,
    )


def annotation_paths(image: str) -> tuple[Path, Path]:
    """The paths of the instance ids and of the polygons of an image; either file may be missing."""
    path = Path(image)
    name, split = path.name.removesuffix(IMAGE), path.parents[1].name
    folder = path.parents[3] / "gtFine" / split / path.parent.name
    return folder / f"{name}{INSTANCES}", folder / f"{name}{POLYGONS}"


def read_instance_ids(instances: Path, polygons: Path, note: Callable[..., None]) -> np.ndarray:
    """(H, W) int32 ids, from the file of instance ids if it exists, otherwise drawn from the polygons.

    Polygons are drawn in their order, later ones over earlier ones, as by `json2instanceImg` of cityscapesScripts.
    Pixels of classes without instances may be 0. Invalid polygons are passed to `note` and not drawn.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError: a file cannot be read or is invalid.
    """
    if instances.is_file():
        with open_file(instances) as file, Image.open(file) as image:
            return np.asarray(image).astype(np.int32)
    content = read_json(polygons)
    width, height = content["imgWidth"], content["imgHeight"]
    if type(width) is not int or type(height) is not int or not 0 < width * height <= MAX_PIXELS:
        raise ValueError("imgWidth x imgHeight is no size of an image")
    ids = Image.new("I", (width, height), 0)
    pen = ImageDraw.Draw(ids)
    numbers: dict[str, int] = {}
    with_instances = CLASSES | OTHER_INSTANCES
    for position, entry in enumerate(content["objects"], start=1):
        label, points = entry["label"], [finite_numbers(point, 2) for point in entry["polygon"]]
        if entry.get("deleted") or label in NOT_DRAWN:
            continue
        corners = [(point[0], point[1]) for point in points if point is not None]
        if len(corners) < len(points):
            note("bad-mask", annotation_id=position, detail=f"{label}: not finite x, y pairs")
            continue
        if len(corners) < 3:
            note("short-polygon", annotation_id=position, detail=f"{label}: {len(points)} points")
            continue
        value = with_instances.get(label.removesuffix("group"), 0)
        if label in with_instances:
            value = 1000 * value + numbers.get(label, 0)
            numbers[label] = numbers.get(label, 0) + 1
        pen.polygon(corners, fill=value)
    return np.asarray(ids)


def _read_image(root: Path, split: str, city: str, name: str, check: bool, repairs: Repairs) -> Record | None:
    image = root / "leftImg8bit" / split / city / f"{name}{IMAGE}"
    instances, polygons = annotation_paths(str(image))
    file = str(instances if instances.is_file() else polygons)
    if not image.is_file():
        repairs.add("missing-image", file=file, image_id=name, detail=str(image))
        return None
    try:
        ids = read_instance_ids(instances, polygons, partial(repairs.add, file=file, image_id=name))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        repairs.add("missing-annotation", file=file, image_id=name, detail=f"{type(error).__name__}: {error}")
        return None
    height, width = ids.shape
    size = checked_size(str(image), (width, height), file=file, image_id=name, check=check, repairs=repairs)
    if size is None:
        return None
    return make_record(
        _objects(ids),
        file=file,
        image=str(image),
        image_id=name,
        width=width,
        height=height,
        with_masks=True,
        repairs=repairs,
    )


def _objects(ids: np.ndarray) -> list[Annotated]:
    """Instances and groups in (H, W) ids, with their masks as uncompressed RLE."""
    height, width = ids.shape
    labels = {number: label for label, number in enumerate(CLASSES.values(), start=1)}
    columns = ids.astype(np.uint16).T.ravel()  # RLE runs down the columns; 16 bits are sorted in one pass
    pixels = np.flatnonzero(columns >= min(labels))
    pixels = pixels[np.argsort(columns[pixels], kind="stable")]  # grouped by id, ascending within each
    values, starts = np.unique(columns[pixels], return_index=True)
    objects = []
    ends = np.r_[starts[1:], len(pixels)]
    for value, start, end in zip(values.tolist(), starts, ends, strict=False):  # without values there is one end
        members = pixels[start:end]
        label = labels.get(value // 1000 if value >= 1000 else value)
        if label is None:
            continue
        breaks = np.flatnonzero(np.diff(members) != 1)
        first, last = members[np.r_[0, breaks + 1]], members[np.r_[breaks, len(members) - 1]]
        runs = np.stack([first, last + 1], axis=1).ravel()  # begin and end of each run of the object
        counts = np.diff(np.r_[0, runs, height * width]).tolist()
        x, y = members // height, members % height
        box = [int(x[0]), int(y.min()), int(x[-1]) + 1, int(y.max()) + 1]
        segmentation = {"size": [height, width], "counts": counts}
        objects.append(
            Annotated(
                annotation_id=value,
                label=label,
                box=box,
                segmentation=segmentation,
                crowd=value < 1000,
                area=len(members),
            )
        )
    return objects
