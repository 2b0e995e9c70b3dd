"""Cityscapes' layout: `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_*`.

An image of instance ids holds in each pixel its class (11: building), or 1000 times the class plus a number for an
instance (26003: the fourth car). Pixels of a class with instances that hold the bare class (26) are of a group whose
members could not be told apart: here a crowd region. Where that image is missing it is drawn from the polygons.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from resim.counts import counted
from resim.datasets.objects import Annotated, make_record
from resim.datasets.records import DetectionData, Record
from resim.datasets.repair import Repairs, finite, nothing_left, sound_size
from resim.errors import UserError

# the classes that are evaluated, and their ids
CLASSES = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}
OTHER_INSTANCES = {"caravan": 29, "trailer": 30}  # numbered like the others, and left out by the evaluation
NOT_DRAWN = ("license plate",)  # its id is -1: what it lies on is seen
IMAGE, POLYGONS, INSTANCES = "_leftImg8bit.png", "_gtFine_polygons.json", "_gtFine_instanceIds.png"


def read_cityscapes(
    root: str | Path, split: str = "train", *, strict: bool = False, check_images: bool = True
) -> DetectionData:
    """Images with boxes and masks of the eight classes that Cityscapes evaluates, from its fine annotations.

    Masks are of what can be seen and boxes tight around them, in (x0, y0, x1, y1). Image ids are the names up to
    `_leftImg8bit`, annotation ids the values of the pixels, category ids those of Cityscapes. Reading decodes every
    annotation (about 0.1 s an image, a few at a time).

    Args:
        root: the folder with `gtFine` and `leftImg8bit`.
        split: `"train"` or `"val"`; the test split is published without annotations.
        strict: raise at the first kind of fault instead of repairing.
        check_images: open every image file to compare its size with the annotation.

    Raises:
        UserError: no such folders, nothing left that can be used; or strict.
    """
    root = Path(root)
    for folder in (root / "gtFine" / split, root / "leftImg8bit" / split):
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; Cityscapes has gtFine/SPLIT and leftImg8bit/SPLIT")
    truths = {
        (file.parent.name, file.name.removesuffix(end))
        for end in (POLYGONS, INSTANCES)
        for file in (root / "gtFine" / split).glob(f"*/*{end}")
    }
    images = {
        (file.parent.name, file.name.removesuffix(IMAGE)) for file in (root / "leftImg8bit" / split).glob(f"*/*{IMAGE}")
    }

    def read(place: tuple[str, str]) -> tuple[Record | None, Repairs]:
        found = Repairs()
        return _record(root, split, *place, check_images, found), found

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        results = list(threads.map(read, sorted(truths | images)))
    repairs = Repairs()
    for _, found in results:
        repairs.extend(found)
    repairs.stop_if(strict)
    records = tuple(record for record, _ in results if record is not None)
    source = f"{root} ({split})"
    if not records:
        raise nothing_left(source, repairs, "no image that can be used")
    if not any(len(record) for record in records):
        raise nothing_left(
            source, repairs, f"no object in its {counted(len(records), 'image')} (the test split has none)"
        )
    return DetectionData(
        records=records,
        classes=tuple(CLASSES),
        category_ids=tuple(CLASSES.values()),
        kind="cityscapes",
        source=source,
        repairs=repairs,
    )


def truth_of(image: str) -> tuple[Path, Path]:
    """The paths of the instance ids and of the polygons that belong to an image; either may be missing."""
    path = Path(image)
    name, split = path.name.removesuffix(IMAGE), path.parents[1].name
    folder = path.parents[3] / "gtFine" / split / path.parent.name
    return folder / f"{name}{INSTANCES}", folder / f"{name}{POLYGONS}"


def instance_ids(instances: Path, polygons: Path, note: Callable[..., None]) -> np.ndarray:
    """(H, W) int32: of the file of instance ids if it is there, otherwise drawn from the polygons.

    They are drawn in their order, the later over the earlier, as cityscapesScripts' `json2instanceImg` does.
    Pixels of classes without instances may be 0. Polygons that are none are told to `note` and not drawn.

    Raises:
        OSError, ValueError, LookupError, TypeError: a file cannot be read, or is not what it should be.
    """
    if instances.is_file():
        with Image.open(instances) as image:
            return np.asarray(image).astype(np.int32)
    content = json.loads(polygons.read_bytes())
    drawn = Image.new("I", (content["imgWidth"], content["imgHeight"]), 0)
    pen = ImageDraw.Draw(drawn)
    numbers: dict[str, int] = {}
    with_instances = CLASSES | OTHER_INSTANCES
    for position, thing in enumerate(content["objects"], start=1):
        label, points = thing["label"], [finite(point, 2) for point in thing["polygon"]]
        if thing.get("deleted") or label in NOT_DRAWN:
            continue
        corners = [(point[0], point[1]) for point in points if point is not None]
        if len(corners) < len(points):
            note("bad-mask", annotation_id=position, detail=f"{label}, not finite x, y pairs")
            continue
        if len(corners) < 3:
            note("short-polygon", annotation_id=position, detail=f"{label}, {len(points)} points")
            continue
        value = with_instances.get(label.removesuffix("group"), 0)
        if label in with_instances:
            value = 1000 * value + numbers.get(label, 0)
            numbers[label] = numbers.get(label, 0) + 1
        pen.polygon(corners, fill=value)
    return np.asarray(drawn)


def _record(root: Path, split: str, city: str, name: str, check: bool, repairs: Repairs) -> Record | None:
    image = root / "leftImg8bit" / split / city / f"{name}{IMAGE}"
    instances, polygons = truth_of(str(image))
    file = str(instances if instances.is_file() else polygons)
    if not image.is_file():
        repairs.add("missing-image", file=file, image_id=name, detail=str(image))
        return None
    try:
        ids = instance_ids(instances, polygons, partial(repairs.add, file=file, image_id=name))
    except (OSError, ValueError, LookupError, TypeError) as error:
        repairs.add("missing-annotation", file=file, image_id=name, detail=f"{type(error).__name__}: {error}")
        return None
    height, width = ids.shape
    size = sound_size(str(image), (width, height), file=file, image_id=name, check=check, repairs=repairs)
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
    """Instances and groups in an image of ids (H, W), with their masks as uncompressed RLE."""
    height, width = ids.shape
    labels = {number: label for label, number in enumerate(CLASSES.values(), start=1)}
    down = ids.astype(np.uint16).T.ravel()  # RLE runs down the columns; 16 bits, which sort in one pass
    pixels = np.flatnonzero(down >= min(labels))
    pixels = pixels[np.argsort(down[pixels], kind="stable")]  # of one id after the other, ascending in each
    values, starts = np.unique(down[pixels], return_index=True)
    objects = []
    for value, start, end in zip(
        values.tolist(), starts, np.r_[starts[1:], len(pixels)], strict=False
    ):  # no values, one end
        own = pixels[start:end]
        label = labels.get(value // 1000 if value >= 1000 else value)
        if label is None:
            continue
        breaks = np.flatnonzero(np.diff(own) != 1)
        # where the runs of the object begin and end, one after the other
        ends = np.stack([own[np.r_[0, breaks + 1]], own[np.r_[breaks, len(own) - 1]] + 1], axis=1).ravel()
        counts = np.diff(np.r_[0, ends, height * width]).tolist()
        x, y = own // height, own % height
        box = [int(x[0]), int(y.min()), int(x[-1]) + 1, int(y.max()) + 1]
        segmentation = {"size": [height, width], "counts": counts}
        crowd = value < 1000
        objects.append(
            Annotated(annotation_id=value, label=label, box=box, segmentation=segmentation, crowd=crowd, area=len(own))
        )
    return objects
